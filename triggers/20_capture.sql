-- Runs after each changed row of a watched table. Promises: the writer's statement does not fail
-- because of it, and one log row stands for the change, or rowcast.gap tells that one is missing.
--
-- SECURITY DEFINER as rowcast_trigger: writers need no rights on rowcast. json, not jsonb: to_jsonb
-- fails on values that json columns may hold (measured: \u0000 and 1e999999). What rowcast_trigger owns, it may
-- change, and so may the casts that it runs (65_foreign.sql): every name in its functions says its schema.
--
-- An image must not depend on the writer's session. The text of most types depends on nothing there,
-- that of timestamptz on the time zone; rowcast.capturer says what a table needs. capture() has every
-- setting pinned. The other two have no SET clause, which costs each row (measured: 32 writers together
-- do a tenth more without), and so they also run with the writer's search_path: every function, operator
-- and type in the body says its schema.
--
-- A row is measured before it is converted. pg_column_size fetches what lies out of line but does
-- not decompress it, so the text of all but small rows is measured again afterwards. Who is too large is
-- logged by key.
--
-- The argument 'guarded' is set by rowcast.watch on tables with types whose conversion runs code
-- that is not PostgreSQL's own, or may fail; the exception block costs each row a subtransaction.

-- Logs a change by its key alone. The names come from the catalogue, so that a renamed column cannot
-- break a writer. Where a row came or went, old and new are both that row.
create or replace function rowcast.log_key(rel oid, op "char", old anyelement, new anyelement) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  keys text;
  old_key json;
  new_key json;
begin
  select string_agg(format('%L, ($1).%I', a.attname, a.attname), ', ') into strict keys
  from pg_index i
  join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any (i.indkey)
  where i.indrelid = rel and i.indisprimary;
  if op <> 'I' then
    execute 'select json_build_object(' || keys || ')' into strict old_key using old;
  end if;
  if op <> 'D' then
    execute 'select json_build_object(' || keys || ')' into strict new_key using new;
  end if;
  insert into rowcast.log (rel, op, old, new, truncated) values (rel, op, old_key, new_key, true);
  perform rowcast.ring();
exception when others then
  perform nextval('rowcast.gap');
  perform rowcast.ring();
end
$$;
alter function rowcast.log_key(oid, "char", anyelement, anyelement) owner to rowcast_owner;
revoke all on function rowcast.log_key(oid, "char", anyelement, anyelement) from public;
grant execute on function rowcast.log_key(oid, "char", anyelement, anyelement) to rowcast_trigger;
comment on function rowcast.log_key(oid, "char", anyelement, anyelement) is 'Logs a change by its key alone';

do $install$
declare
  -- One expression and one insert on the way of nearly every row: PostgreSQL makes each expression ready
  -- anew in each transaction (measured: 2 us, where 32 write at once). So the first condition rings the bell
  -- too. It may ring before the log row is there, because the row that was changed has given the transaction
  -- its id. A row of a thousand bytes may hold values that are compressed, to a 255th at best: it needs no
  -- second measure.
  body constant text := $body$
declare
  old_image pg_catalog.json;
  new_image pg_catalog.json;
  by_key boolean;%1$s
begin
  -- OLD is null where a row comes, NEW where one goes.
  if tg_nargs operator(pg_catalog.=) 0
      and coalesce(pg_catalog.pg_column_size(old), 0) operator(pg_catalog.<=) 1000
      and coalesce(pg_catalog.pg_column_size(new), 0) operator(pg_catalog.<=) 1000%2$s
      and rowcast.rang() is not null then
    insert into rowcast.log (rel, op, old, new)
    values (tg_relid, tg_op::pg_catalog."char", pg_catalog.row_to_json(old), pg_catalog.row_to_json(new));
    return null;
  end if;
%3$s
  by_key := coalesce(pg_catalog.pg_column_size(old), 0) operator(pg_catalog.>) 262144
    or coalesce(pg_catalog.pg_column_size(new), 0) operator(pg_catalog.>) 262144;
  if by_key then
    null;
  elsif tg_nargs operator(pg_catalog.=) 0 then
    old_image := pg_catalog.row_to_json(old);
    new_image := pg_catalog.row_to_json(new);
  else
    begin
      old_image := pg_catalog.row_to_json(old);
      new_image := pg_catalog.row_to_json(new);
    exception when others then
      by_key := true;
    end;
  end if;
%4$s
  if by_key is not true
      and coalesce(pg_catalog.pg_column_size(old_image), 0) operator(pg_catalog.<=) 262144
      and coalesce(pg_catalog.pg_column_size(new_image), 0) operator(pg_catalog.<=) 262144
      and rowcast.rang() is not null then
    insert into rowcast.log (rel, op, old, new)
    values (tg_relid, tg_op::pg_catalog."char", old_image, new_image);
  elsif tg_op operator(pg_catalog.=) 'INSERT' then
    perform rowcast.log_key(tg_relid, 'I', new, new);
  elsif tg_op operator(pg_catalog.=) 'UPDATE' then
    perform rowcast.log_key(tg_relid, 'U', old, new);
  else
    perform rowcast.log_key(tg_relid, 'D', old, old);
  end if;
  return null;
end
$body$;
  -- Most servers keep UTC. Another time zone is put aside for the conversion: a SET clause would do it
  -- for each row, and then PostgreSQL looks through all settings for those that clients are told of.
  -- Assignments, because PERFORM is a query of its own (measured: 4 us).
  zone_declared constant text := $zone$
  zone pg_catalog.text;
  zone_now pg_catalog.text;$zone$;
  zone_is_ours constant text := $zone$
      and pg_catalog.current_setting('TimeZone') operator(pg_catalog.=) any ('{UTC,Etc/UTC}')$zone$;
  zone_aside constant text := $zone$
  zone := pg_catalog.current_setting('TimeZone');
  zone_now := pg_catalog.set_config('TimeZone', 'UTC', true);$zone$;
  zone_back constant text := $zone$
  zone_now := pg_catalog.set_config('TimeZone', zone, true);$zone$;
  wanted record;
begin
  for wanted in
    select * from (values
      ('capture_plain', '', '', '', '', ''),
      ('capture_zoned', '', zone_declared, zone_is_ours, zone_aside, zone_back),
      ('capture', 'set search_path = pg_catalog, pg_temp set timezone = ''UTC'' set datestyle = ''ISO'' '
                  'set intervalstyle = ''iso_8601'' set extra_float_digits = 1 set bytea_output = ''hex'' '
                  'set lc_monetary = ''C''', '', '', '', '')
    ) as v (name, pins, declared, condition, before, after)
  loop
    -- Names and pins are the ones above.
    execute format(
      'create or replace function rowcast.%I() returns trigger language plpgsql security definer %s as %L',
      wanted.name, wanted.pins,
      format(body, wanted.declared, wanted.condition, wanted.before, wanted.after));
    execute format('alter function rowcast.%I() owner to rowcast_trigger', wanted.name);
    execute format('revoke all on function rowcast.%I() from public', wanted.name);
    execute format('grant execute on function rowcast.%I() to rowcast_owner', wanted.name);
  end loop;
end
$install$;
comment on function rowcast.capture() is 'Trigger: logs one changed row';
comment on function rowcast.capture_zoned() is 'Trigger: logs one changed row whose text depends on no setting but the time zone';
comment on function rowcast.capture_plain() is 'Trigger: logs one changed row whose text depends on no setting';

-- Runs after a TRUNCATE of a watched table or of one of its partitions. The new file is logged too:
-- that is how the drift check tells a truncation, which was captured, from a rewrite, which was not.
create or replace function rowcast.capture_truncate() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into rowcast.log (rel, op, new)
  values (tg_relid, 'T', pg_catalog.to_json(pg_catalog.pg_relation_filenode(tg_relid)));
  perform rowcast.ring();
  return null;
end
$$;
alter function rowcast.capture_truncate() owner to rowcast_trigger;
revoke all on function rowcast.capture_truncate() from public;
grant execute on function rowcast.capture_truncate() to rowcast_owner;
comment on function rowcast.capture_truncate() is 'Trigger: logs that a table was truncated';

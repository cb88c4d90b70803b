-- Runs after each changed row of a watched table. Promises: the writer's statement does not fail
-- because of it, and one log row stands for the change, or rowcast.gap tells that one is missing.
--
-- SECURITY DEFINER as rowcast_trigger: writers need no rights on rowcast. json, not jsonb: to_jsonb
-- fails on values that json columns may hold (measured: \u0000 and 1e999999). What rowcast_trigger owns, it may
-- change, and so may the casts that it runs (65_foreign.sql): every name in its functions says its schema.
--
-- An image must not depend on the writer's session. The text of most types depends on nothing there, and that of
-- timestamptz only on the time zone, which its text tells: whoever reads the log brings times to UTC
-- (src/event/zone.rs). rowcast.capturer says what a table needs. capture() has every setting pinned. capture_plain()
-- has no SET clause, which costs each row (measured: 32 writers together do a tenth more without), and so it also
-- runs with the writer's search_path: every function, operator and type in the body says its schema.
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

-- Logs a row that the trigger does not log by itself: one that is not small, or that may not be convertible. Null, so
-- that the trigger can return it.
create or replace function rowcast.log_row(rel oid, op "char", guarded boolean, old anyelement, new anyelement)
  returns anyelement
language plpgsql
as $$
declare
  old_image pg_catalog.json;
  new_image pg_catalog.json;
  by_key boolean;
begin
  by_key := greatest(pg_catalog.pg_column_size(old), pg_catalog.pg_column_size(new)) operator(pg_catalog.>) 262144;
  if by_key then
    null;
  elsif guarded then
    begin
      old_image := pg_catalog.row_to_json(old);
      new_image := pg_catalog.row_to_json(new);
    exception when others then
      by_key := true;
    end;
  else
    old_image := pg_catalog.row_to_json(old);
    new_image := pg_catalog.row_to_json(new);
  end if;
  if by_key is not true
      and greatest(pg_catalog.pg_column_size(old_image), pg_catalog.pg_column_size(new_image)) operator(pg_catalog.<=) 262144
      and rowcast.rang() is not null then
    insert into rowcast.log (rel, op, old, new) values (rel, op, old_image, new_image);
  elsif op operator(pg_catalog.=) 'I' then
    perform rowcast.log_key(rel, op, new, new);
  elsif op operator(pg_catalog.=) 'U' then
    perform rowcast.log_key(rel, op, old, new);
  else
    perform rowcast.log_key(rel, op, old, old);
  end if;
  return null;
end
$$;
alter function rowcast.log_row(oid, "char", boolean, anyelement, anyelement) owner to rowcast_owner;
revoke all on function rowcast.log_row(oid, "char", boolean, anyelement, anyelement) from public;
grant execute on function rowcast.log_row(oid, "char", boolean, anyelement, anyelement) to rowcast_trigger;
comment on function rowcast.log_row(oid, "char", boolean, anyelement, anyelement) is 'Logs one changed row, whatever it is like';

do $install$
declare
  -- One expression and one insert on the way of nearly every row. PostgreSQL makes each expression ready anew in
  -- each transaction, one function after the other, and copies each variable for each row (measured, where 32
  -- write at once: 2 us for the expression, as much for five variables). So the first expression asks whether the
  -- bell is to be rung, the next one rings it, and all else is in log_row. It may be rung before the log row is
  -- there, because the row that was changed has given the transaction its id. A row of a thousand bytes may hold
  -- values that are compressed, to a 255th at best: its text is not measured.
  body constant text := $body$
begin
  -- OLD is null where a row comes, NEW where one goes: greatest() leaves it out.
  if tg_nargs operator(pg_catalog.=) 0 and rowcast.awake() and %1$s then
    %2$s;
  elsif tg_nargs operator(pg_catalog.=) 0 and %1$s and rowcast.rang() is not null then
    %2$s;
  else
    return rowcast.log_row(tg_relid, tg_op::pg_catalog."char", tg_nargs operator(pg_catalog.>) 0, old, new);
  end if;
  return null;
end
$body$;
  is_small constant text :=
    'greatest(pg_catalog.pg_column_size(old), pg_catalog.pg_column_size(new)) operator(pg_catalog.<=) 1000';
  log_both constant text := $insert$
    insert into rowcast.log (rel, op, old, new)
    values (tg_relid, tg_op::pg_catalog."char", pg_catalog.row_to_json(old), pg_catalog.row_to_json(new))$insert$;
  wanted record;
begin
  for wanted in
    select * from (values
      ('capture_plain', '', true),
      ('capture', 'set search_path = pg_catalog, pg_temp set timezone = ''UTC'' set datestyle = ''ISO'' '
                  'set intervalstyle = ''iso_8601'' set extra_float_digits = 1 set bytea_output = ''hex'' '
                  'set lc_monetary = ''C''', true),
      -- What tables with timestamptz had before, until check_drift has given them the first.
      ('capture_zoned', '', to_regprocedure('rowcast.capture_zoned()') is not null)
    ) as v (name, pins, wanted)
    where v.wanted
  loop
    -- Names and pins are the ones above.
    execute format(
      'create or replace function rowcast.%I() returns trigger language plpgsql security definer %s as %L',
      wanted.name, wanted.pins, format(body, is_small, log_both));
    execute format('alter function rowcast.%I() owner to rowcast_trigger', wanted.name);
    execute format('revoke all on function rowcast.%I() from public', wanted.name);
    execute format('grant execute on function rowcast.%I() to rowcast_owner', wanted.name);
  end loop;
end
$install$;
comment on function rowcast.capture() is 'Trigger: logs one changed row';
comment on function rowcast.capture_plain() is 'Trigger: logs one changed row whose text depends on no setting but the time zone';

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

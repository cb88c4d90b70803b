-- Runs after each changed row of a watched table. Promises: the writer's statement does not fail
-- because of it, and one log row stands for the change, or rowcast.gap tells that one is missing.
--
-- SECURITY DEFINER as rowcast_trigger: writers need no rights on rowcast. json, not jsonb: to_jsonb
-- fails on values that json columns may hold (measured: \u0000 and 1e999999).
--
-- The same body three times, because pins cost every row (measured: all of them 2.7 us of 19). They
-- make the image independent of the writer's session; but the text of most types depends on nothing
-- there, and that of timestamptz on the time zone alone. rowcast.capturer says what a table needs.
--
-- A row is measured before it is converted. pg_column_size fetches what lies out of line but does
-- not decompress it, so the text is measured again afterwards.
--
-- The argument 'guarded' is set by rowcast.watch on tables with types whose conversion runs code
-- that is not PostgreSQL's own, or may fail; the exception block costs each row a subtransaction.
do $install$
declare
  body constant text := $body$
declare
  cap constant integer := 262144;
  whole boolean := false;
  old_image json;
  new_image json;
  keys text;
begin
  -- Each operation by itself, with as few steps as it needs: every step costs every row.
  if tg_nargs > 0 then
    begin
      whole := coalesce(pg_column_size(old), 0) <= cap and coalesce(pg_column_size(new), 0) <= cap;
      if whole then
        if tg_op <> 'INSERT' then
          old_image := row_to_json(old);
        end if;
        if tg_op <> 'DELETE' then
          new_image := row_to_json(new);
        end if;
        whole := coalesce(pg_column_size(old_image), 0) <= cap and coalesce(pg_column_size(new_image), 0) <= cap;
      end if;
    exception when others then
      whole := false;
    end;
  elsif tg_op = 'UPDATE' then
    if pg_column_size(old) <= cap and pg_column_size(new) <= cap then
      old_image := row_to_json(old);
      new_image := row_to_json(new);
      whole := pg_column_size(old_image) <= cap and pg_column_size(new_image) <= cap;
    end if;
  elsif tg_op = 'INSERT' then
    if pg_column_size(new) <= cap then
      new_image := row_to_json(new);
      whole := pg_column_size(new_image) <= cap;
    end if;
  elsif pg_column_size(old) <= cap then
    old_image := row_to_json(old);
    whole := pg_column_size(old_image) <= cap;
  end if;
  if whole then
    insert into rowcast.log (rel, op, old, new)
    values (tg_relid, tg_op::"char", old_image, new_image);
    -- A condition and not PERFORM, which would be a query of its own for each row (measured: 4 us).
    if rowcast.rang() then
      null;
    end if;
    return null;
  end if;

  -- The key alone. Its names come from the catalogue, so a renamed column cannot break a writer.
  begin
    old_image := null;
    new_image := null;
    select string_agg(format('%L, ($1).%I', a.attname, a.attname), ', ') into strict keys
    from pg_index i
    join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any (i.indkey)
    where i.indrelid = tg_relid and i.indisprimary;
    if tg_op <> 'INSERT' then
      execute 'select json_build_object(' || keys || ')' into strict old_image using old;
    end if;
    if tg_op <> 'DELETE' then
      execute 'select json_build_object(' || keys || ')' into strict new_image using new;
    end if;
    insert into rowcast.log (rel, op, old, new, truncated)
    values (tg_relid, tg_op::"char", old_image, new_image, true);
    perform rowcast.ring();
  exception when others then
    perform nextval('rowcast.gap');
    perform rowcast.ring();
  end;
  return null;
end
$body$;
  wanted record;
begin
  for wanted in
    select * from (values
      ('capture_plain', ''),
      ('capture_zoned', 'set timezone = ''UTC'''),
      ('capture', 'set timezone = ''UTC'' set datestyle = ''ISO'' set intervalstyle = ''iso_8601''
                   set extra_float_digits = 1 set bytea_output = ''hex'' set lc_monetary = ''C''')
    ) as v (name, pins)
  loop
    -- Names and pins are the ones above.
    execute format(
      'create or replace function rowcast.%I() returns trigger language plpgsql security definer '
      'set search_path = pg_catalog, pg_temp %s as %L',
      wanted.name, wanted.pins, body);
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
  values (tg_relid, 'T', to_json(pg_relation_filenode(tg_relid)));
  perform rowcast.ring();
  return null;
end
$$;
alter function rowcast.capture_truncate() owner to rowcast_trigger;
revoke all on function rowcast.capture_truncate() from public;
grant execute on function rowcast.capture_truncate() to rowcast_owner;
comment on function rowcast.capture_truncate() is 'Trigger: logs that a table was truncated';

-- Runs after each changed row of a watched table. Promises: the writer's statement does not fail
-- because of it, and one log row stands for the change, or rowcast.gap tells that one is missing.
--
-- SECURITY DEFINER as rowcast_trigger: writers need no rights on rowcast. The pins make the image
-- independent of the writer's session. json, not jsonb: to_jsonb fails on values that json columns
-- may hold (measured: \u0000 and 1e999999).
--
-- A row is measured before it is converted. pg_column_size fetches what lies out of line but does
-- not decompress it, so the text is measured again afterwards.
--
-- The argument 'guarded' is set by rowcast.watch on tables with types whose conversion runs code
-- that is not PostgreSQL's own; the exception block costs each row a transaction id.
create or replace function rowcast.capture() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO'
set intervalstyle = 'iso_8601'
set extra_float_digits = 1
set bytea_output = 'hex'
set lc_monetary = 'C'
as $$
declare
  cap constant integer := 262144;
  whole boolean := true;
  old_image json;
  new_image json;
  keys text;
begin
  if tg_nargs = 0 then
    whole := coalesce(pg_column_size(old), 0) <= cap and coalesce(pg_column_size(new), 0) <= cap;
    if whole then
      if tg_op <> 'INSERT' then
        old_image := row_to_json(old);
      end if;
      if tg_op <> 'DELETE' then
        new_image := row_to_json(new);
      end if;
    end if;
  else
    begin
      whole := coalesce(pg_column_size(old), 0) <= cap and coalesce(pg_column_size(new), 0) <= cap;
      if whole then
        if tg_op <> 'INSERT' then
          old_image := row_to_json(old);
        end if;
        if tg_op <> 'DELETE' then
          new_image := row_to_json(new);
        end if;
      end if;
    exception when others then
      whole := false;
    end;
  end if;
  if whole and coalesce(pg_column_size(old_image), 0) <= cap
           and coalesce(pg_column_size(new_image), 0) <= cap then
    insert into rowcast.log (rel, op, old, new)
    values (tg_relid, substr(tg_op, 1, 1)::"char", old_image, new_image);
    perform rowcast.ring();
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
    values (tg_relid, substr(tg_op, 1, 1)::"char", old_image, new_image, true);
    perform rowcast.ring();
  exception when others then
    perform nextval('rowcast.gap');
    perform rowcast.ring();
  end;
  return null;
end
$$;
alter function rowcast.capture() owner to rowcast_trigger;
revoke all on function rowcast.capture() from public;
grant execute on function rowcast.capture() to rowcast_owner;
comment on function rowcast.capture() is 'Trigger: logs one changed row';

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

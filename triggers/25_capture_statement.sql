-- Runs once after each statement on a table that is captured by statement, instead of once after each row.
-- Its promises are those of 20_capture.sql, and what stands in the log is the same. A row of a bulk
-- statement costs its writer two thirds; a statement of one row costs more (docs/performance.md).
--
-- The names of the transition tables are such as nobody's column has: in row_to_json(x.*) x means the
-- row only as long as there is no column x.

-- Whether an image of this row is small enough for the log, by the measure of 20_capture.sql. In SQL, so
-- that PostgreSQL makes it a part of the statement.
create or replace function rowcast.fits(image anyelement) returns boolean
language sql stable
as $$
  select case
    when pg_catalog.pg_column_size(image) operator(pg_catalog.<=) 1000 then true
    when pg_catalog.pg_column_size(image) operator(pg_catalog.>) 262144 then false
    else pg_catalog.pg_column_size(pg_catalog.row_to_json(image)) operator(pg_catalog.<=) 262144
  end
$$;
alter function rowcast.fits(anyelement) owner to rowcast_owner;
revoke all on function rowcast.fits(anyelement) from public;
grant execute on function rowcast.fits(anyelement) to rowcast_trigger;
comment on function rowcast.fits(anyelement) is 'Whether a row is logged with its values';

create or replace function rowcast.capture_statement() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp set timezone = 'UTC' set datestyle = 'ISO' set intervalstyle = 'iso_8601'
set extra_float_digits = 1 set bytea_output = 'hex' set lc_monetary = 'C' set jit = off
as $$
declare
  changed bigint;
  logged bigint := 0;
  failed boolean := false;
  old_key text;
  new_key text;
  -- Rows before and after by their place: PostgreSQL writes both down at once. Should it ever not, nothing
  -- is lost, because the images of a transaction are chained by content (src/event/net.rs). Planned anew each
  -- time: a plan that was made for few rows would compare each with each. PostgreSQL takes every place for
  -- the same as many others and would compile what it thinks a long join (measured: 0.14 s), hence jit.
  pairs constant text := '(select %s, row_number() over () as place from "!rowcast_old") o '
    'full join (select %s, row_number() over () as place from "!rowcast_new") n using (place)';
begin
  if tg_op = 'DELETE' then
    select count(*) into changed from "!rowcast_old";
  else
    select count(*) into changed from "!rowcast_new";
  end if;
  if changed = 0 then
    return null;
  end if;
  begin
    if tg_op = 'INSERT' then
      insert into rowcast.log (rel, op, new)
      select tg_relid, 'I', row_to_json("!rowcast_new".*) from "!rowcast_new" where rowcast.fits("!rowcast_new".*);
    elsif tg_op = 'DELETE' then
      insert into rowcast.log (rel, op, old)
      select tg_relid, 'D', row_to_json("!rowcast_old".*) from "!rowcast_old" where rowcast.fits("!rowcast_old".*);
    elsif changed = 1 then
      insert into rowcast.log (rel, op, old, new)
      select tg_relid, 'U', row_to_json("!rowcast_old".*), row_to_json("!rowcast_new".*)
      from "!rowcast_old", "!rowcast_new"
      where rowcast.fits("!rowcast_old".*) and rowcast.fits("!rowcast_new".*);
    else
      execute 'insert into rowcast.log (rel, op, old, new) '
        'select $1, ''U'', row_to_json(o.image), row_to_json(n.image) from '
        || format(pairs, '"!rowcast_old" as image', '"!rowcast_new" as image')
        || ' where rowcast.fits(o.image) and rowcast.fits(n.image)'
        using tg_relid;
    end if;
    get diagnostics logged = row_count;
  exception when others then
    -- A row that cannot be converted; PostgreSQL does not say which. All of the statement by key.
    failed := true;
  end;
  if logged < changed then
    begin
      select string_agg(format('%L, "!rowcast_old".%I', a.attname, a.attname), ', '),
             string_agg(format('%L, "!rowcast_new".%I', a.attname, a.attname), ', ')
      into strict old_key, new_key
      from pg_index i
      join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any (i.indkey)
      where i.indrelid = tg_relid and i.indisprimary;
      old_key := 'json_build_object(' || old_key || ') as key, $2 or not rowcast.fits("!rowcast_old".*) as by_key';
      new_key := 'json_build_object(' || new_key || ') as key, $2 or not rowcast.fits("!rowcast_new".*) as by_key';
      execute
        case tg_op
          when 'INSERT' then
            'insert into rowcast.log (rel, op, new, truncated) select $1, ''I'', n.key, true from '
            '(select ' || new_key || ' from "!rowcast_new") n where n.by_key'
          when 'DELETE' then
            'insert into rowcast.log (rel, op, old, truncated) select $1, ''D'', o.key, true from '
            '(select ' || old_key || ' from "!rowcast_old") o where o.by_key'
          else
            'insert into rowcast.log (rel, op, old, new, truncated) select $1, ''U'', o.key, n.key, true from '
            || format(pairs, old_key, new_key) || ' where (o.by_key or n.by_key) is not false'
        end
        using tg_relid, failed;
    exception when others then
      perform nextval('rowcast.gap');
    end;
  end if;
  perform rowcast.rang();
  return null;
end
$$;
alter function rowcast.capture_statement() owner to rowcast_trigger;
revoke all on function rowcast.capture_statement() from public;
grant execute on function rowcast.capture_statement() to rowcast_owner;
comment on function rowcast.capture_statement() is 'Trigger: logs the rows that one statement changed';

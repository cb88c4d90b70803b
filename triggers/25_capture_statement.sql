-- Runs once after each statement on a table that is captured by statement, instead of once after each row.
-- Its promises are those of 20_capture.sql, and what screens are told is the same. A row of a bulk
-- statement costs its writer three quarters; a statement of one row costs more (docs/performance.md).
--
-- x.* is the row of x, whatever its columns are called; x alone could be one of them. tg_relid and the like are
-- ours, whatever columns there are.

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

do $install$
declare
  -- The ways that need neither a plan nor room of their own.
  simple constant text := $simple$
if tg_op operator(pg_catalog.=) 'INSERT' then
  insert into rowcast.log (rel, op, new)
  select tg_relid, 'I', pg_catalog.row_to_json("!rowcast_new".*) from "!rowcast_new" where rowcast.fits("!rowcast_new".*);
elsif tg_op operator(pg_catalog.=) 'DELETE' then
  insert into rowcast.log (rel, op, old)
  select tg_relid, 'D', pg_catalog.row_to_json("!rowcast_old".*) from "!rowcast_old" where rowcast.fits("!rowcast_old".*);
else
  insert into rowcast.log (rel, op, old, new)
  select tg_relid, 'U', pg_catalog.row_to_json("!rowcast_old".*), pg_catalog.row_to_json("!rowcast_new".*) from "!rowcast_old", "!rowcast_new"
  where rowcast.fits("!rowcast_old".*) and rowcast.fits("!rowcast_new".*);
end if;
$simple$;
  body constant text := $body$
#variable_conflict use_variable
declare
  changed pg_catalog.int8;
  logged pg_catalog.int8;
  side record;
  told_by_key pg_catalog.text;
  keys pg_catalog.text;
begin
  if tg_op operator(pg_catalog.=) 'DELETE' then
    select pg_catalog.count(*) into changed from "!rowcast_old";
  else
    select pg_catalog.count(*) into changed from "!rowcast_new";
  end if;
  if changed operator(pg_catalog.=) 0 then
    return null;
  end if;
  if tg_nargs operator(pg_catalog.=) 0 and (tg_op operator(pg_catalog.<>) 'UPDATE' or changed operator(pg_catalog.=) 1) then
    %1$s
    get diagnostics logged = row_count;
  else
    -- Only where something may fail: a block takes a transaction id, and where one transaction has more than 64 of
    -- these, all others look them up.
    begin
      if tg_op operator(pg_catalog.=) 'UPDATE' and changed operator(pg_catalog.>) 1 then
        -- Rows before and after by their place: PostgreSQL writes both down at once. Should it ever not, nothing
        -- is lost, because the images of a transaction are chained by content (src/event/net.rs). Planned anew
        -- each time: a plan that was made for few rows would compare each with each.
        execute
          'insert into rowcast.log (rel, op, old, new) '
          'select $1, ''U'', o.image, n.image '
          'from (select case when rowcast.fits("!rowcast_old".*) then pg_catalog.row_to_json("!rowcast_old".*) end as image, '
                       'pg_catalog.row_number() over () as place from "!rowcast_old") o '
          'join (select case when rowcast.fits("!rowcast_new".*) then pg_catalog.row_to_json("!rowcast_new".*) end as image, '
                       'pg_catalog.row_number() over () as place from "!rowcast_new") n on o.place operator(pg_catalog.=) n.place '
          'where o.image is not null and n.image is not null'
          using tg_relid;
      else
        %1$s
      end if;
      get diagnostics logged = row_count;
      if logged operator(pg_catalog.<) changed then
        raise data_exception;
      end if;
    exception when others then
      -- A row that does not fit or cannot be converted, or no room to put them side by side.
      logged := 0;
    end;
  end if;
  if logged operator(pg_catalog.<) changed then
    -- What went and what came, each for itself. The images, unless they stand in the log; by key, what has none.
    for side in
      select v.* from (values ('D', 'old', tg_op operator(pg_catalog.<>) 'INSERT'), ('I', 'new', tg_op operator(pg_catalog.<>) 'DELETE')) as v (op, image, told)
      where v.told
    loop
      begin
        told_by_key := 'not rowcast.fits("!rowcast_' operator(pg_catalog.||) side.image operator(pg_catalog.||) '".*)';
        if logged operator(pg_catalog.=) 0 then
          begin
            execute 'insert into rowcast.log (rel, op, ' operator(pg_catalog.||) side.image operator(pg_catalog.||) ') '
              'select $1, $2, pg_catalog.row_to_json("!rowcast_' operator(pg_catalog.||) side.image operator(pg_catalog.||) '".*) from "!rowcast_' operator(pg_catalog.||) side.image operator(pg_catalog.||) '" '
              'where rowcast.fits("!rowcast_' operator(pg_catalog.||) side.image operator(pg_catalog.||) '".*)'
              using tg_relid, side.op::pg_catalog."char";
          exception when others then
            told_by_key := 'true';
          end;
        end if;
        select pg_catalog.string_agg(pg_catalog.quote_literal(a.attname) operator(pg_catalog.||) ', ' operator(pg_catalog.||) pg_catalog.quote_ident(a.attname), ', ') into strict keys
        from pg_catalog.pg_index i
        join pg_catalog.pg_attribute a on a.attrelid operator(pg_catalog.=) i.indrelid and a.attnum operator(pg_catalog.=) any (i.indkey)
        where i.indrelid operator(pg_catalog.=) tg_relid and i.indisprimary;
        execute 'insert into rowcast.log (rel, op, ' operator(pg_catalog.||) side.image operator(pg_catalog.||) ', truncated) '
          'select $1, $2, pg_catalog.json_build_object(' operator(pg_catalog.||) keys operator(pg_catalog.||) '), true from "!rowcast_' operator(pg_catalog.||) side.image operator(pg_catalog.||) '" '
          'where ' operator(pg_catalog.||) told_by_key
          using tg_relid, side.op::pg_catalog."char";
      exception when others then
        perform pg_catalog.nextval('rowcast.gap');
      end;
    end loop;
  end if;
  perform rowcast.rang();
  return null;
end
$body$;
begin
  -- jit: PostgreSQL takes every place for the same as many others, and would compile what it thinks a long join
  -- (measured: 0.14 s).
  execute format(
    'create or replace function rowcast.capture_statement() returns trigger language plpgsql security definer '
    'set search_path = pg_catalog, pg_temp set timezone = ''UTC'' set datestyle = ''ISO'' '
    'set intervalstyle = ''iso_8601'' set extra_float_digits = 1 set bytea_output = ''hex'' '
    'set lc_monetary = ''C'' set jit = off as %L',
    format(body, simple));
end
$install$;
alter function rowcast.capture_statement() owner to rowcast_trigger;
revoke all on function rowcast.capture_statement() from public;
grant execute on function rowcast.capture_statement() to rowcast_owner;
comment on function rowcast.capture_statement() is 'Trigger: logs the rows that one statement changed';

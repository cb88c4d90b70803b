-- What the API may use without its being live: tables, views and functions.
--
-- Each change writes a reset for the table that lists it: an entry of the log like any other, so that
-- every relay reads the catalogue anew, also where the bell is off. No screen shows that table.

create or replace function rowcast.expose(rel regclass) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into rowcast.exposed values (expose.rel) on conflict do nothing;
  if found then
    perform rowcast.reset('rowcast.exposed'::regclass);
  end if;
end
$$;
alter function rowcast.expose(regclass) owner to rowcast_owner;
revoke all on function rowcast.expose(regclass) from public;
comment on function rowcast.expose(regclass) is 'Lets a table or view be used through the API without being live';

create or replace function rowcast.unexpose(rel regclass) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  delete from rowcast.exposed e where e.rel = unexpose.rel;
  if found then
    perform rowcast.reset('rowcast.exposed'::regclass);
  end if;
end
$$;
alter function rowcast.unexpose(regclass) owner to rowcast_owner;
revoke all on function rowcast.unexpose(regclass) from public;
comment on function rowcast.unexpose(regclass) is 'Takes back what expose did';

-- Why a function must not be called through the API, or null. The relay leaves such functions out of
-- its catalogue as well: their owner and settings may change after they were exposed.
create or replace function rowcast.unfit(func regprocedure) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select case
    when p.prokind <> 'f' then 'only plain functions can be called'
    when p.prorettype in ('trigger'::regtype, 'event_trigger'::regtype) then 'it is a trigger function'
    when exists (select from unnest(p.proargtypes::oid[]) as a (type) join pg_type t on t.oid = a.type
                 where t.typtype = 'p')
      then 'one of its arguments has a pseudo-type, which no value of a request has'
    when p.prosecdef and o.rolsuper
         and not exists (select from unnest(p.proconfig) as c (setting) where c.setting like E'search\\_path=%')
      then 'it is SECURITY DEFINER, its owner is a superuser, and its search_path is not fixed'
  end
  from pg_proc p join pg_roles o on o.oid = p.proowner
  where p.oid = func
$$;
alter function rowcast.unfit(regprocedure) owner to rowcast_owner;
comment on function rowcast.unfit(regprocedure) is 'Why a function must not be called through the API; null when it may';

create or replace function rowcast.expose_function(func regprocedure) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  reason text := rowcast.unfit(func);
begin
  if reason is not null then
    raise exception '% cannot be exposed: %', func, reason
      using errcode = 'wrong_object_type',
            hint = case when reason like E'%search\\_path%'
                     then format('alter function %s set search_path = pg_catalog, pg_temp;', func)
                     else 'Expose a function that calls it.' end;
  end if;
  insert into rowcast.exposed_function values (func::text) on conflict do nothing;
  if found then
    perform rowcast.reset('rowcast.exposed_function'::regclass);
  end if;
end
$$;
alter function rowcast.expose_function(regprocedure) owner to rowcast_owner;
revoke all on function rowcast.expose_function(regprocedure) from public;
comment on function rowcast.expose_function(regprocedure) is 'Lets a function be called through the API';

create or replace function rowcast.unexpose_function(func regprocedure) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  delete from rowcast.exposed_function e where e.signature = func::text;
  if found then
    perform rowcast.reset('rowcast.exposed_function'::regclass);
  end if;
end
$$;
alter function rowcast.unexpose_function(regprocedure) owner to rowcast_owner;
revoke all on function rowcast.unexpose_function(regprocedure) from public;
comment on function rowcast.unexpose_function(regprocedure) is 'Takes back what expose_function did';

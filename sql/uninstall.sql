-- Removes everything that Rowcast made in this database. The roles are the cluster's: they go when
-- no other database needs them any more.
begin;
-- What somebody has put into another schema under the name of one of PostgreSQL's functions is not run.
set local search_path = pg_catalog, pg_temp;
-- Dropping a trigger waits for readers, and everybody would queue behind it. A failed attempt frees all.
set local lock_timeout = '100ms';
do $$
declare
  trigger record;
begin
  if to_regnamespace('rowcast') is null then
    return;
  end if;
  for trigger in
    select t.tgname, t.tgrelid::regclass as rel from pg_trigger t
    where t.tgfoid in (select p.oid from pg_proc p where p.pronamespace = 'rowcast'::regnamespace) and t.tgparentid = 0
  loop
    execute format('drop trigger if exists %I on %s', trigger.tgname, trigger.rel);
  end loop;
  -- Before what they call. A login that may not drop them takes them along with the schema.
  begin
    drop event trigger if exists rowcast_ddl;
    drop event trigger if exists rowcast_drop;
    drop event trigger if exists rowcast_foreign;
  exception when insufficient_privilege then
    null;
  end;
  drop schema rowcast cascade;
end
$$;
do $$
declare
  unwanted text;
begin
  foreach unwanted in array array['rowcast_trigger', 'rowcast_owner'] loop
    begin
      execute format('drop role if exists %I', unwanted);
    exception when dependent_objects_still_exist or insufficient_privilege then
      raise notice 'role % stays: another database uses it, or this login may not drop it', unwanted;
    end;
  end loop;
end
$$;
commit;

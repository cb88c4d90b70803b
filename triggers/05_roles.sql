-- The two roles, where a dump was restored on a server that has none (sql/0001_schema.sql says what they are for).
-- Other installations may be making them at this moment: both ways of losing that race are fine.
do $$
declare
  wanted text;
begin
  foreach wanted in array array['rowcast_owner', 'rowcast_trigger'] loop
    if not exists (select from pg_roles where rolname = wanted) then
      begin
        execute format('create role %I nologin noinherit', wanted);
      exception when duplicate_object or unique_violation then
        null;
      end;
    end if;
    if not pg_has_role(current_user, wanted, 'usage') then
      begin
        execute format('grant %I to %I', wanted, current_user);
      exception when unique_violation then
        null;
      end;
    end if;
  end loop;
end
$$;

-- A dump that was restored without owners, without privileges, or before there were the roles: all of it belongs to
-- who restored it, triggers run with his rights, and API roles may not enter. Functions follow below.
do $$
declare
  theirs record;
begin
  -- First, since who is to own the rest must be allowed to create there.
  if exists (select from pg_namespace n where n.nspname = 'rowcast' and n.nspowner <> 'rowcast_owner'::regrole) then
    alter schema rowcast owner to rowcast_owner;
  end if;
  for theirs in
    select case c.relkind when 'S' then 'sequence' else 'table' end as kind, c.oid::regclass::text as name
    from pg_class c
    where c.relnamespace = 'rowcast'::regnamespace and c.relkind in ('r', 'S') and c.relowner <> 'rowcast_owner'::regrole
      -- That of an identity goes with its table.
      and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'i')
    union all
    select 'function', p.oid::regprocedure::text from pg_proc p
    where p.pronamespace = 'rowcast'::regnamespace and p.proname in ('may_subscribe', 'may_publish')
      and p.proowner <> 'rowcast_owner'::regrole
  loop
    execute format('alter %s %s owner to rowcast_owner', theirs.kind, theirs.name);
  end loop;
  if not has_schema_privilege('rowcast_trigger', 'rowcast', 'usage') then
    grant usage on schema rowcast to public, rowcast_trigger;
  end if;
  if not has_table_privilege('rowcast_trigger', 'rowcast.log', 'insert') then
    grant insert on rowcast.log to rowcast_trigger;
    grant usage on sequence rowcast.gap to rowcast_trigger;
  end if;
end
$$;

-- What the installer's default privileges (ALTER DEFAULT PRIVILEGES) have made of all this. They are meant for the
-- installer's own tables and functions: a role that may read every table would read the log, which holds the rows of
-- all watched tables whatever their policies say, the secret, and answers to others. What somebody has granted here
-- by hand stays.
do $$
declare
  given record;
begin
  -- The first time. Later it is the operator's to say that a function is not for everybody.
  if (select s.functions from rowcast.state s) = '' then
    grant execute on function
      rowcast.publish(text, json), rowcast.channel_allowed(text), rowcast.may_subscribe(text), rowcast.may_publish(text),
      rowcast.position(), rowcast.unfit(regprocedure), rowcast.begin_idempotent(text, text, text),
      rowcast.end_idempotent(text, text, integer, text, text, boolean)
    to public;
  end if;
  for given in
    select distinct o.kind, o.name, a.privilege_type as privilege,
           case when a.grantee = 0 then 'public' else a.grantee::regrole::text end as grantee
    from (
      select case relkind when 'S' then 'S' else 'r' end as type, case relkind when 'S' then 'sequence' else 'table' end as kind,
             oid::regclass::text as name, relacl as acl
      from pg_class where relnamespace = 'rowcast'::regnamespace and relkind in ('r', 'S')
      union all
      select 'f', 'function', oid::regprocedure::text, proacl from pg_proc where pronamespace = 'rowcast'::regnamespace
      union all
      select 'n', 'schema', oid::regnamespace::text, nspacl from pg_namespace where oid = 'rowcast'::regnamespace
    ) o
    join pg_default_acl d on d.defaclobjtype = o.type::"char" and d.defaclnamespace = 0
      and d.defaclrole = (select oid from pg_roles where rolname = current_user)
    cross join lateral aclexplode(o.acl) a
    where a.grantee not in ('rowcast_owner'::regrole, 'rowcast_trigger'::regrole, d.defaclrole)
      and exists (select from aclexplode(d.defaclacl) e where (e.grantee, e.privilege_type) = (a.grantee, a.privilege_type))
      -- The schema is for everybody, and so are the functions above.
      and not (a.grantee = 0 and o.type in ('f', 'n') and a.privilege_type in ('EXECUTE', 'USAGE'))
  loop
    execute format('revoke %s on %s %s from %s cascade', given.privilege, given.kind, given.name, given.grantee);
  end loop;
end
$$;

-- What owners of partitioned tables need, which may be one of these.
do $$
begin
  perform rowcast.let_partitions(t.tgrelid)
  from pg_trigger t join pg_class c on c.oid = t.tgrelid
  where t.tgname = '!rowcast' and t.tgparentid = 0 and c.relkind = 'p'
    and t.tgfoid in (select p.oid from pg_proc p where p.pronamespace = 'rowcast'::regnamespace);
end
$$;

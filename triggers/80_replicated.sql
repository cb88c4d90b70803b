-- Leaves out what logical replication brings of another server's Rowcast. A publication of all tables holds ours as
-- well, and each of them speaks of the server that it is on: by snapshots of another one the log was trimmed before
-- anybody had read it, and what both sides had been told (`rowcast.watch` of a table in a migration that runs on both) was
-- a duplicate key, at which the whole subscription stops.
--
-- REPLICA: it does not fire, and costs nothing, where nobody replicates. There it also sees what sessions write that have
-- this setting for other reasons, so it asks who is writing. Not on the log: what a worker brings of other tables is
-- logged by the worker.
create or replace function rowcast.skip_replicated() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if exists (select from pg_stat_subscription s where s.pid = pg_backend_pid()) then
    return null;
  end if;
  return coalesce(new, old);
end
$$;
alter function rowcast.skip_replicated() owner to rowcast_owner;
revoke all on function rowcast.skip_replicated() from public;
comment on function rowcast.skip_replicated() is 'Trigger: leaves out what another server''s Rowcast says of itself';

do $$
declare
  rel regclass;
begin
  for rel in
    select c.oid from pg_class c
    where c.relnamespace = 'rowcast'::regnamespace and c.relkind = 'r' and c.relpersistence = 'p'
      and c.oid <> 'rowcast.log'::regclass
      and not exists (select from pg_trigger t
                      where t.tgrelid = c.oid and t.tgname = 'skip_replicated' and t.tgenabled = 'R')
    order by c.oid
  loop
    execute format('create or replace trigger skip_replicated before insert or update or delete on %s '
                   'for each row execute function rowcast.skip_replicated()', rel);
    execute format('alter table %s enable replica trigger skip_replicated', rel);
  end loop;
end
$$;

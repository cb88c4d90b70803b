-- What views need that ask PostgreSQL as their watchers.

-- The snapshot of the calling transaction, and the life of the transaction counter, for roles that
-- may read nothing else of the log.
create or replace function rowcast.position(out snapshot pg_snapshot, out epoch uuid)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select pg_current_snapshot(), (select e.uuid from rowcast.epoch e)
$$;
alter function rowcast.position() owner to rowcast_owner;
comment on function rowcast.position() is 'Where a state is that is read now';

-- Says what the policies of a table read besides its own rows, where PostgreSQL cannot know because
-- it is in the body of a function: these tables, and nothing else. Without any: nothing at all.
create or replace function rowcast.depends(rel regclass, variadic on_rels regclass[] default '{}') returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  delete from rowcast.dependency d where d.rel = depends.rel;
  insert into rowcast.dependency (rel, on_rel, on_name)
  select depends.rel, o.on_rel, n.nspname || '.' || c.relname
  from unnest(on_rels || null::regclass) as o (on_rel)
  left join pg_class c on c.oid = o.on_rel
  left join pg_namespace n on n.oid = c.relnamespace
  on conflict do nothing;
  perform rowcast.reset(rel);
end
$$;
alter function rowcast.depends(regclass, regclass[]) owner to rowcast_owner;
revoke all on function rowcast.depends(regclass, regclass[]) from public;
comment on function rowcast.depends(regclass, regclass[]) is 'Says which tables the policies of a table read';

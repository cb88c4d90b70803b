-- The body of a function finds a table by its name. Where tables change theirs with each other, it reads another one than
-- rowcast.depends was told. History: run once, never edited after a release.

alter table rowcast.dependency add column on_name text;
comment on column rowcast.dependency.on_name is 'What the table was called when that was said';

-- The pairs have no key, so a publication for all tables would let nobody update or delete one.
alter table rowcast.dependency replica identity full;

update rowcast.dependency d set on_name = n.nspname || '.' || c.relname
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.oid = d.on_rel;

-- What views need that ask PostgreSQL as their watchers, and who may use a channel.

create table rowcast.secret (
  one boolean not null default true,
  key bytea not null default sha256(decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex')),
  constraint secret_pkey primary key (one),
  constraint secret_one_check check (one)
);
comment on table rowcast.secret is 'The secret under which views with row-level security write keys';
insert into rowcast.secret default values;

create table rowcast.dependency (
  rel oid not null,
  on_rel oid,
  constraint dependency_key unique nulls not distinct (rel, on_rel)
);
comment on table rowcast.dependency is 'What the policies of a table read, where PostgreSQL cannot know: written by rowcast.depends';
comment on column rowcast.dependency.on_rel is 'A table; null says that there is nothing else';

alter table rowcast.secret owner to rowcast_owner;
alter table rowcast.dependency owner to rowcast_owner;

-- History, so that they are never replaced: these two are the operator's to change.
create function rowcast.may_subscribe(channel text) returns boolean
language sql stable
as $$
  select true
$$;
alter function rowcast.may_subscribe(text) owner to rowcast_owner;
comment on function rowcast.may_subscribe(text) is 'Whether the current role may listen to a channel that is allowed; replace it to decide otherwise';

create function rowcast.may_publish(channel text) returns boolean
language sql stable
as $$
  select true
$$;
alter function rowcast.may_publish(text) owner to rowcast_owner;
comment on function rowcast.may_publish(text) is 'Whether the current role may publish on a channel that is allowed; replace it to decide otherwise';

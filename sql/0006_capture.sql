-- How the changes of a watched table are captured, and where the schema is. History: run once, never edited after
-- a release.

alter table rowcast.watched add column by_statement boolean not null default false;
comment on column rowcast.watched.by_statement is 'Whether a statement''s changes are to be captured together, where the table allows it';

-- A dump takes the schema to another server, where numbers mean other tables, and names the same.
alter table rowcast.state add column place text;
update rowcast.state set place = concat_ws(':', (select system_identifier from pg_control_system()),
  (select oid from pg_database where datname = current_database()), 'rowcast.log'::regclass::oid);
comment on column rowcast.state.place is 'Server, database and log that all of this belongs to';

alter table rowcast.dependency add column names regclass[];
update rowcast.dependency set names = array[rel::regclass, on_rel::regclass];
comment on column rowcast.dependency.names is 'The same two by name';

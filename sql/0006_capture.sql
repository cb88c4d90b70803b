-- How the changes of a watched table are captured, and where the schema is. History: run once, never edited after
-- a release.

alter table rowcast.watched add column by_statement boolean not null default false;
comment on column rowcast.watched.by_statement is 'Whether a statement''s changes are to be captured together, where the table allows it';

-- A dump takes the schema to another server, where numbers mean other tables and transaction ids come again. Here
-- is where the tables have their triggers and the log has no id that nobody had yet; else it stays unsaid.
alter table rowcast.state add column place text;
update rowcast.state set place = concat_ws(':', (select system_identifier from pg_control_system()),
  (select oid from pg_database where datname = current_database()), 'rowcast.log'::regclass::oid)
where not exists (select from rowcast.watched w
                  where not exists (select from pg_trigger t where t.tgrelid = w.rel and t.tgname = '!rowcast'))
  and not exists (select from rowcast.log l where l.xid >= pg_snapshot_xmax(pg_current_snapshot()));
comment on column rowcast.state.place is 'Server, database and log that all of this belongs to';

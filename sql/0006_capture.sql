-- How the changes of a watched table are captured, and where the schema is. History: run once, never edited after
-- a release.

alter table rowcast.watched add column by_statement boolean not null default false;
comment on column rowcast.watched.by_statement is 'Whether a statement''s changes are to be captured together, where the table allows it';

alter table rowcast.state add column place text;
comment on column rowcast.state.place is 'Server, database and log that all of this belongs to; a dump takes it elsewhere';

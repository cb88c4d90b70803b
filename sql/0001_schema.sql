-- The tables of Rowcast. History: run once, never edited after a release.
--
-- Two roles without login. rowcast_owner owns the schema. rowcast_trigger owns the SECURITY DEFINER
-- functions that run inside other people's transactions and may do nothing but add to the log:
-- row_to_json runs casts that a table's owner wrote, and they must not reach the log as its owner.
--
-- Roles belong to the whole cluster, so that another database's installation may be making them
-- at this moment: both ways of losing that race are fine.

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

create schema rowcast authorization rowcast_owner;
comment on schema rowcast is 'Rowcast: the log of committed changes and what surrounds it';
-- publish() is for everybody; each table and each other function stays closed.
grant usage on schema rowcast to public;

create table rowcast.log (
  -- Order inside a transaction, and between transactions that saw each other. CACHE 1 is part of
  -- the proof: with a larger cache one row's versions were logged in the wrong order (measured).
  id bigint generated always as identity (cache 1),
  xid xid8 not null default pg_current_xact_id(),
  at timestamptz not null default clock_timestamp(),
  rel oid,
  op "char" not null,
  channel text,
  depth integer not null default pg_trigger_depth(),
  old json,
  new json,
  truncated boolean not null default false,
  constraint log_pkey primary key (xid, id),
  constraint log_op_check check (op in ('I', 'U', 'D', 'T', 'P', 'R')),
  constraint log_channel_check check (channel is null or octet_length(channel) between 1 and 63)
);
comment on table rowcast.log is 'One row a change, in the transaction that made it';
comment on column rowcast.log.rel is 'The table; a partition when its root is watched; null for messages and for resets of everything';
comment on column rowcast.log.depth is 'pg_trigger_depth() where it was logged: above 1 inside other triggers; for people who look into the log';
comment on column rowcast.log.op is 'I insert, U update, D delete, T truncate, P published message, R reset: state unknown from here on';
comment on column rowcast.log.new is 'The row after; the payload of a message; the new file of a truncated table';
comment on column rowcast.log.truncated is 'old and new hold only the primary key: the row is too large or cannot be converted';

create sequence rowcast.gap as bigint cache 1;
comment on sequence rowcast.gap is 'Advanced by a trigger that could not even log a key; survives the rollback';

-- UNLOGGED on purpose: a crash or a promotion empties it, and that is how a relay learns that
-- transaction ids may have been given out twice.
create unlogged table rowcast.epoch (
  one boolean not null default true,
  uuid uuid not null default gen_random_uuid(),
  constraint epoch_pkey primary key (one),
  constraint epoch_one_check check (one)
);
comment on table rowcast.epoch is 'One row a life of the transaction counter; empty after a crash or a promotion';

create table rowcast.state (
  one boolean not null default true,
  version integer not null,
  functions text not null default '',
  horizon pg_snapshot,
  gap bigint not null default 0,
  constraint state_pkey primary key (one),
  constraint state_one_check check (one)
);
comment on table rowcast.state is 'One row: schema version, what was trimmed, which gaps were told';
comment on column rowcast.state.functions is 'Digest of the functions as they were last installed';
comment on column rowcast.state.horizon is 'Every transaction done in this snapshot may have been deleted from the log';
comment on column rowcast.state.gap is 'The value of rowcast.gap up to which a reset was written';
insert into rowcast.state (version) values (1);

create table rowcast.tick (
  at timestamptz not null default clock_timestamp(),
  snapshot pg_snapshot not null default pg_current_snapshot(),
  constraint tick_pkey primary key (at)
);
comment on table rowcast.tick is 'Snapshots with the time they were taken: the log is trimmed by them, and a new relay starts at one';

create table rowcast.watched (
  rel oid not null,
  shape text not null,
  files json not null,
  constraint watched_pkey primary key (rel)
);
comment on table rowcast.watched is 'How each watched table looked when it was last checked';
comment on column rowcast.watched.shape is 'Digest of columns, key, triggers, partitions, grants and policies';
comment on column rowcast.watched.files is 'relfilenode by oid: it changes when a table is rewritten without triggers';

create table rowcast.exposed (
  rel regclass not null,
  constraint exposed_pkey primary key (rel)
);
comment on table rowcast.exposed is 'Tables and views that may be read and written through the API without being watched';

create table rowcast.channel (
  pattern text not null,
  constraint channel_pkey primary key (pattern)
);
comment on table rowcast.channel is 'Channels that may be used; * stands for any text';

alter table rowcast.log owner to rowcast_owner;
alter sequence rowcast.gap owner to rowcast_owner;
alter table rowcast.epoch owner to rowcast_owner;
alter table rowcast.state owner to rowcast_owner;
alter table rowcast.tick owner to rowcast_owner;
alter table rowcast.watched owner to rowcast_owner;
alter table rowcast.exposed owner to rowcast_owner;
alter table rowcast.channel owner to rowcast_owner;

grant usage on schema rowcast to rowcast_trigger;
grant insert on rowcast.log to rowcast_trigger;
grant usage on sequence rowcast.gap to rowcast_trigger;

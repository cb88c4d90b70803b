begin;
set local client_min_messages = warning;
do $rowcast$
declare
  done integer := 0;
begin
  if to_regclass('rowcast.state') is not null then
    select version into done from rowcast.state;
  end if;
  if done <= 0 then
    execute $history$
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

$history$;
  end if;
end
$rowcast$;
do $rowcast$
declare
  done integer := 0;
begin
  if to_regclass('rowcast.state') is not null then
    select version into done from rowcast.state;
  end if;
  if done <= 1 then
    execute $history$
-- What the API may reach besides watched tables. History: run once, never edited after a release.

-- Functions. By signature and not by oid or regprocedure: neither survives pg_upgrade, which
-- refuses to run where a column is of that type. A function that is made anew under the same
-- signature stays exposed, so what makes one unfit is asked again whenever the catalogue is read.
create table rowcast.exposed_function (
  signature text not null,
  constraint exposed_function_pkey primary key (signature)
);
comment on table rowcast.exposed_function is 'Functions that may be called through the API; no others can be';
comment on column rowcast.exposed_function.signature is 'As regprocedure writes it when no schema but pg_catalog is in the search path';
alter table rowcast.exposed_function owner to rowcast_owner;

$history$;
  end if;
end
$rowcast$;
do $rowcast$
declare
  done integer := 0;
begin
  if to_regclass('rowcast.state') is not null then
    select version into done from rowcast.state;
  end if;
  if done <= 2 then
    execute $history$
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

$history$;
  end if;
end
$rowcast$;
do $rowcast$
declare
  done integer := 0;
begin
  if to_regclass('rowcast.state') is not null then
    select version into done from rowcast.state;
  end if;
  if done <= 3 then
    execute $history$
-- Answers to requests that may be sent again. History: run once, never edited after a release.

create table rowcast.idempotency (
  caller bytea not null,
  key text not null,
  fingerprint text not null,
  status integer,
  headers text not null default '[]',
  body text not null default '',
  omitted boolean not null default false,
  at timestamptz not null default clock_timestamp(),
  constraint idempotency_pkey primary key (caller, key),
  constraint idempotency_key_check check (octet_length(key) between 1 and 255)
);
create index idempotency_at on rowcast.idempotency (at);
comment on table rowcast.idempotency is 'One row a request that came with an Idempotency-Key and was committed; kept as long as the log';
comment on column rowcast.idempotency.caller is 'Hash of login, role and claims: nobody meets the keys of somebody else';
comment on column rowcast.idempotency.fingerprint is 'Hash of the request: the same key with another request is a mistake';
comment on column rowcast.idempotency.status is 'Null only while the transaction is open that writes the row';
comment on column rowcast.idempotency.omitted is 'The body was too large to be kept';
alter table rowcast.idempotency owner to rowcast_owner;

$history$;
  end if;
end
$rowcast$;
grant create on schema rowcast to rowcast_trigger;

-- Rings the doorbell: every relay looks at the log once this transaction is committed.
-- Its own function, so that who rings and when can change without touching the capture.
-- The payload is empty: equal notifications of one transaction are sent once, and the log is the truth.
create or replace function rowcast.ring() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_notify('rowcast', '');
end
$$;
alter function rowcast.ring() owner to rowcast_owner;
revoke all on function rowcast.ring() from public;
grant execute on function rowcast.ring() to rowcast_trigger;
comment on function rowcast.ring() is 'Tells every relay to look at the log';

-- Runs after each changed row of a watched table. Promises: the writer's statement does not fail
-- because of it, and one log row stands for the change, or rowcast.gap tells that one is missing.
--
-- SECURITY DEFINER as rowcast_trigger: writers need no rights on rowcast. The pins make the image
-- independent of the writer's session. json, not jsonb: to_jsonb fails on values that json columns
-- may hold (measured: \u0000 and 1e999999).
--
-- A row is measured before it is converted. pg_column_size fetches what lies out of line but does
-- not decompress it, so the text is measured again afterwards.
--
-- The argument 'guarded' is set by rowcast.watch on tables with types whose conversion runs code
-- that is not PostgreSQL's own; the exception block costs each row a transaction id.
create or replace function rowcast.capture() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO'
set intervalstyle = 'iso_8601'
set extra_float_digits = 1
set bytea_output = 'hex'
set lc_monetary = 'C'
as $$
declare
  cap constant integer := 262144;
  whole boolean := true;
  old_image json;
  new_image json;
  keys text;
begin
  if tg_nargs = 0 then
    whole := coalesce(pg_column_size(old), 0) <= cap and coalesce(pg_column_size(new), 0) <= cap;
    if whole then
      if tg_op <> 'INSERT' then
        old_image := row_to_json(old);
      end if;
      if tg_op <> 'DELETE' then
        new_image := row_to_json(new);
      end if;
    end if;
  else
    begin
      whole := coalesce(pg_column_size(old), 0) <= cap and coalesce(pg_column_size(new), 0) <= cap;
      if whole then
        if tg_op <> 'INSERT' then
          old_image := row_to_json(old);
        end if;
        if tg_op <> 'DELETE' then
          new_image := row_to_json(new);
        end if;
      end if;
    exception when others then
      whole := false;
    end;
  end if;
  if whole and coalesce(pg_column_size(old_image), 0) <= cap
           and coalesce(pg_column_size(new_image), 0) <= cap then
    insert into rowcast.log (rel, op, old, new)
    values (tg_relid, substr(tg_op, 1, 1)::"char", old_image, new_image);
    perform rowcast.ring();
    return null;
  end if;

  -- The key alone. Its names come from the catalogue, so a renamed column cannot break a writer.
  begin
    old_image := null;
    new_image := null;
    select string_agg(format('%L, ($1).%I', a.attname, a.attname), ', ') into strict keys
    from pg_index i
    join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any (i.indkey)
    where i.indrelid = tg_relid and i.indisprimary;
    if tg_op <> 'INSERT' then
      execute 'select json_build_object(' || keys || ')' into strict old_image using old;
    end if;
    if tg_op <> 'DELETE' then
      execute 'select json_build_object(' || keys || ')' into strict new_image using new;
    end if;
    insert into rowcast.log (rel, op, old, new, truncated)
    values (tg_relid, substr(tg_op, 1, 1)::"char", old_image, new_image, true);
    perform rowcast.ring();
  exception when others then
    perform nextval('rowcast.gap');
    perform rowcast.ring();
  end;
  return null;
end
$$;
alter function rowcast.capture() owner to rowcast_trigger;
revoke all on function rowcast.capture() from public;
grant execute on function rowcast.capture() to rowcast_owner;
comment on function rowcast.capture() is 'Trigger: logs one changed row';

-- Runs after a TRUNCATE of a watched table or of one of its partitions. The new file is logged too:
-- that is how the drift check tells a truncation, which was captured, from a rewrite, which was not.
create or replace function rowcast.capture_truncate() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into rowcast.log (rel, op, new)
  values (tg_relid, 'T', to_json(pg_relation_filenode(tg_relid)));
  perform rowcast.ring();
  return null;
end
$$;
alter function rowcast.capture_truncate() owner to rowcast_trigger;
revoke all on function rowcast.capture_truncate() from public;
grant execute on function rowcast.capture_truncate() to rowcast_owner;
comment on function rowcast.capture_truncate() is 'Trigger: logs that a table was truncated';

-- Messages and resets: log entries that no row made.

-- Whether a channel may be used. * in a pattern stands for any text; every other character is itself.
create or replace function rowcast.channel_allowed(name text) returns boolean
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select octet_length(name) between 1 and 63
     and name <> 'rowcast'
     and exists (
       select from rowcast.channel c
       where name ~ ('^' || replace(regexp_replace(c.pattern, '([][\\.^$+?(){}|-])', '\\\1', 'g'), '*', '.*') || '$')
     )
$$;
alter function rowcast.channel_allowed(text) owner to rowcast_owner;
comment on function rowcast.channel_allowed(text) is 'Whether a channel may be published to and subscribed to';

-- Writes a durable message. It is delivered when the calling transaction commits, and never otherwise.
-- Returns the transaction's id as text, which arrives on the screens as headers.txid.
create or replace function rowcast.publish(channel text, payload json) returns text
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if channel is null or payload is null then
    raise exception 'a message needs a channel and a payload'
      using errcode = 'null_value_not_allowed';
  end if;
  if not rowcast.channel_allowed(channel) then
    raise exception 'channel "%" is not allowed', channel
      using errcode = 'insufficient_privilege',
            hint = format('select rowcast.allow_channel(%L);', channel);
  end if;
  if octet_length(payload::text) > 262144 then
    raise exception 'a message of % bytes is too large', octet_length(payload::text)
      using errcode = 'program_limit_exceeded',
            hint = 'The limit is 262144 bytes; publish where the data can be fetched.';
  end if;
  insert into rowcast.log (op, channel, new) values ('P', publish.channel, payload);
  perform rowcast.ring();
  return pg_current_xact_id()::text;
end
$$;
-- The trigger's role may only insert; reading the patterns is the business of channel_allowed.
alter function rowcast.publish(text, json) owner to rowcast_trigger;
grant execute on function rowcast.channel_allowed(text) to rowcast_trigger;
comment on function rowcast.publish(text, json) is 'Sends a durable message to everybody on a channel';

create or replace function rowcast.allow_channel(pattern text) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  insert into rowcast.channel values (pattern) on conflict do nothing
$$;
alter function rowcast.allow_channel(text) owner to rowcast_owner;
revoke all on function rowcast.allow_channel(text) from public;
comment on function rowcast.allow_channel(text) is 'Allows a channel; * stands for any text';

create or replace function rowcast.forbid_channel(pattern text) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  delete from rowcast.channel c where c.pattern = forbid_channel.pattern
$$;
alter function rowcast.forbid_channel(text) owner to rowcast_owner;
revoke all on function rowcast.forbid_channel(text) from public;
comment on function rowcast.forbid_channel(text) is 'Takes back what allow_channel allowed';

-- Says that the state of a table (null: of all) is unknown from here on. An entry of the log like
-- any other, so that it also reaches those who are away now.
create or replace function rowcast.reset(rel oid default null) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into rowcast.log (rel, op) values (reset.rel, 'R');
  perform rowcast.ring();
end
$$;
alter function rowcast.reset(oid) owner to rowcast_trigger;
revoke all on function rowcast.reset(oid) from public;
grant execute on function rowcast.reset(oid) to rowcast_owner;
comment on function rowcast.reset(oid) is 'Makes every screen of a table (or all screens) read it anew';

-- Which tables are watched, and whether they still are.

-- A table and all partitions below it. Not pg_partition_tree: that locks each of them until the end
-- of the transaction, and a lock of ours must never be one that a writer waits for.
create or replace function rowcast.tree(rel oid) returns setof oid
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with recursive tree (relid) as (
    select rel
    union
    select i.inhrelid from tree t
    join pg_class c on c.oid = t.relid and c.relkind = 'p'
    join pg_inherits i on i.inhparent = t.relid
  )
  select relid from tree
$$;
alter function rowcast.tree(oid) owner to rowcast_owner;
revoke all on function rowcast.tree(oid) from public;
comment on function rowcast.tree(oid) is 'A table and its partitions, without locking them';

-- The trigger argument that a table needs: 'guarded' when converting one of its columns runs code
-- that is not PostgreSQL's own (types of users and extensions, casts to json), or of types whose few
-- stored bytes may become more text than fits a value (1e131071 in jsonb or numeric[]), else null.
create or replace function rowcast.guard(rel oid) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with recursive used (type) as (
    select a.atttypid from pg_attribute a
    where a.attrelid = rel and a.attnum > 0 and not a.attisdropped
    union
    select inner_type
    from used u
    join pg_type t on t.oid = u.type
    cross join lateral (values (nullif(t.typbasetype, 0)), (nullif(t.typelem, 0))) as v (inner_type)
    where inner_type is not null
  )
  select 'guarded'
  where exists (
    select from used u join pg_type t on t.oid = u.type
    where t.oid in ('jsonb'::regtype, 'numeric[]'::regtype, 'nummultirange'::regtype)
       or t.typnamespace <> 'pg_catalog'::regnamespace
      and not (t.typtype = 'd')
      and not (t.typtype = 'e' and not exists (
        select from pg_cast c where c.castsource = t.oid and c.casttarget = 'json'::regtype))
      -- an array is judged by its element
      and not (t.typcategory = 'A' and t.typelem <> 0)
  )
$$;
alter function rowcast.guard(oid) owner to rowcast_owner;
revoke all on function rowcast.guard(oid) from public;
comment on function rowcast.guard(oid) is 'Whether the capture trigger of a table needs its exception block';

-- Whether the triggers of a watched table are as they must be: the row trigger on the root with the
-- right argument and on every partition, the truncate trigger on all of them, everything ALWAYS.
create or replace function rowcast.captured(rel oid) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select not exists (
    select
    from rowcast.tree(rel) as r (relid)
    cross join (values ('!rowcast', 'rowcast.capture()'), ('!rowcast_truncate', 'rowcast.capture_truncate()'))
      as wanted (name, function)
    where not exists (
      select from pg_trigger t
      where t.tgrelid = r.relid and t.tgname = wanted.name and t.tgenabled = 'A'
        and t.tgfoid = to_regprocedure(wanted.function)
        and (wanted.name <> '!rowcast' or r.relid <> rel
             or t.tgnargs = (case when rowcast.guard(rel) is null then 0 else 1 end)))
  )
$$;
alter function rowcast.captured(oid) owner to rowcast_owner;
revoke all on function rowcast.captured(oid) from public;
comment on function rowcast.captured(oid) is 'Whether every change of a table reaches the log';

-- How a table looks: everything whose change makes old images or old permissions worthless.
create or replace function rowcast.shape(rel oid) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select md5(concat_ws(E'\n',
    (select c.relname || '.' || c.relnamespace || ' ' || c.relowner || ' ' || c.relrowsecurity::text
            || c.relforcerowsecurity::text || ' ' || coalesce(c.relacl::text, '')
     from pg_class c where c.oid = rel),
    (select string_agg(a.attnum || ' ' || a.attname || ' ' || a.atttypid || ' ' || a.atttypmod
                       || ' ' || a.attgenerated::text || ' ' || coalesce(a.attacl::text, ''), ',' order by a.attnum)
     from pg_attribute a where a.attrelid = rel and a.attnum > 0 and not a.attisdropped),
    (select i.indkey::text from pg_index i where i.indrelid = rel and i.indisprimary),
    (select string_agg(p.polname || ' ' || p.polcmd::text || ' ' || p.polpermissive::text || ' ' || p.polroles::text
                       || ' ' || coalesce(p.polqual::text, '') || ' ' || coalesce(p.polwithcheck::text, ''),
                       ',' order by p.polname)
     from pg_policy p where p.polrelid = rel),
    (select string_agg(r.relid::text, ',' order by r.relid) from rowcast.tree(rel) as r (relid)),
    (select string_agg(i.inhrelid::text, ',' order by i.inhrelid) from pg_inherits i where i.inhparent = rel),
    (select string_agg(m.roleid || ' ' || m.member, ',' order by m.roleid, m.member)
     from pg_auth_members m),
    (select string_agg(o.oid::text, ',' order by o.oid) from pg_roles o where o.rolsuper or o.rolbypassrls),
    (select string_agg(o.oid::text, ',' order by o.oid) from pg_roles o where not o.rolinherit),
    (select coalesce(n.nspacl::text, '') from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = rel),
    -- a policy is also what the functions say that it calls
    (select string_agg(distinct md5(concat_ws(' ', f.prosrc, f.prosqlbody::text, f.proconfig::text, f.proacl::text,
                                               f.provolatile, f.proowner, f.prosecdef)), ',')
     from pg_policy p
     join pg_depend d on d.classid = 'pg_policy'::regclass and d.objid = p.oid and d.refclassid = 'pg_proc'::regclass
     join pg_proc f on f.oid = d.refobjid
     where p.polrelid = rel)
  ))
$$;
alter function rowcast.shape(oid) owner to rowcast_owner;
revoke all on function rowcast.shape(oid) from public;
comment on function rowcast.shape(oid) is 'Digest of what images and permissions of a table depend on';

create or replace function rowcast.files(rel oid) returns json
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(json_object_agg(r.relid::text, pg_relation_filenode(r.relid) order by r.relid), '{}')
  from rowcast.tree(rel) as r (relid)
  where pg_relation_filenode(r.relid) is not null
$$;
alter function rowcast.files(oid) owner to rowcast_owner;
revoke all on function rowcast.files(oid) from public;
comment on function rowcast.files(oid) is 'relfilenode of a table and its partitions';

-- Puts the triggers on a table where they are not as they must be, and leaves those alone that are.
-- Runs as its caller, because ENABLE ALWAYS needs the table's owner. CREATE TRIGGER waits for writers,
-- and writers would queue behind it: so it waits 50 ms at a time, and gives its locks back between.
create or replace function rowcast.install(rel oid, tries integer) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set client_min_messages = warning
as $$
declare
  tried integer := 0;
  leaf regclass;
  wanted record;
  before text := current_setting('lock_timeout');
begin
  perform set_config('lock_timeout', '50ms', true);
  loop
    begin
      if not exists (
        select from pg_trigger t
        where t.tgrelid = rel and t.tgname = '!rowcast' and t.tgfoid = 'rowcast.capture()'::regprocedure
          and t.tgnargs = (case when rowcast.guard(rel) is null then 0 else 1 end)
      ) then
        execute format('drop trigger if exists "!rowcast" on %s', rel::regclass);
        execute format(
          'create trigger "!rowcast" after insert or update or delete on %s for each row execute function rowcast.capture(%s)',
          rel::regclass, rowcast.guard(rel));
      end if;
      for leaf in select relid from rowcast.tree(rel) as r (relid) loop
        if not exists (
          select from pg_trigger t
          where t.tgrelid = leaf and t.tgname = '!rowcast_truncate'
            and t.tgfoid = 'rowcast.capture_truncate()'::regprocedure
        ) then
          execute format('drop trigger if exists "!rowcast_truncate" on %s', leaf);
          execute format(
            'create trigger "!rowcast_truncate" after truncate on %s for each statement execute function rowcast.capture_truncate()', leaf);
        end if;
        for wanted in
          select t.tgname from pg_trigger t
          where t.tgrelid = leaf and t.tgname in ('!rowcast', '!rowcast_truncate') and t.tgenabled <> 'A'
        loop
          execute format('alter table %s enable always trigger %I', leaf, wanted.tgname);
        end loop;
      end loop;
      exit;
    exception when lock_not_available then
      tried := tried + 1;
      if tried >= tries then
        perform set_config('lock_timeout', before, true);
        raise exception 'table % is locked by somebody else', rel::regclass
          using errcode = 'lock_not_available',
                hint = 'Look into pg_locks and try again.';
      end if;
      perform pg_sleep(0.02 + random() * 0.03);
    end;
  end loop;
  perform set_config('lock_timeout', before, true);
end
$$;
alter function rowcast.install(oid, integer) owner to rowcast_owner;
revoke all on function rowcast.install(oid, integer) from public;
comment on function rowcast.install(oid, integer) is 'Puts the capture triggers on a table';

create or replace function rowcast.watch(rel regclass) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  class pg_class;
begin
  select * into strict class from pg_class where oid = rel;
  if class.relkind not in ('r', 'p') or class.relpersistence = 't' then
    raise exception '% cannot be watched: only tables can', rel
      using errcode = 'wrong_object_type',
            hint = 'Watch the tables behind a view; temporary and foreign tables cannot be watched.';
  end if;
  if class.relnamespace in ('pg_catalog'::regnamespace, 'information_schema'::regnamespace, 'rowcast'::regnamespace) then
    raise exception '% cannot be watched: it belongs to the system', rel
      using errcode = 'wrong_object_type';
  end if;
  if class.relispartition then
    raise exception '% is a partition', rel
      using errcode = 'wrong_object_type',
            hint = format('select rowcast.watch(%L);', pg_partition_root(rel)::text);
  end if;
  if class.relkind = 'r' and exists (select from pg_inherits where inhparent = rel) then
    raise exception '% has children by inheritance: it would show their rows and not follow them', rel
      using errcode = 'wrong_object_type',
            hint = 'Watch the children, or make it a partitioned table.';
  end if;
  if not exists (select from pg_index where indrelid = rel and indisprimary) then
    raise exception '% has no primary key, so its rows cannot be told apart', rel
      using errcode = 'object_not_in_prerequisite_state',
            hint = format('alter table %s add primary key (...);', rel);
  end if;
  if rowcast.captured(rel) and exists (select from rowcast.watched w where w.rel = watch.rel) then
    return;
  end if;
  perform rowcast.install(rel, 100);
  insert into rowcast.watched (rel, shape, files)
  values (rel, rowcast.shape(rel), rowcast.files(rel))
  on conflict on constraint watched_pkey do update set shape = excluded.shape, files = excluded.files;
  perform rowcast.reset(rel);
end
$$;
alter function rowcast.watch(regclass) owner to rowcast_owner;
revoke all on function rowcast.watch(regclass) from public;
comment on function rowcast.watch(regclass) is 'Makes a table live: its changes reach every screen. Doing it twice changes nothing';

create or replace function rowcast.unwatch(rel regclass) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set client_min_messages = warning
as $$
declare
  tried integer := 0;
  leaf regclass;
  before text := current_setting('lock_timeout');
begin
  -- Dropping a trigger waits for readers too, and everybody would queue behind it.
  perform set_config('lock_timeout', '50ms', true);
  loop
    begin
      for leaf in select relid from rowcast.tree(rel) as r (relid) loop
        execute format('drop trigger if exists "!rowcast_truncate" on %s', leaf);
      end loop;
      execute format('drop trigger if exists "!rowcast" on %s', rel);
      exit;
    exception when lock_not_available then
      tried := tried + 1;
      if tried >= 100 then
        raise exception 'table % is locked by somebody else', rel
          using errcode = 'lock_not_available',
                hint = 'Look into pg_locks and try again.';
      end if;
      perform pg_sleep(0.02 + random() * 0.03);
    end;
  end loop;
  perform set_config('lock_timeout', before, true);
  delete from rowcast.watched w where w.rel = unwatch.rel;
  if found then
    perform rowcast.reset(rel);
  end if;
end
$$;
alter function rowcast.unwatch(regclass) owner to rowcast_owner;
revoke all on function rowcast.unwatch(regclass) from public;
comment on function rowcast.unwatch(regclass) is 'Takes back what watch did';

-- Looks whether watched tables changed in ways that no trigger saw, repairs what it can and writes a
-- reset for each such table. One relay at a time; returns one line a finding, for the relay's log.
create or replace function rowcast.check_drift() returns setof text
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '50ms'
as $$
declare
  known record;
  now_shape text;
  now_files json;
  rewritten boolean;
  repaired boolean := false;
begin
  if not pg_try_advisory_xact_lock(7094114, 1) then
    return;
  end if;
  for known in select w.* from rowcast.watched w order by w.rel loop
    if not exists (select from pg_class where oid = known.rel) then
      delete from rowcast.watched w where w.rel = known.rel;
      perform rowcast.reset(known.rel);
      return next format('table with oid %s was dropped', known.rel);
      continue;
    end if;
    now_shape := rowcast.shape(known.rel);
    now_files := rowcast.files(known.rel);
    if not rowcast.captured(known.rel) then
      begin
        perform rowcast.install(known.rel, 1);
        repaired := true;
        return next format('triggers of %s were missing or disabled and are back', known.rel::regclass);
      exception when others then
        return next format('triggers of %s are missing or disabled: %s', known.rel::regclass, sqlerrm);
      end;
      -- Changes that nobody captured may have been made meanwhile, also while we cannot repair.
      perform rowcast.reset(known.rel);
      now_shape := rowcast.shape(known.rel);
    elsif now_shape <> known.shape then
      perform rowcast.reset(known.rel);
      return next format('definition or permissions of %s changed', known.rel::regclass);
    elsif now_files::text <> known.files::text then
      select exists (
        select from json_each_text(now_files) f
        where f.value is distinct from known.files ->> f.key
          and not exists (select from rowcast.log l
                          where l.rel = f.key::oid and l.op = 'T' and l.new #>> '{}' = f.value)
      ) into rewritten;
      if rewritten then
        perform rowcast.reset(known.rel);
        return next format('%s was rewritten', known.rel::regclass);
      end if;
    else
      continue;
    end if;
    update rowcast.watched w set shape = now_shape, files = now_files where w.rel = known.rel;
    -- A repair's locks last until the transaction ends: one at a time, and the others next time.
    exit when repaired;
  end loop;
end
$$;
alter function rowcast.check_drift() owner to rowcast_owner;
revoke all on function rowcast.check_drift() from public;
comment on function rowcast.check_drift() is 'Finds and repairs watched tables that changed behind the triggers'' back';

-- What the API may use without its being live: tables, views and functions.
--
-- Each change writes a reset for the table that lists it: an entry of the log like any other, so that
-- every relay reads the catalogue anew, also where the bell is off. No screen shows that table.

create or replace function rowcast.expose(rel regclass) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into rowcast.exposed values (expose.rel) on conflict do nothing;
  if found then
    perform rowcast.reset('rowcast.exposed'::regclass);
  end if;
end
$$;
alter function rowcast.expose(regclass) owner to rowcast_owner;
revoke all on function rowcast.expose(regclass) from public;
comment on function rowcast.expose(regclass) is 'Lets a table or view be used through the API without being live';

create or replace function rowcast.unexpose(rel regclass) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  delete from rowcast.exposed e where e.rel = unexpose.rel;
  if found then
    perform rowcast.reset('rowcast.exposed'::regclass);
  end if;
end
$$;
alter function rowcast.unexpose(regclass) owner to rowcast_owner;
revoke all on function rowcast.unexpose(regclass) from public;
comment on function rowcast.unexpose(regclass) is 'Takes back what expose did';

-- Why a function must not be called through the API, or null. The relay leaves such functions out of
-- its catalogue as well: their owner and settings may change after they were exposed.
create or replace function rowcast.unfit(func regprocedure) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select case
    when p.prokind <> 'f' then 'only plain functions can be called'
    when p.prorettype in ('trigger'::regtype, 'event_trigger'::regtype) then 'it is a trigger function'
    when exists (select from unnest(p.proargtypes::oid[]) as a (type) join pg_type t on t.oid = a.type
                 where t.typtype = 'p')
      then 'one of its arguments has a pseudo-type, which no value of a request has'
    when p.prosecdef and o.rolsuper
         and not exists (select from unnest(p.proconfig) as c (setting) where c.setting like 'search\_path=%')
      then 'it is SECURITY DEFINER, its owner is a superuser, and its search_path is not fixed'
  end
  from pg_proc p join pg_roles o on o.oid = p.proowner
  where p.oid = func
$$;
alter function rowcast.unfit(regprocedure) owner to rowcast_owner;
comment on function rowcast.unfit(regprocedure) is 'Why a function must not be called through the API; null when it may';

create or replace function rowcast.expose_function(func regprocedure) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  reason text := rowcast.unfit(func);
begin
  if reason is not null then
    raise exception '% cannot be exposed: %', func, reason
      using errcode = 'wrong_object_type',
            hint = case when reason like '%search\_path%'
                     then format('alter function %s set search_path = pg_catalog, pg_temp;', func)
                     else 'Expose a function that calls it.' end;
  end if;
  insert into rowcast.exposed_function values (func::text) on conflict do nothing;
  if found then
    perform rowcast.reset('rowcast.exposed_function'::regclass);
  end if;
end
$$;
alter function rowcast.expose_function(regprocedure) owner to rowcast_owner;
revoke all on function rowcast.expose_function(regprocedure) from public;
comment on function rowcast.expose_function(regprocedure) is 'Lets a function be called through the API';

create or replace function rowcast.unexpose_function(func regprocedure) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  delete from rowcast.exposed_function e where e.signature = func::text;
  if found then
    perform rowcast.reset('rowcast.exposed_function'::regclass);
  end if;
end
$$;
alter function rowcast.unexpose_function(regprocedure) owner to rowcast_owner;
revoke all on function rowcast.unexpose_function(regprocedure) from public;
comment on function rowcast.unexpose_function(regprocedure) is 'Takes back what expose_function did';

-- Keeping the log: its life, its horizon, its gaps.

-- The uuid of this life of the transaction counter, made if there is none. A crash gives used
-- transaction ids out again, so everything that was logged under the old ones goes: in the same
-- transaction, and with DELETE, because TRUNCATE would wait for open writers.
create or replace function rowcast.begin_epoch() returns uuid
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  found_uuid uuid;
begin
  select uuid into found_uuid from rowcast.epoch;
  if found then
    return found_uuid;
  end if;
  lock table rowcast.epoch in exclusive mode;
  select uuid into found_uuid from rowcast.epoch;
  if not found then
    delete from rowcast.log;
    delete from rowcast.tick;
    update rowcast.state set horizon = null;
    insert into rowcast.epoch default values returning uuid into found_uuid;
  end if;
  return found_uuid;
end
$$;
alter function rowcast.begin_epoch() owner to rowcast_owner;
revoke all on function rowcast.begin_epoch() from public;
comment on function rowcast.begin_epoch() is 'The identity of the transaction counter since the last crash';

-- Notes a snapshot, and deletes what was done in the snapshot taken one retention ago. By snapshot
-- and never by clock: the rows of a long transaction are old when they become visible. At most
-- chunk rows a call; returns how many went. One relay at a time.
create or replace function rowcast.trim(retention interval, chunk integer) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  target pg_snapshot;
  gone bigint := 0;
begin
  if not pg_try_advisory_xact_lock(7094114, 2) then
    return 0;
  end if;
  insert into rowcast.tick default values on conflict do nothing;
  -- No proof hangs on these, so the clock will do.
  delete from rowcast.idempotency i
  where (i.caller, i.key) in (
    select d.caller, d.key from rowcast.idempotency d
    where d.at < clock_timestamp() - retention
    limit chunk);
  select t.snapshot into target from rowcast.tick t
  where t.at <= clock_timestamp() - retention order by t.at desc limit 1;
  if target is null then
    return 0;
  end if;
  delete from rowcast.log l
  where (l.xid, l.id) in (
    select d.xid, d.id from rowcast.log d
    where d.xid < pg_snapshot_xmax(target) and pg_visible_in_snapshot(d.xid, target)
    limit chunk);
  get diagnostics gone = row_count;
  -- The horizon tells what may be missing, so it moves with the first row that goes.
  update rowcast.state set horizon = target
  where gone > 0 and (horizon is null or pg_snapshot_xmax(horizon) <= pg_snapshot_xmax(target));
  if gone < chunk then
    delete from rowcast.tick t where t.at < clock_timestamp() - retention
      and t.at < (select max(o.at) from rowcast.tick o where o.at <= clock_timestamp() - retention);
  end if;
  return gone;
end
$$;
alter function rowcast.trim(interval, integer) owner to rowcast_owner;
revoke all on function rowcast.trim(interval, integer) from public;
comment on function rowcast.trim(interval, integer) is 'Deletes what every screen has had a retention long to read';

-- Tells a gap: call it once no transaction is open any more that may have advanced rowcast.gap to
-- this value. Only the first caller writes the reset.
create or replace function rowcast.settle_gap(value bigint) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  update rowcast.state set gap = value where gap < value;
  if found then
    perform rowcast.reset();
  end if;
  return found;
end
$$;
alter function rowcast.settle_gap(bigint) owner to rowcast_owner;
revoke all on function rowcast.settle_gap(bigint) from public;
comment on function rowcast.settle_gap(bigint) is 'Writes the reset that a gap calls for';

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
  insert into rowcast.dependency (rel, on_rel)
  select depends.rel, o.on_rel from unnest(on_rels || null::regclass) as o (on_rel)
  on conflict do nothing;
  perform rowcast.reset(rel);
end
$$;
alter function rowcast.depends(regclass, regclass[]) owner to rowcast_owner;
revoke all on function rowcast.depends(regclass, regclass[]) from public;
comment on function rowcast.depends(regclass, regclass[]) is 'Says which tables the policies of a table read';

-- A request that is sent again writes once. Called by API roles, inside the transaction of the write.

-- Whose keys are meant. The login and the role are PostgreSQL's own word, which nobody can claim who
-- has not signed in so; only the rest is the relay's.
create or replace function rowcast.idempotent_caller(identity text) returns bytea
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select sha256(convert_to(session_user || E'\n' || current_setting('role') || E'\n' || identity, 'UTF8'))
$$;
alter function rowcast.idempotent_caller(text) owner to rowcast_owner;
revoke all on function rowcast.idempotent_caller(text) from public;
comment on function rowcast.idempotent_caller(text) is 'Whose idempotency keys a transaction may meet';

-- Claims a key, or gives the answer that was given under it. While another transaction has claimed it
-- and not ended, the unique index makes us wait.
create or replace function rowcast.begin_idempotent(identity text, name text, request text,
  out known boolean, out same boolean, out status integer, out headers text, out body text, out omitted boolean)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  whose bytea := rowcast.idempotent_caller(identity);
begin
  loop
    insert into rowcast.idempotency as i (caller, key, fingerprint) values (whose, name, request)
    on conflict do nothing;
    known := not found;
    exit when not known;
    select i.fingerprint = request, i.status, i.headers, i.body, i.omitted
    into same, status, headers, body, omitted
    from rowcast.idempotency i where i.caller = whose and i.key = name;
    -- It may have been trimmed in between.
    exit when found;
  end loop;
end
$$;
alter function rowcast.begin_idempotent(text, text, text) owner to rowcast_owner;
comment on function rowcast.begin_idempotent(text, text, text) is 'Claims an idempotency key for this transaction, or tells the answer that was given under it';

create or replace function rowcast.end_idempotent(identity text, name text,
  status integer, headers text, body text, omitted boolean) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  update rowcast.idempotency i
  set status = end_idempotent.status, headers = end_idempotent.headers,
      body = end_idempotent.body, omitted = end_idempotent.omitted
  where i.caller = rowcast.idempotent_caller(identity) and i.key = name and i.status is null;
  if not found then
    raise exception 'the idempotency key is not claimed by this transaction'
      using errcode = 'object_not_in_prerequisite_state';
  end if;
end
$$;
alter function rowcast.end_idempotent(text, text, integer, text, text, boolean) owner to rowcast_owner;
comment on function rowcast.end_idempotent(text, text, integer, text, text, boolean) is 'Keeps the answer under the idempotency key that this transaction has claimed';

-- Tells every relay to read the catalogue anew when something was defined, changed or dropped.
--
-- Only where a superuser installs; elsewhere relays learn of changes by their drift check. The functions
-- run inside other people's DDL with their rights, so they stay the superuser's own: whoever may
-- change them could do anything. They take nothing of the writer's, an error of theirs ends here, and
-- one transaction is told once. Temporary objects are nobody's business: some applications make many.
do $install$
begin
  if not (select rolsuper from pg_roles where rolname = current_user) then
    return;
  end if;

  create or replace function rowcast.ddl() returns event_trigger
  language plpgsql
  set search_path = pg_catalog, pg_temp
  as $$
  begin
    if exists (select from pg_event_trigger_ddl_commands() c
               where c.schema_name is distinct from 'pg_temp') then
      perform pg_notify('pgrst', 'reload schema');
    end if;
  exception when others then
    null;
  end
  $$;
  revoke all on function rowcast.ddl() from public;
  comment on function rowcast.ddl() is 'Tells relays that something was defined or changed';

  create or replace function rowcast.dropped() returns event_trigger
  language plpgsql
  set search_path = pg_catalog, pg_temp
  as $$
  begin
    if exists (select from pg_event_trigger_dropped_objects() d where not d.is_temporary) then
      perform pg_notify('pgrst', 'reload schema');
    end if;
  exception when others then
    null;
  end
  $$;
  revoke all on function rowcast.dropped() from public;
  comment on function rowcast.dropped() is 'Tells relays that something was dropped';

  if not exists (select from pg_event_trigger where evtname = 'rowcast_ddl') then
    create event trigger rowcast_ddl on ddl_command_end execute function rowcast.ddl();
  end if;
  if not exists (select from pg_event_trigger where evtname = 'rowcast_drop') then
    create event trigger rowcast_drop on sql_drop execute function rowcast.dropped();
  end if;
end
$install$;

revoke create on schema rowcast from rowcast_trigger;

update rowcast.state set functions = 'cGMZcwVIuxI', version = greatest(version, 4);
commit;

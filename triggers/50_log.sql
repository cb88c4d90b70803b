-- Keeping the log: its life, its horizon, its gaps.

-- Where this is: the server, the database in it, the log in that. Relays make it a part of their tokens.
create or replace function rowcast.place() returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select concat_ws(':', (select system_identifier from pg_control_system()),
                   (select oid from pg_database where datname = current_database()), 'rowcast.log'::regclass::oid)
$$;
alter function rowcast.place() owner to rowcast_owner;
revoke all on function rowcast.place() from public;
comment on function rowcast.place() is 'Server, database and log';

-- Transactions of this database that are prepared and not over.
create or replace function rowcast.prepared() returns setof text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select p.transaction || ' ' || p.gid from pg_prepared_xacts p where p.database = current_database()
$$;
alter function rowcast.prepared() owner to rowcast_owner;
revoke all on function rowcast.prepared() from public;
comment on function rowcast.prepared() is 'Transactions that are prepared and not over';

-- The uuid of this life of the transaction counter, made if there is none. A crash gives used
-- transaction ids out again, so everything that was logged under the old ones goes: in the same
-- transaction, and with DELETE, because TRUNCATE would wait for open writers.
--
-- A dump brings the ids of another server along, and the numbers that tables had there. So what was logged
-- there goes too, and what tables are watched is left to check_drift(), which knows them by their triggers.
--
-- A transaction that was prepared survives a crash, and what it logged does not: check_drift() tells of it when it is
-- over.
create or replace function rowcast.begin_epoch() returns uuid
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  found_uuid uuid;
  here text := rowcast.place();
begin
  select e.uuid into found_uuid from rowcast.epoch e join rowcast.state s on s.place = here;
  if found then
    return found_uuid;
  end if;
  lock table rowcast.epoch in exclusive mode;
  if not exists (select from rowcast.state s where s.place = here) then
    -- check_drift() and trim() do nothing in another place than theirs; one that began in this one is let finish.
    perform pg_advisory_xact_lock(7094114, 1), pg_advisory_xact_lock(7094114, 2);
    delete from rowcast.epoch;
    delete from rowcast.watched;
    -- Who has none is compared from time to time.
    delete from rowcast.dependency;
  end if;
  select uuid into found_uuid from rowcast.epoch;
  if not found then
    delete from rowcast.log;
    delete from rowcast.tick;
    update rowcast.state set horizon = null, place = here, prepared = array(select rowcast.prepared());
    insert into rowcast.epoch default values returning uuid into found_uuid;
  end if;
  return found_uuid;
end
$$;
alter function rowcast.begin_epoch() owner to rowcast_owner;
revoke all on function rowcast.begin_epoch() from public;
comment on function rowcast.begin_epoch() is 'The identity of the transaction counter since the last crash';

-- Ends this life of the transaction counter by hand: every token that was given out before is void.
-- For restores of files, which bring old transaction ids back and leave no trace of it: run it before
-- relays serve again. A relay whose own place in the log lies in the server's future runs it by
-- itself, with the life that it knows, so that of several relays one begins the new life.
create or replace function rowcast.new_epoch(known uuid default null) returns uuid
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  lock table rowcast.epoch in exclusive mode;
  delete from rowcast.epoch e where known is null or e.uuid = known;
  return rowcast.begin_epoch();
end
$$;
alter function rowcast.new_epoch(uuid) owner to rowcast_owner;
revoke all on function rowcast.new_epoch(uuid) from public;
comment on function rowcast.new_epoch(uuid) is 'Voids every token given out so far: a step of every restore of files';

-- Where somebody empties the log by hand, or a part of it, to make room: what nobody has read is gone with the rest, and
-- nothing in the horizon tells. So all tokens are void, as when a crash empties it. 90_log_table.sql has its trigger. The
-- functions that keep the log are known by being on their way, and not by a word of theirs: those that an earlier relay
-- puts in their place would not say it, and would end the epoch with each row that they trim.
create or replace function rowcast.emptied_by_hand() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  calls text;
begin
  get diagnostics calls = pg_context;
  if tg_op = 'TRUNCATE' or calls !~ '\mrowcast"?\."?(trim|begin_epoch)"?\(' then
    perform rowcast.new_epoch();
  end if;
  return null;
end
$$;
alter function rowcast.emptied_by_hand() owner to rowcast_owner;
revoke all on function rowcast.emptied_by_hand() from public;
comment on function rowcast.emptied_by_hand() is 'Trigger: a log that was emptied by hand ends its epoch';

-- Notes a snapshot, and deletes what was done in the snapshot taken one retention ago. By snapshot
-- and never by clock: the rows of a long transaction are old when they become visible. At most
-- chunk rows a call; returns how many went. One relay at a time.
--
-- Where more than most bytes are kept, later snapshots are taken, as many as it needs: early says so.
-- Whoever comes back with an older token reads the state anew. The last two ticks are never trimmed for
-- size: relays that read along have had that long to read.
--
-- The horizon tells what may be missing, so it moves with the first row that goes, in the same
-- transaction: whoever reads rows and horizon in one snapshot knows whether they are all.
create or replace function rowcast.trim(retention interval, chunk integer, most bigint, out gone bigint, out early boolean)
language plpgsql
set search_path = pg_catalog, pg_temp
-- A log that was never analyzed is taken to lie beyond any snapshot, and would be read as a whole. What PostgreSQL
-- then thinks the small tables cost has it compile each statement (measured: 140 ms at each tick).
set enable_seqscan = off set jit = off
as $$
declare
  latest rowcast.tick;
  since pg_snapshot;
  due bigint;
  target rowcast.tick;
begin
  gone := 0;
  early := false;
  if not pg_try_advisory_xact_lock(7094114, 2)
     or not exists (select from rowcast.state s where s.place = rowcast.place()) then
    return;
  end if;
  select t.* into latest from rowcast.tick t order by t.n desc limit 1;
  since := latest.snapshot;
  -- Not for each chunk of one round; and the clock may have been set back.
  if since is null or clock_timestamp() - latest.at not between interval '0' and interval '1 s' then
    -- What a poll since the last tick would read, counted in the snapshot that is noted. What lies
    -- out of line is measured without being fetched, and rows of who is still open are not looked at.
    insert into rowcast.tick (snapshot, rows, bytes)
    select pg_current_snapshot(), count(*),
           coalesce(sum(coalesce(pg_column_size(l.old), 0) + coalesce(pg_column_size(l.new), 0) + 120), 0)
    from (
      select old, new from rowcast.log where xid >= coalesce(pg_snapshot_xmax(since), '0')
      union all
      select old, new from rowcast.log where xid = any (array(
        select open from pg_snapshot_xip(since) as open where pg_visible_in_snapshot(open, pg_current_snapshot())))
    ) l
    on conflict do nothing;
  end if;
  -- No proof hangs on these, so the clock will do.
  delete from rowcast.idempotency i
  where (i.caller, i.key) in (
    select d.caller, d.key from rowcast.idempotency d
    where d.at < clock_timestamp() - retention
    limit chunk);
  select t.n into due from rowcast.tick t
  where t.at <= clock_timestamp() - retention order by t.n desc limit 1;
  if most < (select sum(t.bytes) from rowcast.tick t) then
    -- The oldest tick after which no more than that was logged.
    select k.n into target.n
    from (select t.n, sum(t.bytes) over (order by t.n desc) - t.bytes as after,
                 row_number() over (order by t.n desc) as place
          from rowcast.tick t) k
    where k.place >= 2 and (k.place = 2 or k.after <= most)
    order by k.n limit 1;
    early := coalesce(target.n > coalesce(due, 0), false);
  end if;
  select t.* into target from rowcast.tick t where t.n = greatest(due, target.n);
  if not found then
    return;
  end if;
  -- By place: rows of the log are never updated, and both look in one snapshot.
  delete from rowcast.log l
  where l.ctid = any (array(
    select d.ctid from rowcast.log d
    where d.xid < pg_snapshot_xmax(target.snapshot) and pg_visible_in_snapshot(d.xid, target.snapshot)
    limit chunk));
  get diagnostics gone = row_count;
  update rowcast.state set horizon = target.snapshot
  where gone > 0 and (horizon is null or pg_snapshot_xmax(horizon) <= pg_snapshot_xmax(target.snapshot));
  early := early and gone > 0;
  if early then
    update rowcast.state set trimmed_early = clock_timestamp();
  end if;
  if gone < chunk then
    delete from rowcast.tick t where t.n < target.n;
    update rowcast.tick t set rows = 0, bytes = 0 where t.n = target.n and t.rows > 0;
  end if;
end
$$;
alter function rowcast.trim(interval, integer, bigint) owner to rowcast_owner;
revoke all on function rowcast.trim(interval, integer, bigint) from public;
comment on function rowcast.trim(interval, integer, bigint) is 'Deletes what every screen has had a retention long to read, or what is too much';

-- As relays before version 5 call it.
create or replace function rowcast.trim(retention interval, chunk integer) returns bigint
language sql
set search_path = pg_catalog, pg_temp
as $$
  select gone from rowcast.trim(retention, chunk, null::bigint)
$$;
alter function rowcast.trim(interval, integer) owner to rowcast_owner;
revoke all on function rowcast.trim(interval, integer) from public;
comment on function rowcast.trim(interval, integer) is 'Deletes what every screen has had a retention long to read';

-- What the log holds and what holds it. kept and bytes are as of the last tick; file is what it takes
-- on disk, dead rows included. reach is the age in seconds of the oldest token that can still be
-- served. held is the age of the oldest transaction that keeps rows from being trimmed or space from
-- being given back, and holder which it is, as far as this login may see it: pg_stat_activity shows
-- the transactions of others to members of pg_read_all_stats only.
create or replace function rowcast.log_status(out kept bigint, out bytes bigint, out file bigint,
  out reach double precision, out held double precision, out holder text, out trimmed_early timestamptz)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  unseen double precision;
begin
  select coalesce(sum(t.rows), 0), coalesce(sum(t.bytes), 0) into kept, bytes from rowcast.tick t;
  file := pg_total_relation_size('rowcast.log');
  select s.trimmed_early,
         (select extract(epoch from clock_timestamp() - min(t.at)) from rowcast.tick t
          where s.horizon is null or t.snapshot::text = s.horizon::text
             or pg_snapshot_xmin(t.snapshot) >= pg_snapshot_xmax(s.horizon))
  into trimmed_early, reach from rowcast.state s;
  select o.age, o.who into held, holder
  from (
    select extract(epoch from clock_timestamp() - a.xact_start)::double precision as age,
           format('process %s, user %s, database %s, %s, %s', a.pid, a.usename, a.datname,
                  coalesce(nullif(a.application_name, ''), 'no application_name'), a.state) as who
    from pg_stat_activity a
    where a.xact_start is not null and a.pid <> pg_backend_pid() and a.backend_type = 'client backend'
      and (a.backend_xid is not null or a.backend_xmin is not null)
    union all
    select extract(epoch from clock_timestamp() - p.prepared)::double precision,
           format('prepared transaction %L of %s in database %s', p.gid, p.owner, p.database)
    from pg_prepared_xacts p
  ) o
  order by o.age desc limit 1;
  -- A transaction that is open now and was open at a tick has been so since.
  select extract(epoch from clock_timestamp() - min(t.at)) into unseen from rowcast.tick t
  where pg_snapshot_xmax(t.snapshot) > pg_snapshot_xmin(pg_current_snapshot());
  if unseen > coalesce(held, 0) then
    held := unseen;
    holder := 'a transaction of another login, which this one may not see (grant pg_read_all_stats)';
  end if;
  held := coalesce(held, 0);
end
$$;
alter function rowcast.log_status() owner to rowcast_owner;
revoke all on function rowcast.log_status() from public;
comment on function rowcast.log_status() is 'What the log holds, and what holds it';

-- The order of the log is the order of its ids, which holds only while no session takes several at a
-- time. Returns what was wrong; null when nothing was. Fails while writers are in the way: 50 ms,
-- since others queue behind it. The restart makes sessions forget the ids that they have taken.
create or replace function rowcast.check_order() returns text
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '50ms'
as $$
declare
  cached bigint;
  taken bigint;
begin
  select s.seqcache into cached from pg_sequence s where s.seqrelid = 'rowcast.log_id_seq'::regclass;
  if cached = 1 then
    return null;
  end if;
  alter sequence rowcast.log_id_seq cache 1;
  select s.last_value into taken from rowcast.log_id_seq s;
  execute format('alter sequence rowcast.log_id_seq restart with %s', taken + 1);
  perform rowcast.reset();
  return format('the sequence of the log had CACHE %s, which breaks the order of changes; it has 1 again', cached);
end
$$;
alter function rowcast.check_order() owner to rowcast_owner;
revoke all on function rowcast.check_order() from public;
comment on function rowcast.check_order() is 'Finds and repairs a cache of ids, which breaks the order of the log';

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

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

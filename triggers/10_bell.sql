-- Rings the doorbell: every relay looks at the log once this transaction is committed. Call it once
-- something is written: the transaction must have its id before the lock is tried.
--
-- Adaptive (bell = auto): the relay that reads for all others holds the lock exclusively, or waits
-- for it, while it polls, and then nobody rings. A NOTIFY takes a lock of the whole cluster through
-- its commit, which cuts concurrent writers to a tenth (measured). Why nobody is left asleep: docs/design.md.
--
-- In SQL, without settings, so that PostgreSQL makes it a part of the caller's own expression.
-- The payload is empty: equal notifications of one transaction are sent once, and the log is the truth.
create or replace function rowcast.rang() returns boolean
language sql
as $$
  select case
    when pg_catalog.pg_try_advisory_xact_lock_shared(7094114, 3) then pg_catalog.pg_notify('rowcast', '') is null
    else false
  end
$$;
alter function rowcast.rang() owner to rowcast_owner;
revoke all on function rowcast.rang() from public;
grant execute on function rowcast.rang() to rowcast_trigger;
comment on function rowcast.rang() is 'Tells every relay to look at the log, unless one is looking anyway; whether it did';

-- The question alone, which costs less to make ready. Who is told that nobody is awake has the lock, and rings.
create or replace function rowcast.awake() returns boolean
language sql
as $$
  select not pg_catalog.pg_try_advisory_xact_lock_shared(7094114, 3)
$$;
alter function rowcast.awake() owner to rowcast_owner;
revoke all on function rowcast.awake() from public;
grant execute on function rowcast.awake() to rowcast_trigger;
comment on function rowcast.awake() is 'Whether a relay looks at the log anyway, so that nobody need ring';

-- The same as rang() for those to whom it does not matter whether it did.
create or replace function rowcast.ring() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  perform rowcast.rang();
end
$$;
alter function rowcast.ring() owner to rowcast_owner;
revoke all on function rowcast.ring() from public;
grant execute on function rowcast.ring() to rowcast_trigger;
comment on function rowcast.ring() is 'Tells every relay to look at the log';

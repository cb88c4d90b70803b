-- Replaces the bell by silence (bell = off): relays poll. For databases that use two-phase commit:
-- PREPARE TRANSACTION fails after any NOTIFY, and a writer must never fail because of us.
create or replace function rowcast.rang() returns boolean
language sql
as $$
  select false
$$;

create or replace function rowcast.awake() returns boolean
language sql
as $$
  select true
$$;

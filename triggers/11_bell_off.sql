-- Replaces the bell by silence (bell = off): relays poll. For databases that use two-phase commit:
-- PREPARE TRANSACTION fails after any NOTIFY, and a writer must never fail because of us.
create or replace function rowcast.ring() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  null;
end
$$;

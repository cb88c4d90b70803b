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

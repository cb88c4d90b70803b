-- Replaces the bell by one that every commit rings (bell = always).
create or replace function rowcast.rang() returns boolean
language sql
as $$
  select pg_catalog.pg_notify('rowcast', '') is null
$$;

create or replace function rowcast.awake() returns boolean
language sql
as $$
  select false
$$;

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

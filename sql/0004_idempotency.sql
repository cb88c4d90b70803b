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

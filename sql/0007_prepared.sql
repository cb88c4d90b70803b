-- A prepared transaction survives a crash, and what it logged does not. History: run once, never edited after a
-- release.

alter table rowcast.state add column prepared text[] not null default '{}';
comment on column rowcast.state.prepared is 'Transactions that had been prepared when this life of the transaction counter began';

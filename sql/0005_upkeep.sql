-- What keeping the log within its bounds needs, and who may still work with this schema. History: run
-- once, never edited after a release.

-- Ticks in the order in which they were taken. The clock cannot tell: it may be set back.
alter table rowcast.tick add column n bigint generated always as identity;
alter table rowcast.tick add column rows bigint not null default 0;
alter table rowcast.tick add column bytes bigint not null default 0;
comment on column rowcast.tick.n is 'Order of the ticks, whatever the clock says';
comment on column rowcast.tick.rows is 'Log rows that became visible since the tick before, as far as they are kept';
comment on column rowcast.tick.bytes is 'Bytes of the same';

alter table rowcast.state add column needs integer not null default 0;
alter table rowcast.state add column trimmed_early timestamptz;
comment on column rowcast.state.needs is 'The oldest version whose relays may work with this schema';
comment on column rowcast.state.trimmed_early is 'When the log was last trimmed for its size, before the retention was over';

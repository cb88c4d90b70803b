-- Messages and resets: log entries that no row made.

-- Whether a channel may be used. * in a pattern stands for any text; every other character is itself.
create or replace function rowcast.channel_allowed(name text) returns boolean
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select octet_length(name) between 1 and 63
     and name <> 'rowcast'
     and exists (
       select from rowcast.channel c
       where name ~ ('^' || replace(regexp_replace(c.pattern, E'([][\\\\.^$+?(){}|-])', E'\\\\\\1', 'g'), '*', '.*') || '$')
     )
$$;
alter function rowcast.channel_allowed(text) owner to rowcast_owner;
comment on function rowcast.channel_allowed(text) is 'Whether a channel may be published to and subscribed to';

-- Writes a durable message. It is delivered when the calling transaction commits, and never otherwise.
-- Returns the transaction's id as text, which arrives on the screens as headers.txid. Each name says its schema:
-- triggers/65_foreign.sql.
create or replace function rowcast.publish(channel text, payload json) returns text
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if channel is null or payload is null then
    raise exception 'a message needs a channel and a payload'
      using errcode = 'null_value_not_allowed';
  end if;
  if not rowcast.channel_allowed(channel) then
    raise exception 'channel "%" is not allowed', channel
      using errcode = 'insufficient_privilege',
            hint = pg_catalog.format('select rowcast.allow_channel(%L);', channel);
  end if;
  if pg_catalog.octet_length(payload::pg_catalog.text) operator(pg_catalog.>) 262144 then
    raise exception 'a message of % bytes is too large', pg_catalog.octet_length(payload::pg_catalog.text)
      using errcode = 'program_limit_exceeded',
            hint = 'The limit is 262144 bytes; publish where the data can be fetched.';
  end if;
  insert into rowcast.log (op, channel, new) values ('P', publish.channel, payload);
  perform rowcast.ring();
  return pg_catalog.pg_current_xact_id()::pg_catalog.text;
end
$$;
-- The trigger's role may only insert; reading the patterns is the business of channel_allowed.
alter function rowcast.publish(text, json) owner to rowcast_trigger;
grant execute on function rowcast.channel_allowed(text) to rowcast_trigger;
comment on function rowcast.publish(text, json) is 'Sends a durable message to everybody on a channel';

create or replace function rowcast.allow_channel(pattern text) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  insert into rowcast.channel values (pattern) on conflict do nothing
$$;
alter function rowcast.allow_channel(text) owner to rowcast_owner;
revoke all on function rowcast.allow_channel(text) from public;
comment on function rowcast.allow_channel(text) is 'Allows a channel; * stands for any text';

create or replace function rowcast.forbid_channel(pattern text) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  delete from rowcast.channel c where c.pattern = forbid_channel.pattern
$$;
alter function rowcast.forbid_channel(text) owner to rowcast_owner;
revoke all on function rowcast.forbid_channel(text) from public;
comment on function rowcast.forbid_channel(text) is 'Takes back what allow_channel allowed';

-- Says that the state of a table (null: of all) is unknown from here on. An entry of the log like
-- any other, so that it also reaches those who are away now.
create or replace function rowcast.reset(rel oid default null) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into rowcast.log (rel, op) values (reset.rel, 'R');
  perform rowcast.ring();
end
$$;
alter function rowcast.reset(oid) owner to rowcast_trigger;
revoke all on function rowcast.reset(oid) from public;
grant execute on function rowcast.reset(oid) to rowcast_owner;
comment on function rowcast.reset(oid) is 'Makes every screen of a table (or all screens) read it anew';

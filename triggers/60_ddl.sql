-- Tells every relay to read the catalogue anew when something was defined, changed or dropped.
--
-- Only where a superuser installs; elsewhere relays learn of changes by their drift check. The functions
-- run inside other people's DDL with their rights, so they stay the superuser's own: whoever may
-- change them could do anything. They take nothing of the writer's, an error of theirs ends here, and
-- one transaction is told once. Temporary objects are nobody's business: some applications make many.
do $install$
begin
  if not (select rolsuper from pg_roles where rolname = current_user) then
    return;
  end if;

  create or replace function rowcast.ddl() returns event_trigger
  language plpgsql
  set search_path = pg_catalog, pg_temp
  as $$
  begin
    if exists (select from pg_event_trigger_ddl_commands() c
               where c.schema_name is distinct from 'pg_temp') then
      perform pg_notify('pgrst', 'reload schema');
    end if;
  exception when others then
    null;
  end
  $$;
  -- Where somebody had made one of that name, replacing it would have left it theirs.
  alter function rowcast.ddl() owner to current_user;
  revoke all on function rowcast.ddl() from public;
  comment on function rowcast.ddl() is 'Tells relays that something was defined or changed';

  create or replace function rowcast.dropped() returns event_trigger
  language plpgsql
  set search_path = pg_catalog, pg_temp
  as $$
  begin
    if exists (select from pg_event_trigger_dropped_objects() d where not d.is_temporary) then
      perform pg_notify('pgrst', 'reload schema');
    end if;
  exception when others then
    null;
  end
  $$;
  alter function rowcast.dropped() owner to current_user;
  revoke all on function rowcast.dropped() from public;
  comment on function rowcast.dropped() is 'Tells relays that something was dropped';

  if not exists (select from pg_event_trigger where evtname = 'rowcast_ddl') then
    create event trigger rowcast_ddl on ddl_command_end execute function rowcast.ddl();
  end if;
  if not exists (select from pg_event_trigger where evtname = 'rowcast_drop') then
    create event trigger rowcast_drop on sql_drop execute function rowcast.dropped();
  end if;
end
$install$;

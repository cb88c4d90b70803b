-- Keeps rowcast_trigger from defining anything. Its functions convert rows, which runs the casts to json that the
-- owners of types wrote, as rowcast_trigger; and PostgreSQL lets the owner of a function change, grant and drop
-- it. Only a superuser can have this; elsewhere such a cast can take capturing away, but nothing else: the functions
-- that rowcast_trigger owns say the schema of every name, so that another search_path changes nothing in them.
do $install$
begin
  if not (select rolsuper from pg_roles where rolname = current_user) then
    return;
  end if;

  create or replace function rowcast.defines_nothing() returns event_trigger
  language plpgsql
  set search_path = pg_catalog, pg_temp
  as $$
  begin
    if current_user = 'rowcast_trigger' then
      raise exception '% is refused: it comes from code that ran while a change was captured', tg_tag
        using errcode = 'insufficient_privilege',
              hint = 'A cast to json, or an output function, of a type in the table that was written to.';
    end if;
  end
  $$;
  alter function rowcast.defines_nothing() owner to current_user;
  revoke all on function rowcast.defines_nothing() from public;
  comment on function rowcast.defines_nothing() is 'Keeps rowcast_trigger from defining anything';

  if not exists (select from pg_event_trigger where evtname = 'rowcast_foreign') then
    create event trigger rowcast_foreign on ddl_command_start execute function rowcast.defines_nothing();
  end if;
  -- Also where session_replication_role is replica.
  alter event trigger rowcast_foreign enable always;
end
$install$;

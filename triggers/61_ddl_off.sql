-- Takes the event triggers away (bell = off): a NOTIFY in a transaction forbids to PREPARE it.
do $$
begin
  if (select rolsuper from pg_roles where rolname = current_user) then
    drop event trigger if exists rowcast_ddl;
    drop event trigger if exists rowcast_drop;
  end if;
end
$$;

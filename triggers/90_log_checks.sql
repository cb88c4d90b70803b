-- Takes the checks of the log away. PostgreSQL reads the expression of a check anew for every statement
-- that inserts, and the trigger's insert is one a row: they were a third of what it cost (measured: 11
-- of 33 us). Nobody but our own functions may insert, and these write nothing that the checks refused.
--
-- It needs every writer out for a moment, which must not make others wait: where somebody stays, the
-- checks stay too, until the functions are installed again. Last, so that the lock is not held for long.
do $$
declare
  checks text;
  before text := current_setting('lock_timeout');
begin
  select string_agg(format('drop constraint %I', conname), ', ') into checks
  from pg_constraint where conrelid = 'rowcast.log'::regclass and contype = 'c';
  if checks is null then
    return;
  end if;
  perform set_config('lock_timeout', '50ms', true);
  for attempt in 1..20 loop
    begin
      execute 'alter table rowcast.log ' || checks;
      exit;
    exception when lock_not_available then
      perform pg_sleep(0.02 + random() * 0.03);
    end;
  end loop;
  perform set_config('lock_timeout', before, true);
end
$$;

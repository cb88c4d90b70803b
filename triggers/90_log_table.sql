-- What makes the log cheap for writers, and needs every writer out for a moment. That must not make others
-- wait: where somebody stays, the log stays as it is until the functions are installed again. Last, so that
-- the lock is not held for long.
--
-- UNLOGGED: nothing of it is written ahead (measured: 2 of 15 us for each row of a bulk update, and half of
-- what reaches archives and standbys). A crash and a promotion empty it; they empty rowcast.epoch at the same
-- moment, whereupon what is in the log is void, and everybody reads anew. To change a log that is full would
-- take as long as to copy it, so that one stays as it is; `rowcast doctor` tells of it. One that somebody
-- publishes cannot be changed.
--
-- No checks: PostgreSQL reads the expression of a check anew for every statement that inserts, and the
-- trigger's insert is one a row: they were a third of what it cost (measured: 11 of 33 us). Nobody but our own
-- functions may insert, and these write nothing that the checks refused.
do $$
declare
  changes text;
  before text := current_setting('lock_timeout');
begin
  select string_agg(change, ', ') into changes
  from (
    select format('drop constraint %I', conname) as change
    from pg_constraint where conrelid = 'rowcast.log'::regclass and contype = 'c'
    union all
    select 'set unlogged'
    from pg_class c
    where c.oid = 'rowcast.log'::regclass and c.relpersistence = 'p'
      and pg_total_relation_size(c.oid) <= 8 * 1024 * 1024
      and not exists (select from pg_publication_rel p where p.prrelid = c.oid)
  ) as wanted;
  if changes is null then
    return;
  end if;
  perform set_config('lock_timeout', '50ms', true);
  for attempt in 1..20 loop
    begin
      execute 'alter table rowcast.log ' || changes;
      exit;
    exception when lock_not_available then
      perform pg_sleep(0.02 + random() * 0.03);
    end;
  end loop;
  perform set_config('lock_timeout', before, true);
end
$$;

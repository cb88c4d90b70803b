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
-- But not its sequence, which goes the way of its table: of one that is not written ahead nothing may have reached
-- the disk of a standby that is promoted soon after, or of a recovery, and then nobody can write to a watched table
-- (measured on 15 and 18: "bad magic number in sequence"). What it writes ahead is one record for 32 ids.
--
-- An index that leads from a transaction to the operations and tables that it touched, in place of the primary
-- key: what it costs is the same, and of a million rows the few that tell all of them are found in a moment
-- (src/log/parts.rs). One whose changes somebody may want to receive needs its key.
--
-- A trigger that notices when somebody truncates it or deletes from it (rowcast.emptied_by_hand). Where it could not be made,
-- `rowcast doctor` tells.
--
-- No checks: PostgreSQL reads the expression of a check anew for every statement that inserts, and the
-- trigger's insert is one a row: they were a third of what it cost (measured: 11 of 33 us). Nobody but our own
-- functions may insert, and these write nothing that the checks refused.
do $$
declare
  changes text[];
  change text;
  before text := current_setting('lock_timeout');
begin
  select array_agg(wanted.change) into changes
  from (
    select format('alter table rowcast.log drop constraint %I', conname) as change
    from pg_constraint where conrelid = 'rowcast.log'::regclass and contype = 'c'
    union all
    select unnest(
      case when c.relpersistence = 'p' then '{
           "alter table rowcast.log set unlogged", "alter sequence rowcast.log_id_seq set logged"}'::text[] end
      || case when to_regclass('rowcast.log_touched') is null then '{
           "alter table rowcast.log drop constraint if exists log_pkey",
           "create index log_touched on rowcast.log (xid, op, rel, id) with (deduplicate_items = off)"}'::text[] end)
    from pg_class c
    where c.oid = 'rowcast.log'::regclass
      and pg_total_relation_size(c.oid) <= 8 * 1024 * 1024
      and not exists (select from pg_publication_rel p where p.prrelid = c.oid)
    union all
    select 'alter sequence rowcast.log_id_seq set logged'
    from pg_class c where c.oid = 'rowcast.log_id_seq'::regclass and c.relpersistence = 'u'
    union all
    select unnest('{
      "create or replace trigger emptied after delete or truncate on rowcast.log for each statement execute function rowcast.emptied_by_hand()",
      "alter table rowcast.log enable always trigger emptied",
      "drop function if exists rowcast.emptied()"}'::text[])
    -- One of an earlier release calls another function, which knows nothing of who deletes.
    where not exists (select from pg_trigger
                      where tgrelid = 'rowcast.log'::regclass and tgname = 'emptied'
                        and tgfoid = 'rowcast.emptied_by_hand()'::regprocedure)
  ) as wanted;
  if changes is null then
    return;
  end if;
  perform set_config('lock_timeout', '50ms', true);
  for attempt in 1..20 loop
    begin
      foreach change in array changes loop
        execute change;
      end loop;
      exit;
    exception when lock_not_available then
      perform pg_sleep(0.02 + random() * 0.03);
    end;
  end loop;
  perform set_config('lock_timeout', before, true);
end
$$;

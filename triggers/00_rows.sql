-- A dump of definitions alone (pg_dump --schema-only) brings the schema without the rows that history wrote. Which
-- version it is is told by what each one added; the eighth wrote into a row alone, and may run twice.
--
-- In the middle of a restore there are no rows yet either. Ours would be in the way of those that come: keys are
-- made once the rows are there.
do $$
begin
  -- Apart, because what names a table that is not there cannot even be read.
  if to_regclass('rowcast.state') is null then
    return;
  end if;
  if exists (select from rowcast.state) then
    return;
  end if;
  if not exists (select from pg_constraint c where c.conrelid = 'rowcast.state'::regclass and c.contype = 'p') then
    raise exception using
      errcode = 'object_not_in_prerequisite_state',
      message = 'the schema rowcast is being restored, or a restore of it was given up (found: rowcast.state has neither its '
        'row nor its key; try: again when the restore is over, or drop schema rowcast cascade)';
  end if;
  insert into rowcast.state (version)
  select max(m.version)
  from (values (1, 'state', 'version'), (2, 'exposed_function', 'signature'), (3, 'secret', 'key'),
               (4, 'idempotency', 'key'), (5, 'state', 'needs'), (6, 'state', 'place'),
               (7, 'state', 'prepared'), (9, 'dependency', 'on_name')) m (version, rel, col)
  where exists (select from pg_attribute a
                where a.attrelid = to_regclass('rowcast.' || m.rel) and a.attname = m.col and not a.attisdropped);
  if exists (select from rowcast.state s where s.version >= 8) then
    update rowcast.state set needs = 8;
  end if;
  if to_regclass('rowcast.secret') is not null then
    insert into rowcast.secret default values on conflict do nothing;
  end if;
end
$$;

-- Which tables are watched, and whether they still are.
--
-- All of it is asked every two seconds for each table, so what asks is PL/pgSQL: it keeps its plans for as long as a
-- session lasts, where a function in SQL that calls others plans these anew each time (measured: 4.4 ms for a table).

-- A table and all partitions below it. Not pg_partition_tree: that locks each of them until the end
-- of the transaction, and a lock of ours must never be one that a writer waits for. Reads leave out a partition
-- as soon as DETACH CONCURRENTLY has begun, which may wait for long and stays so where it is interrupted.
create or replace function rowcast.tree(rel oid) returns setof oid
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  return query
  with recursive tree (relid) as (
    select rel
    union
    select i.inhrelid from tree t
    join pg_class c on c.oid = t.relid and c.relkind = 'p'
    join pg_inherits i on i.inhparent = t.relid and not i.inhdetachpending
  )
  select relid from tree;
end
$$;
alter function rowcast.tree(oid) owner to rowcast_owner;
revoke all on function rowcast.tree(oid) from public;
comment on function rowcast.tree(oid) is 'A table and its partitions, without locking them';

-- The types of a table's columns, and what they are made of: the base of a domain, the element of an array, the
-- parts of a row, the bounds of a range.
create or replace function rowcast.types(rel oid) returns setof oid
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  return query
  with recursive used (type) as (
    select a.atttypid from pg_attribute a
    where a.attrelid = rel and a.attnum > 0 and not a.attisdropped
    union
    select inner_type
    from used u
    join pg_type t on t.oid = u.type
    cross join lateral (
      values (nullif(t.typbasetype, 0)), (nullif(t.typelem, 0))
      union all
      select a.atttypid from pg_attribute a
      where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
      union all
      select r.rngsubtype from pg_range r where t.typtype in ('r', 'm') and t.oid in (r.rngtypid, r.rngmultitypid)
    ) as v (inner_type)
    where inner_type is not null
  )
  select type from used;
end
$$;
alter function rowcast.types(oid) owner to rowcast_owner;
revoke all on function rowcast.types(oid) from public;
comment on function rowcast.types(oid) is 'The types of a table''s columns and of their parts';

-- The type behind all domains.
create or replace function rowcast.behind(type oid) returns oid
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  base oid;
begin
  loop
    select t.typbasetype into base from pg_type t where t.oid = behind.type and t.typtype = 'd';
    if not found then
      return type;
    end if;
    type := base;
  end loop;
end
$$;
alter function rowcast.behind(oid) owner to rowcast_owner;
revoke all on function rowcast.behind(oid) from public;
comment on function rowcast.behind(oid) is 'The type behind all domains';

-- The trigger argument that a table needs: 'guarded' when converting one of its columns runs code
-- that is not PostgreSQL's own (types of users and extensions, casts to json), or of types whose few
-- stored bytes may become more text than fits a value (1e131071 in jsonb or in arrays of numeric), else null.
create or replace function rowcast.guard(rel oid) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (
  select 'guarded'
  where exists (
    select from rowcast.types(rel) as u (type) join pg_type t on t.oid = u.type
    where t.oid in ('jsonb'::regtype, 'jsonpath'::regtype, 'nummultirange'::regtype)
       or t.typcategory = 'A' and rowcast.behind(t.typelem) in ('numeric'::regtype, 'numrange'::regtype)
       or t.typnamespace <> 'pg_catalog'::regnamespace
      and not (t.typtype = 'd')
      and not (t.typtype = 'e' and not exists (
        select from pg_cast c where c.castsource = t.oid and c.casttarget = 'json'::regtype))
      -- an array is judged by its element
      and not (t.typcategory = 'A' and t.typelem <> 0)
  )
  );
end
$$;
alter function rowcast.guard(oid) owner to rowcast_owner;
revoke all on function rowcast.guard(oid) from public;
comment on function rowcast.guard(oid) is 'Whether the capture trigger of a table needs its exception block';

-- The capture function that a table needs: the one that pins the settings on which the text of its
-- columns depends. What is not known here gets every pin. Dates and times stand in json as ISO 8601
-- whatever DateStyle says, with their zone; in a range they do not, so ranges are not among these.
create or replace function rowcast.capturer(rel oid) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (
  select case
    when bool_or(pinned) then 'rowcast.capture()'
    else 'rowcast.capture_plain()'
  end
  from (
    select case
      when t.oid in ('bool'::regtype, '"char"'::regtype, 'name'::regtype, 'int2'::regtype, 'int4'::regtype,
                     'int8'::regtype, 'oid'::regtype, 'numeric'::regtype, 'text'::regtype, 'varchar'::regtype,
                     'bpchar'::regtype, 'uuid'::regtype, 'json'::regtype, 'jsonb'::regtype, 'date'::regtype,
                     'timestamp'::regtype, 'timestamptz'::regtype, 'time'::regtype, 'inet'::regtype, 'cidr'::regtype,
                     'macaddr'::regtype, 'macaddr8'::regtype, 'bit'::regtype, 'varbit'::regtype) then false
      -- whoever reads the log does not see that these are made of times
      when t.typcategory = 'A' and t.typelem <> 'timestamptz'::regtype
           and rowcast.behind(t.typelem) = 'timestamptz'::regtype then true
      -- judged by what they are made of
      when t.typtype = 'd' or t.typcategory = 'A' and t.typelem <> 0 then false
      when t.typtype = 'e' and not exists (
        select from pg_cast c where c.castsource = t.oid and c.casttarget = 'json'::regtype) then false
      else true
    end as pinned
    from rowcast.types(rel) as u (type) join pg_type t on t.oid = u.type
  ) as n
  );
end
$$;
alter function rowcast.capturer(oid) owner to rowcast_owner;
revoke all on function rowcast.capturer(oid) from public;
comment on function rowcast.capturer(oid) is 'Which of the capture functions suits a table';

-- Why a table cannot be captured by statement; null when it can. Transition tables hold nothing of what
-- reaches a table through another one, and PostgreSQL fails a statement whose trigger looks at a virtual
-- column there.
create or replace function rowcast.obstacle(rel oid) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (
  select case
    when c.relkind <> 'r' or c.relispartition then 'it is partitioned'
    when exists (select from pg_inherits i where rel in (i.inhrelid, i.inhparent)) then 'it inherits, or is inherited from'
    when exists (select from pg_attribute a where a.attrelid = rel and a.attgenerated = 'v' and not a.attisdropped)
      then 'it has virtual generated columns'
  end
  from pg_class c where c.oid = rel
  );
end
$$;
alter function rowcast.obstacle(oid) owner to rowcast_owner;
revoke all on function rowcast.obstacle(oid) from public;
comment on function rowcast.obstacle(oid) is 'Why a table cannot be captured by statement';

-- The triggers that a table needs on itself and on its partitions, to which PostgreSQL copies the one on rows.
-- By statement, nothing is seen of what logical replication applies. So the trigger on rows is there too, and
-- fires where session_replication_role is replica, and only there; those on statements, everywhere else.
create or replace function rowcast.triggers(rel oid)
  returns table (relid oid, name text, function regprocedure, argument text, fires "char", definition text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  return query
  with way as materialized (
    select to_regprocedure(rowcast.capturer(rel)) as capturer, rowcast.guard(rel) as guard,
           rowcast.obstacle(rel) is null
           and exists (select from rowcast.watched w where w.rel = triggers.rel and w.by_statement) as by_statement
  )
  select r.relid, v.name, v.function, v.argument, v.fires, v.definition
  from way
  cross join rowcast.tree(rel) as r (relid)
  cross join lateral (values
    ('!rowcast', capturer, guard, case when by_statement then 'R' else 'A' end::"char",
     'after insert or update or delete on %s for each row'),
    ('!rowcast_truncate', 'rowcast.capture_truncate()', null, 'A',
     'after truncate on %s for each statement')
  ) as v (name, function, argument, fires, definition)
  union all
  select rel, v.name, 'rowcast.capture_statement()', guard, 'O', v.definition
  from way
  cross join (values
    ('!rowcast_insert', 'after insert on %s referencing new table as "!rowcast_new" for each statement'),
    ('!rowcast_update', 'after update on %s referencing old table as "!rowcast_old" new table as "!rowcast_new" for each statement'),
    ('!rowcast_delete', 'after delete on %s referencing old table as "!rowcast_old" for each statement')
  ) as v (name, definition)
  where by_statement;
end
$$;
alter function rowcast.triggers(oid) owner to rowcast_owner;
revoke all on function rowcast.triggers(oid) from public;
comment on function rowcast.triggers(oid) is 'The triggers that a table needs';

-- The triggers on a table that are ours: whose function is of this schema, whatever their names. Only members of
-- rowcast_owner may make such a trigger, and owners of partitioned tables (rowcast.let_partitions).
create or replace function rowcast.ours(rel oid) returns setof pg_trigger
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  return query
  select t.* from pg_trigger t
  where t.tgrelid = rel and t.tgfoid in (select p.oid from pg_proc p where p.pronamespace = 'rowcast'::regnamespace);
end
$$;
alter function rowcast.ours(oid) owner to rowcast_owner;
revoke all on function rowcast.ours(oid) from public;
comment on function rowcast.ours(oid) is 'The triggers of Rowcast on a table';

-- Whether the triggers of a table are the ones that suit it; where it has no partitions, every change is captured
-- then. If one fires more often than it must, or pins more, nothing is wrong but the cost.
create or replace function rowcast.suited(rel oid) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (
  select not exists (
    select
    from (select * from rowcast.triggers(rel) where relid = rel) wanted
    full join rowcast.ours(rel) t on t.tgname = wanted.name
    where (t.tgfoid, t.tgnargs, t.tgenabled)
          is distinct from (wanted.function::oid, num_nonnulls(wanted.argument)::smallint, wanted.fires)
  )
  );
end
$$;
alter function rowcast.suited(oid) owner to rowcast_owner;
revoke all on function rowcast.suited(oid) from public;
comment on function rowcast.suited(oid) is 'Whether the triggers of a table do no more than they must';

-- Whether the triggers of a table see each of its rows, in whichever way it is captured: the one on rows on all of its
-- parts, ALWAYS, with a function that pins enough and on the root the right argument, or on a table that may have
-- them those on statements, and the one on rows as a replica.
create or replace function rowcast.captured_rows(rel oid) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (
  with way as materialized (
    select to_regprocedure(rowcast.capturer(rel)) as capturer, num_nonnulls(rowcast.guard(rel)) as arguments,
           rowcast.obstacle(rel) is null and 3 = (
             select count(*) from pg_trigger t
             where t.tgrelid = rel and t.tgname in ('!rowcast_insert', '!rowcast_update', '!rowcast_delete')
               and t.tgfoid = to_regprocedure('rowcast.capture_statement()') and t.tgenabled in ('O', 'A')
               and t.tgnargs = num_nonnulls(rowcast.guard(rel))) as by_statement
  )
  select not exists (
    select
    from way
    cross join rowcast.tree(rel) as r (relid)
    where not exists (
        select from pg_trigger t
        where t.tgrelid = r.relid and t.tgname = '!rowcast'
          and (t.tgenabled = 'A' or t.tgenabled = 'R' and by_statement)
          and (t.tgfoid in (capturer, to_regprocedure('rowcast.capture()'))
               or t.tgfoid = to_regprocedure('rowcast.capture_zoned()') and capturer = to_regprocedure('rowcast.capture_plain()'))
          and (r.relid <> rel or t.tgnargs = arguments))
  )
  );
end
$$;
alter function rowcast.captured_rows(oid) owner to rowcast_owner;
revoke all on function rowcast.captured_rows(oid) from public;
comment on function rowcast.captured_rows(oid) is 'Whether every change of a row of a table reaches the log';

-- And each of its truncations, by a trigger on all of its parts, ALWAYS.
create or replace function rowcast.captured(rel oid) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return rowcast.captured_rows(rel) and not exists (
    select from rowcast.tree(rel) as r (relid)
    where not exists (
      select from pg_trigger t
      where t.tgrelid = r.relid and t.tgname = '!rowcast_truncate' and t.tgenabled = 'A'
        and t.tgfoid = to_regprocedure('rowcast.capture_truncate()'))
  );
end
$$;
alter function rowcast.captured(oid) owner to rowcast_owner;
revoke all on function rowcast.captured(oid) from public;
comment on function rowcast.captured(oid) is 'Whether every change of a table reaches the log';

-- How a table looks: everything whose change makes old images or old permissions worthless.
create or replace function rowcast.shape(rel oid) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (
  select md5(concat_ws(E'\n',
    (select c.relname || '.' || c.relnamespace || ' ' || c.relowner || ' ' || c.relrowsecurity::text
            || c.relforcerowsecurity::text || ' ' || coalesce(c.relacl::text, '')
     from pg_class c where c.oid = rel),
    (select string_agg(a.attnum || ' ' || a.attname || ' ' || a.atttypid || ' ' || a.atttypmod
                       || ' ' || a.attgenerated::text || ' ' || coalesce(a.attacl::text, '')
                       -- Filters go by it. Nothing is said of the default, which does not change.
                       || case when a.attcollation in (0, 'pg_catalog."default"'::regcollation) then ''
                               else ' ' || a.attcollation end
                       -- But what a virtual column comes to changes with its expression, and no file with it.
                       || case when a.attgenerated = 'v' then
                            (select coalesce(' ' || pg_get_expr(d.adbin, d.adrelid), '') from pg_attrdef d
                             where d.adrelid = a.attrelid and d.adnum = a.attnum)
                          else '' end, ',' order by a.attnum)
     from pg_attribute a where a.attrelid = rel and a.attnum > 0 and not a.attisdropped),
    -- What values and parts of its types are called. PostgreSQL's own, below 16384, change with its version only, and
    -- to ask for them takes as long as all the rest.
    case when exists (select from pg_attribute a where a.attrelid = rel and a.attnum > 0 and a.atttypid >= 16384) then
      (select string_agg(p.part, ',' order by p.part)
       from rowcast.types(rel) as u (type)
       cross join lateral (
         select concat_ws(' ', e.enumtypid, e.enumsortorder, e.enumlabel) from pg_enum e where e.enumtypid = u.type
         union all
         select concat_ws(' ', a.attrelid, a.attnum, a.attname, a.atttypid)
         from pg_type t join pg_attribute a on a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
         where t.oid = u.type and t.typtype = 'c'
       ) as p (part)) end,
    -- Nothing is said of a key that is not deferrable, which does not change.
    (select i.indkey::text || case when i.indimmediate then '' else ' deferrable' end
     from pg_index i where i.indrelid = rel and i.indisprimary),
    (select string_agg(p.polname || ' ' || p.polcmd::text || ' ' || p.polpermissive::text || ' ' || p.polroles::text
                       || ' ' || coalesce(p.polqual::text, '') || ' ' || coalesce(p.polwithcheck::text, ''),
                       ',' order by p.polname)
     from pg_policy p where p.polrelid = rel),
    -- With the trigger that a partition has from its table: one that was detached and is back has another, and what was
    -- written to it meanwhile nobody captured.
    (select string_agg(concat_ws(' ', r.relid, t.oid), ',' order by r.relid)
     from rowcast.tree(rel) as r (relid)
     left join pg_trigger t on t.tgrelid = r.relid and t.tgname = '!rowcast' and t.tgparentid <> 0),
    (select string_agg(i.inhrelid::text, ',' order by i.inhrelid) from pg_inherits i
     where i.inhparent = rel and not i.inhdetachpending),
    -- Since version 16 each membership says itself whether it is inherited and may be taken. As the text of the row, since
    -- older versions lack the names: JSON, which has them, made of this the most of what a check takes where there is a role
    -- for each user (measured with 3,000 of them: 30 ms a table, and 14 so).
    (select string_agg(concat_ws(' ', m.roleid, m.member, case when said.more then m::text end), ',' order by m.roleid, m.member, m.grantor)
     from pg_auth_members m, (select current_setting('server_version_num')::int >= 160000 as more) as said),
    (select string_agg(o.oid::text, ',' order by o.oid) from pg_roles o where o.rolsuper or o.rolbypassrls),
    (select string_agg(o.oid::text, ',' order by o.oid) from pg_roles o where not o.rolinherit),
    -- Of roles that somebody may take: whether they can log in, and what is set for them.
    (select string_agg(o.oid::text, ',' order by o.oid) from pg_roles o
     where o.rolcanlogin and o.oid in (select m.roleid from pg_auth_members m)),
    (select string_agg(concat_ws(' ', s.setdatabase, s.setrole, s.setconfig::text), ',' order by s.setdatabase, s.setrole)
     from pg_db_role_setting s where s.setrole in (select m.roleid from pg_auth_members m)),
    (select coalesce(n.nspacl::text, '') from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = rel),
    -- A policy is also what the functions say that it calls, and what the views are that it reads, by way of each other
    -- too. What tables hold is theirs to tell. PostgreSQL's own are not among what is depended on.
    case when exists (select from pg_policy p where p.polrelid = rel) then (
      with recursive reached (class, id) as (
        select d.refclassid, d.refobjid
        from pg_policy p
        join pg_depend d on d.classid = 'pg_policy'::regclass and d.objid = p.oid
        where p.polrelid = rel
          and d.refclassid in ('pg_class'::regclass, 'pg_proc'::regclass, 'pg_operator'::regclass)
        union
        select d.refclassid, d.refobjid
        from reached r
        cross join lateral (
          select r.class, r.id where r.class in ('pg_proc'::regclass, 'pg_operator'::regclass)
          union all
          -- What it does at writes is nothing that a policy reads.
          select 'pg_rewrite'::regclass, w.oid from pg_rewrite w
          where r.class = 'pg_class'::regclass and w.ev_class = r.id and w.ev_type = '1'
        ) as s (class, id)
        join pg_depend d on d.classid = s.class and d.objid = s.id
        where d.refclassid in ('pg_class'::regclass, 'pg_proc'::regclass, 'pg_operator'::regclass)
      )
      select nullif(concat_ws(E'\n',
        (select string_agg(distinct md5(concat_ws(' ', f.prosrc, f.prosqlbody::text, f.proconfig::text, f.proacl::text,
                                                   f.provolatile, f.proowner, f.prosecdef)), ',')
         from reached r join pg_proc f on f.oid = r.id where r.class = 'pg_proc'::regclass),
        (select string_agg(md5(concat_ws(' ', v.relowner, v.relacl::text, v.reloptions::text, w.ev_action::text,
                                         (select string_agg(a.attnum || ' ' || a.attacl::text, ',' order by a.attnum)
                                          from pg_attribute a where a.attrelid = v.oid))), ',' order by v.oid)
         from reached r join pg_class v on v.oid = r.id and v.relkind = 'v'
         join pg_rewrite w on w.ev_class = v.oid and w.ev_type = '1'
         where r.class = 'pg_class'::regclass)), '')
    ) end
  ))
  );
end
$$;
alter function rowcast.shape(oid) owner to rowcast_owner;
revoke all on function rowcast.shape(oid) from public;
comment on function rowcast.shape(oid) is 'Digest of what images and permissions of a table depend on';

create or replace function rowcast.files(rel oid) returns json
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (
  select coalesce(json_object_agg(r.relid::text, pg_relation_filenode(r.relid) order by r.relid), '{}')
  from rowcast.tree(rel) as r (relid)
  where pg_relation_filenode(r.relid) is not null
  );
end
$$;
alter function rowcast.files(oid) owner to rowcast_owner;
revoke all on function rowcast.files(oid) from public;
comment on function rowcast.files(oid) is 'relfilenode of a table and its partitions';

-- Puts the triggers on a table where they are not as they must be, and leaves those alone that are. Tells
-- whether every change reached the log before, as it was when the table was locked.
--
-- Runs as its caller, because ENABLE ALWAYS needs the table's owner. CREATE TRIGGER waits for writers,
-- and writers would queue behind it: so it waits 50 ms at a time, and gives its locks back between. First
-- the row of rowcast.watched, which says what is needed, then the table; so does everybody who takes both.
drop function if exists rowcast.install(oid, integer);
create function rowcast.install(rel oid, tries integer) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
set client_min_messages = warning
as $$
declare
  tried integer := 0;
  was_captured boolean;
  wanted record;
  there pg_trigger;
  unwanted name;
  before text := current_setting('lock_timeout');
begin
  perform set_config('lock_timeout', '50ms', true);
  loop
    begin
      perform from rowcast.watched w where w.rel = install.rel for update;
      execute format('lock table only %s in share row exclusive mode', rel::regclass);
      was_captured := rowcast.captured(rel);
      for wanted in select * from rowcast.triggers(rel) loop
        select t.* into there from pg_trigger t where t.tgrelid = wanted.relid and t.tgname = wanted.name;
        if there.tgfoid not in (select p.oid from pg_proc p where p.pronamespace = 'rowcast'::regnamespace) then
          raise exception 'table % has a trigger % of somebody else', wanted.relid::regclass, wanted.name
            using errcode = 'duplicate_object',
                  hint = format('alter trigger %I on %s rename to ...;', wanted.name, wanted.relid::regclass);
        end if;
        if (there.tgfoid, there.tgnargs) is distinct from (wanted.function::oid, num_nonnulls(wanted.argument)::smallint)
           and (wanted.relid = rel or wanted.name <> '!rowcast') then
          execute format('create or replace trigger %I ' || wanted.definition || ' execute function %s(%s)',
                         wanted.name, wanted.relid::regclass, wanted.function::regproc, wanted.argument);
          there.tgenabled := 'O';
        end if;
        if there.tgenabled <> wanted.fires then
          execute format('alter table %s enable %s trigger %I', wanted.relid::regclass,
                         case wanted.fires when 'A' then 'always' when 'R' then 'replica' end, wanted.name);
        end if;
      end loop;
      exit;
    exception when lock_not_available then
      tried := tried + 1;
      if tried >= tries then
        perform set_config('lock_timeout', before, true);
        raise exception 'table % is locked by somebody else', rel::regclass
          using errcode = 'lock_not_available',
                hint = 'Look into pg_locks and try again.';
      end if;
      perform pg_sleep(0.02 + random() * 0.03);
    end;
  end loop;
  -- What is there besides loses nothing, but it costs. To drop it waits for readers too; next time, if they stay.
  begin
    for unwanted in
      select t.tgname from rowcast.ours(rel) t
      where t.tgname not in (select w.name from rowcast.triggers(rel) w)
    loop
      execute format('drop trigger %I on %s', unwanted, rel::regclass);
    end loop;
  exception when lock_not_available then
    null;
  end;
  perform set_config('lock_timeout', before, true);
  return was_captured;
end
$$;
alter function rowcast.install(oid, integer) owner to rowcast_owner;
revoke all on function rowcast.install(oid, integer) from public;
comment on function rowcast.install(oid, integer) is 'Puts the capture triggers on a table, and tells whether they were there';

-- Lets the owner of a partitioned table make partitions of it. PostgreSQL copies the triggers on rows to each of them in
-- the name of whoever makes it, who must be allowed to call what they call. So he can put them on other tables of his own,
-- too, which are watched then. Whoever may not grant that is no member of rowcast_owner, and doctor tells of it.
create or replace function rowcast.let_partitions(rel oid) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set client_min_messages = error
as $$
declare
  lacking record;
begin
  for lacking in
    select distinct c.relowner::regrole as owner, f.function
    from rowcast.tree(rel) as r (relid) join pg_class c on c.oid = r.relid and c.relkind = 'p'
    cross join (values ('rowcast.capture()'::regprocedure), ('rowcast.capture_plain()'::regprocedure)) as f (function)
    where not has_function_privilege(c.relowner, f.function, 'execute')
  loop
    -- Of two who grant at once, PostgreSQL fails one.
    perform pg_advisory_xact_lock(7094114, 5);
    begin
      execute format('grant execute on function %s to %s', lacking.function, lacking.owner);
    exception when insufficient_privilege then
      null;
    end;
  end loop;
end
$$;
alter function rowcast.let_partitions(oid) owner to rowcast_owner;
revoke all on function rowcast.let_partitions(oid) from public;
comment on function rowcast.let_partitions(oid) is 'Lets the owner of a partitioned table make partitions of it';

-- capture tells how changes are captured: 'row', each row by itself; 'statement', all rows of a statement
-- together; null leaves it as it is, and 'row' at first.
create or replace function rowcast.watch(rel regclass, capture text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  class pg_class;
  known rowcast.watched;
  was_captured boolean;
begin
  if capture not in ('row', 'statement') then
    raise exception 'there is no capture %', quote_literal(capture)
      using errcode = 'invalid_parameter_value',
            hint = format('select rowcast.watch(%L, ''row''); or ''statement''.', rel::text);
  end if;
  select * into strict class from pg_class where oid = rel;
  if class.relkind not in ('r', 'p') or class.relpersistence = 't' then
    raise exception '% cannot be watched: only tables can', rel
      using errcode = 'wrong_object_type',
            hint = 'Watch the tables behind a view; temporary and foreign tables cannot be watched.';
  end if;
  if class.relnamespace in ('pg_catalog'::regnamespace, 'information_schema'::regnamespace, 'rowcast'::regnamespace) then
    raise exception '% cannot be watched: it belongs to the system', rel
      using errcode = 'wrong_object_type';
  end if;
  if class.relispartition then
    raise exception '% is a partition', rel
      using errcode = 'wrong_object_type',
            hint = format('select rowcast.watch(%L);', pg_partition_root(rel)::text);
  end if;
  if class.relkind = 'r' and exists (select from pg_inherits where inhparent = rel) then
    raise exception '% has children by inheritance: it would show their rows and not follow them', rel
      using errcode = 'wrong_object_type',
            hint = 'Watch the children, or make it a partitioned table.';
  end if;
  if not exists (select from pg_index where indrelid = rel and indisprimary) then
    raise exception '% has no primary key, so its rows cannot be told apart', rel
      using errcode = 'object_not_in_prerequisite_state',
            hint = format('alter table %s add primary key (...);', rel);
  end if;
  if capture = 'statement' and rowcast.obstacle(rel) is not null then
    raise exception '% cannot be captured by statement: %', rel, rowcast.obstacle(rel)
      using errcode = 'wrong_object_type',
            hint = format('select rowcast.watch(%L);', rel::text);
  end if;
  perform rowcast.let_partitions(rel);
  insert into rowcast.watched (rel, shape, files, by_statement)
  values (rel, '', '{}', exists (select from rowcast.ours(rel) t where t.tgname = '!rowcast_update'))
  on conflict do nothing;
  select w.* into strict known from rowcast.watched w where w.rel = watch.rel for update;
  if known.by_statement <> (capture = 'statement') then
    update rowcast.watched w set by_statement = (capture = 'statement') where w.rel = watch.rel;
  elsif known.shape <> '' and rowcast.captured(rel) and rowcast.suited(rel) then
    return;
  end if;
  was_captured := rowcast.install(rel, 100);
  -- Nobody writes between one way of capturing and the other, so nothing has to be read anew then.
  if known.shape = '' or not was_captured then
    update rowcast.watched w set shape = rowcast.shape(w.rel), files = rowcast.files(w.rel) where w.rel = watch.rel;
    perform rowcast.reset(rel);
  end if;
end
$$;
alter function rowcast.watch(regclass, text) owner to rowcast_owner;
revoke all on function rowcast.watch(regclass, text) from public;
comment on function rowcast.watch(regclass, text) is 'Makes a table live, and says whether its changes are captured by row or by statement';

create or replace function rowcast.watch(rel regclass) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  select rowcast.watch(rel, null)
$$;
alter function rowcast.watch(regclass) owner to rowcast_owner;
revoke all on function rowcast.watch(regclass) from public;
comment on function rowcast.watch(regclass) is 'Makes a table live: its changes reach every screen. Doing it twice changes nothing';

create or replace function rowcast.unwatch(rel regclass, tries integer) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set client_min_messages = warning
as $$
declare
  tried integer := 0;
  trigger record;
  before text := current_setting('lock_timeout');
begin
  -- Dropping a trigger waits for readers too, and everybody would queue behind it.
  perform set_config('lock_timeout', '50ms', true);
  loop
    begin
      perform from rowcast.watched w where w.rel = unwatch.rel for update;
      for trigger in
        select t.tgrelid::regclass as leaf, t.tgname from rowcast.tree(rel) as r (relid)
        cross join rowcast.ours(r.relid) t
        where t.tgparentid = 0
      loop
        execute format('drop trigger if exists %I on %s', trigger.tgname, trigger.leaf);
      end loop;
      exit;
    exception when lock_not_available then
      tried := tried + 1;
      if tried >= tries then
        raise exception 'table % is locked by somebody else', rel
          using errcode = 'lock_not_available',
                hint = 'Look into pg_locks and try again.';
      end if;
      perform pg_sleep(0.02 + random() * 0.03);
    end;
  end loop;
  perform set_config('lock_timeout', before, true);
  delete from rowcast.watched w where w.rel = unwatch.rel;
  if found then
    perform rowcast.reset(rel);
  end if;
end
$$;
alter function rowcast.unwatch(regclass, integer) owner to rowcast_owner;
revoke all on function rowcast.unwatch(regclass, integer) from public;
comment on function rowcast.unwatch(regclass, integer) is 'Takes back what watch did, where its locks can be had in so many tries';

create or replace function rowcast.unwatch(rel regclass) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  select rowcast.unwatch(rel, 100)
$$;
alter function rowcast.unwatch(regclass) owner to rowcast_owner;
revoke all on function rowcast.unwatch(regclass) from public;
comment on function rowcast.unwatch(regclass) is 'Takes back what watch did';

-- Looks whether watched tables changed in ways that no trigger saw, repairs what it can and writes a
-- reset for each such table. One relay at a time; returns one line a finding, for the relay's log.
create or replace function rowcast.check_drift() returns setof text
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '50ms'
as $$
declare
  known record;
  there boolean;
  kind "char";
  has_children boolean;
  captured boolean;
  suited boolean;
  now_shape text;
  now_files json;
  rewritten boolean;
  repaired boolean := false;
begin
  -- What a dump brought from elsewhere is none of ours: begin_epoch() clears it away.
  if not pg_try_advisory_xact_lock(7094114, 1)
     or not exists (select from rowcast.state s where s.place = rowcast.place()) then
    return;
  end if;
  -- What was prepared before a crash and is over now: nobody knows what it wrote.
  if exists (select from rowcast.state s, unnest(s.prepared) as p (xact)
             where p.xact not in (select rowcast.prepared())) then
    begin
      update rowcast.state s set prepared = array(
        select p.xact from unnest(s.prepared) as p (xact) where p.xact in (select rowcast.prepared()));
      perform rowcast.reset();
      return next 'a transaction that was prepared before a crash is over: every screen reads its state anew';
    exception when lock_not_available then
      null;
    end;
  end if;
  -- Tables that have our triggers and are not known: they came with a dump.
  begin
    for known in
      insert into rowcast.watched (rel, shape, files, by_statement)
      select c.oid, '', '{}', exists (select from rowcast.ours(c.oid) s where s.tgname = '!rowcast_update')
      from pg_trigger t join pg_class c on c.oid = t.tgrelid
      where t.tgname = '!rowcast' and t.tgparentid = 0
        and t.tgfoid in (select p.oid from pg_proc p where p.pronamespace = 'rowcast'::regnamespace)
        and not exists (select from rowcast.watched w where w.rel = c.oid)
        and c.relkind in ('r', 'p') and c.relpersistence <> 't' and not c.relispartition
        and exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary)
      on conflict do nothing
      returning *
    loop
      return next format('%s has triggers and was not known: it is watched', known.rel::regclass);
    end loop;
  exception when lock_not_available then
    -- Somebody watches one at this moment.
    null;
  end;
  for known in select w.* from rowcast.watched w order by w.rel loop
    select c.relkind into kind from pg_class c where c.oid = known.rel;
    there := found;
    if there then
      now_shape := rowcast.shape(known.rel);
      now_files := rowcast.files(known.rel);
      suited := rowcast.suited(known.rel);
      captured := suited;
      if not suited or kind = 'p' then
        captured := rowcast.captured(known.rel);
      end if;
      has_children := kind = 'r' and exists (select from pg_inherits i where i.inhparent = known.rel);
      continue when captured and suited and not has_children
        and now_shape = known.shape and now_files::text = known.files::text;
    end if;
    -- Whoever watches it at this moment looks at it too; the others next time.
    perform from rowcast.watched w where w.rel = known.rel for update skip locked;
    continue when not found;
    if not there then
      delete from rowcast.watched w where w.rel = known.rel;
      perform rowcast.reset(known.rel);
      return next format('table with oid %s was dropped', known.rel);
      continue;
    end if;
    if has_children then
      -- watch() refuses it: screens would show rows that are not followed.
      begin
        perform rowcast.unwatch(known.rel, 1);
        return next format('%s has children by inheritance now: it is no longer watched', known.rel::regclass);
        exit;
      exception when others then
        perform rowcast.reset(known.rel);
        return next format('%s has children by inheritance now and should be unwatched: %s', known.rel::regclass, sqlerrm);
        continue;
      end;
    end if;
    if not captured then
      begin
        perform rowcast.install(known.rel, 1);
        repaired := true;
        return next format('triggers of %s were missing or disabled and are back', known.rel::regclass);
      exception when others then
        -- It was dropped at this moment, has no name any more, and is found gone next time.
        continue when not exists (select from pg_class c where c.oid = known.rel);
        return next format('triggers of %s are missing or disabled: %s', known.rel::regclass, sqlerrm);
        -- A new partition has the trigger on rows from the start, and not the one on truncations. Its file tells of
        -- these until somebody who owns the table watches it again.
        captured := rowcast.captured_rows(known.rel);
      end;
      continue when captured and now_shape = known.shape and now_files::text = known.files::text;
    end if;
    if not captured then
      -- Changes that nobody captured may have been made meanwhile, also while we cannot repair.
      perform rowcast.reset(known.rel);
      now_shape := rowcast.shape(known.rel);
    elsif now_shape <> known.shape then
      perform rowcast.reset(known.rel);
      if known.shape <> '' then
        return next format('definition or permissions of %s changed', known.rel::regclass);
      end if;
    elsif now_files::text <> known.files::text then
      select exists (
        select from json_each_text(now_files) f
        where f.value is distinct from known.files ->> f.key
          and not exists (select from rowcast.log l
                          where l.rel = f.key::oid and l.op = 'T' and l.new #>> '{}' = f.value)
      ) into rewritten;
      if rewritten then
        perform rowcast.reset(known.rel);
        return next format('%s was rewritten', known.rel::regclass);
      end if;
    else
      -- Its images are the same as before, so nothing has to be read anew.
      begin
        if not rowcast.install(known.rel, 1) then
          perform rowcast.reset(known.rel);
        end if;
        if not rowcast.suited(known.rel) then
          raise lock_not_available;
        end if;
        repaired := true;
      exception when others then
        -- Somebody has the table: next time, and its locks are given back.
        continue;
      end;
    end if;
    update rowcast.watched w set shape = now_shape, files = now_files where w.rel = known.rel;
    -- A repair's locks last until the transaction ends: one at a time, and the others next time.
    exit when repaired;
  end loop;
end
$$;
alter function rowcast.check_drift() owner to rowcast_owner;
revoke all on function rowcast.check_drift() from public;
comment on function rowcast.check_drift() is 'Finds and repairs watched tables that changed behind the triggers'' back';

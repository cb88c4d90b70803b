-- Who may use tables.sql, where a token says who one is.
do $$
declare
  name text;
begin
  -- Roles belong to the whole cluster, so another test may have made them.
  foreach name in array array['client_anon nologin', 'client_member nologin', 'client_api login noinherit'] loop
    begin
      execute 'create role ' || name;
    exception when duplicate_object or unique_violation then
      null;
    end;
  end loop;
end $$;
grant client_anon, client_member to client_api;
grant usage on schema archive to client_member;
grant select, insert, update, delete on tasks, things, archive.tasks to client_member;
create table own (id int primary key, owner text default current_setting('request.jwt.claims', true)::json->>'sub', note text);
alter table own enable row level security;
create policy own on own to client_member using (owner = current_setting('request.jwt.claims', true)::json->>'sub');
grant select, insert, update, delete on own to client_member;
select rowcast.expose('own');

-- Who may do what, for identity.txt. Roles belong to the whole cluster, so another test may have made them.

do $$
declare
  name text;
begin
  foreach name in array array['dialect_anon nologin', 'dialect_member nologin', 'dialect_stranger nologin', 'dialect_bypass nologin bypassrls', 'dialect_api login noinherit'] loop
    begin
      execute 'create role ' || name;
    exception when duplicate_object or unique_violation then
      null;
    end;
  end loop;
end $$;
grant dialect_anon, dialect_member, dialect_bypass to dialect_api;

create table cards (id int primary key, owner text not null default current_setting('request.jwt.claims', true)::json->>'sub', text text, secret text default 's');
alter table cards enable row level security;
create policy own on cards to dialect_member using (owner = current_setting('request.jwt.claims', true)::json->>'sub');
create policy of_team on cards for select to dialect_member
  using (owner = any (array(select json_array_elements_text(current_setting('request.jwt.claims', true)::json->'team'))));
grant select (id, owner, text), insert (id, owner, text), update (text), delete on cards to dialect_member;
grant select on boards, tasks to dialect_anon, dialect_member;
grant insert, update, delete on boards to dialect_member;
grant insert on raises to dialect_member;
revoke execute on function greet(text) from public;
grant execute on function greet(text) to dialect_member;
select rowcast.expose('cards');

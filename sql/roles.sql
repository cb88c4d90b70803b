-- Logins for production. Run it once as a superuser, after `rowcast sql | psql`, and give both a password:
--   alter role rowcast_listen password '…'; alter role rowcast_api password '…';
--
-- rowcast_listen reads and keeps the log (DATABASE_URL). It may read no table of yours: a row that was
-- logged by key, because it exceeds 256 KiB, is then told without its value. Nor may it repair triggers:
-- until rowcast.watch is run again, the truncation of a new partition alone is told two seconds late. After a
-- partitioned table has got another owner, run it as well, so that he can make partitions. Upgrades are installed by
-- who installed.
--
-- rowcast_api runs the requests (ROWCAST_API_URL). By itself it may do nothing; each request becomes
-- the role that its token names. Grant it the roles of your users, and no other:
--   grant web_anon, web_user to rowcast_api;
do $$
begin
  if not exists (select from pg_roles where rolname = 'rowcast_listen') then
    create role rowcast_listen login;
  end if;
  if not exists (select from pg_roles where rolname = 'rowcast_api') then
    create role rowcast_api login noinherit;
  end if;
end
$$;
grant rowcast_owner to rowcast_listen;

-- What the clients' tests work with.
create table tasks (id int primary key, board_id int not null, title text not null, done boolean not null default false, due date);
create table things (id int primary key, tags text[], detail jsonb, span int4range, words tsvector, label text unique default 'fresh');
create schema archive;
create table archive.tasks (id int primary key, old text);
insert into archive.tasks values (1, 'yes');
create function add(a int, b int default 10) returns int language sql immutable as 'select a + b';
create function of_board(board int) returns setof tasks language sql stable as 'select * from tasks where board_id = board';
create function finish(task int) returns void language sql as 'update tasks set done = true where id = task';
create function teapot() returns int language plpgsql as $$ begin raise exception 'short and stout' using errcode = 'PT418'; end $$;
select rowcast.watch('tasks'), rowcast.expose('things'), rowcast.expose('archive.tasks');
select rowcast.expose_function(f::regprocedure) from unnest(array['add(int,int)', 'of_board(int)', 'finish(int)', 'teapot()']) f;

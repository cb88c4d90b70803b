truncate boards, tasks, kinds, shelves, counted, generated, loose, books, archive.notes, archive.boards,
  "odd ""t"" 100% ☃", "new
line", "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", "a/b", "select" restart identity;
insert into boards values (1, 'home', null), (2, 'work', 'weekdays');
insert into tasks values
  (1, 'milk', false, 1, '2026-01-02', 1.5, '{a,b}', '{"n":1,"deep":{"k":["x","y"]},"two words":"w"}'),
  (2, 'Milk, bread', true, 1, null, 2.50, '{}', '{"n":2,"s":"text"}'),
  (3, 'call (Ann)', false, 2, '2026-01-01', null, null, null),
  (4, 'a"b\c', false, 2, null, -1, '{c}', '[7,8]'),
  (5, null, true, null, '2026-03-01', 10, '{a,"x,y"}', '"str"');
insert into kinds values
  (1, 'NaN', 'NaN', 9007199254740993, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'ok', '2026-11-23', '2026-11-23 12:00:00.5+00', '2026-11-23 12:00', '12:30', '1 day 02:00',
   '\xff00', '{1,2,NULL}', '{{1,2},{3,4}}', '[1,5)', '{"b": 1,  "a": 1.10}', '{"b":1,"a":1.10}', 'brief', 'ab', '10.0.0.1'),
  (2, 'Infinity', 0.10, -9223372036854775808, null, 'sad', 'infinity', 'infinity', '-infinity', '24:00', '0', '\x', '{}', null, 'empty', 'null', 'null', '', '', '::1/64'),
  (3, '-0', 123456789012345678901234567890.5, 0, '00000000-0000-0000-0000-000000000000', 'happy', '0044-03-15 BC', '2026-01-01 00:00+00', '2026-01-01', '00:00', '-1 mon',
   null, '{7}', null, '[10,20)', '[1, 2]', '[1,2]', null, null, null);
insert into kinds values (4);
insert into shelves values (1, 'top', 'full'), (1, 'low, left', null), (2, 'top', 'empty');
insert into counted (label, amount) values ('one', 1), ('two', 2);
insert into generated values (1, 5);
insert into loose values (1, 'a'), (2, 'b'), (2, 'b');
insert into books values (1, 'The fat cats sat on a mat'), (2, 'A fat rat ran'), (3, 'cats and dogs rain');
insert into archive.notes values (1, 'old');
insert into archive.boards values (9, true);
insert into "odd ""t"" 100% ☃" values
  (1, 'space', 'quote', 'line', 100, 'snow', 'long', 'accents', 'dot', 'comma', 'paren', 'colon', 'arrow', 'slash', 'dollar', 1, 'upper', 'drop');
insert into "odd ""t"" 100% ☃" values (2, 'other');
insert into "new
line" values (1);
insert into "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx" values (63);
insert into "a/b" values (1);
insert into "select" values (1, 2);

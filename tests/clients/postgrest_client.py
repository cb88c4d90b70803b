"""The Python package `postgrest`, unchanged, against the relay.

Usage: postgrest_client.py; ROWCAST_URL tells where the relay is, ROWCAST_MEMBER_TOKEN and ROWCAST_OTHER_TOKEN who asks.
Its tables are in tables.sql and roles.sql.
"""

import os
import unittest

from postgrest import SyncPostgrestClient
from postgrest.exceptions import APIError
from postgrest.types import CountMethod, ReturnMethod

REST = os.environ["ROWCAST_URL"] + "/rest/v1"
TASKS = [
    {"id": 1, "board_id": 7, "title": "one", "done": False, "due": None},
    {"id": 2, "board_id": 7, "title": "two, with (care)", "done": True, "due": "2026-01-02"},
    {"id": 3, "board_id": 8, "title": "three", "done": False, "due": "2026-01-01"},
    {"id": 4, "board_id": 9, "title": "four", "done": True, "due": None},
]
THINGS = [
    {"id": 1, "tags": ["a"], "detail": {"size": 1}, "span": "[1,5)", "words": "'cat':3 'fat':2", "label": "one"},
    {"id": 2, "tags": ["a", "b"], "detail": {"size": 2}, "span": "[10,20)", "words": "'cat':1 'dog':2", "label": "two"},
]


def client(token):
    made = SyncPostgrestClient(REST)
    made.auth(token)
    return made


def ids(answer):
    return [row["id"] for row in answer.data]


class Ring0(unittest.TestCase):
    def setUp(self):
        self.db = client(os.environ["ROWCAST_MEMBER_TOKEN"])
        for table, rows in (("tasks", TASKS), ("things", THINGS)):
            self.db.from_(table).delete().gte("id", 0).execute()
            self.db.from_(table).insert(rows).execute()

    def read(self, table="tasks"):
        return self.db.from_(table).select("id").order("id")

    def fails(self, code, request):
        with self.assertRaises(APIError) as caught:
            request.execute()
        self.assertEqual(caught.exception.code, code)
        self.assertIsInstance(caught.exception.message, str)

    def test_rows(self):
        answer = self.db.from_("tasks").select("*").order("id").execute()
        self.assertEqual(answer.data, TASKS)
        answer = self.db.from_("tasks").select("key:id::text", "title").eq("id", 1).execute()
        self.assertEqual(answer.data, [{"key": "1", "title": "one"}])
        answer = self.db.from_("things").select("detail->size").order("id", desc=True).execute()
        self.assertEqual(answer.data, [{"size": 2}, {"size": 1}])

    def test_filters(self):
        read = self.read
        for request, expected in (
            (read().eq("board_id", 7), [1, 2]),
            (read().neq("board_id", 7), [3, 4]),
            (read().gt("id", 1).lt("id", 4), [2, 3]),
            (read().gte("id", 2).lte("id", 3), [2, 3]),
            (read().like("title", "t%"), [2, 3]),
            (read().ilike("title", "%O%"), [1, 2, 4]),
            (read().like_any_of("title", "o%,f%"), [1, 4]),
            (read().like_all_of("title", "t%,%ee"), [3]),
            (read().ilike_any_of("title", "O%,F%"), [1, 4]),
            (read().is_("due", "null"), [1, 4]),
            (read().is_("done", "true"), [2, 4]),
            (read().not_.is_("due", "null"), [2, 3]),
            (read().in_("title", ["two, with (care)", "four"]), [2, 4]),
            (read().in_("id", []), []),
            (read().not_.in_("id", [1, 2]), [3, 4]),
            (read().or_("id.eq.1,and(done.is.true,board_id.eq.9)"), [1, 4]),
            (read().or_('title.eq."two, with (care)",id.eq.3'), [2, 3]),
            (read().match({"board_id": 7, "done": "true"}), [2]),
            (read("things").contains("tags", ["a"]), [1, 2]),
            (read("things").contains("detail", {"size": 1}), [1]),
            (read("things").contained_by("tags", ["a"]), [1]),
            (read("things").overlaps("tags", ["a", "z"]), [1, 2]),
            (read("things").range_lt("span", [7, 9]), [1]),
            (read("things").range_adjacent("span", [4, 10]), [1, 2]),
            (read("things").filter("detail->size", "gt", "1"), [2]),
            (read("things").fts("words", "cat & fat"), [1]),
            (read("things").plfts("words", "cat dog"), [2]),
            (read("things").wfts("words", "fat or dog"), [1, 2]),
        ):
            self.assertEqual(ids(request.execute()), expected, request.request.params)

    def test_windows_and_counts(self):
        self.assertEqual(ids(self.read().limit(2).offset(1).execute()), [2, 3])
        self.assertEqual(ids(self.read().range(1, 2).execute()), [2, 3])
        answer = self.db.from_("tasks").select("id", count=CountMethod.exact).order("id").limit(1).execute()
        self.assertEqual((answer.count, ids(answer)), (4, [1]))
        head = self.db.from_("tasks").select("id", count=CountMethod.exact, head=True).eq("board_id", 7).execute()
        self.assertEqual(head.count, 2)

    def test_one_object(self):
        one = self.db.from_("tasks").select("title").eq("id", 1)
        self.assertEqual(one.single().execute().data, {"title": "one"})
        self.assertIsNone(self.db.from_("tasks").select("*").eq("id", 99).maybe_single().execute())
        self.fails("PGRST116", self.db.from_("tasks").select("*").single())

    def test_writes(self):
        tasks = self.db.from_
        answer = tasks("tasks").insert({"id": 10, "board_id": 1, "title": "ten"}).execute()
        self.assertEqual(answer.data, [{"id": 10, "board_id": 1, "title": "ten", "done": False, "due": None}])
        silent = tasks("tasks").insert({"id": 11, "board_id": 1, "title": "e"}, returning=ReturnMethod.minimal).execute()
        self.assertEqual(silent.data, [])
        defaults = tasks("things").insert([{"id": 20}, {"id": 21, "label": "given"}], default_to_null=False).execute()
        self.assertEqual([row["label"] for row in defaults.data], ["fresh", "given"])
        answer = tasks("tasks").update({"done": True}, count=CountMethod.exact).eq("board_id", 7).execute()
        self.assertEqual((answer.count, sorted(ids(answer))), (2, [1, 2]))
        answer = tasks("tasks").upsert({"id": 1, "board_id": 7, "title": "uno"}).execute()
        self.assertEqual(answer.data[0]["title"], "uno")
        answer = tasks("things").upsert({"id": 9, "label": "one"}, on_conflict="label", ignore_duplicates=True).execute()
        self.assertEqual(answer.data, [])
        answer = tasks("tasks").delete(count=CountMethod.exact).eq("board_id", 7).execute()
        self.assertEqual((answer.count, sorted(ids(answer))), (2, [1, 2]))
        self.fails("PGRST124", tasks("tasks").delete().gt("id", 0).max_affected(1))

    def test_calls(self):
        self.assertEqual(self.db.rpc("add", {"a": 1, "b": 2}).execute().data, 3)
        self.assertEqual(self.db.rpc("add", {"a": "1"}, get=True).execute().data, 11)
        self.assertEqual(ids(self.db.rpc("of_board", {"board": 7}).select("id").gt("id", 1).execute()), [2])
        self.fails("PGRST202", self.db.rpc("nowhere", {}))

    def test_errors(self):
        tasks = self.db.from_("tasks")
        self.fails("23505", tasks.insert(TASKS[0]))
        self.fails("42703", tasks.select("colour"))
        self.fails("22P02", tasks.select("id").eq("id", "x"))
        self.fails("PGRST205", self.db.from_("nowhere").select("*"))
        self.fails("PGRST127", tasks.select("id,boards(name)"))

    def test_another_schema(self):
        answer = self.db.schema("archive").from_("tasks").select("old").execute()
        self.assertEqual(answer.data, [{"old": "yes"}])

    def test_who_asks(self):
        own = self.db.from_("own").insert({"id": 7, "note": "mine"}).execute()
        self.assertEqual(own.data, [{"id": 7, "owner": "ann", "note": "mine"}])
        other = client(os.environ["ROWCAST_OTHER_TOKEN"])
        self.assertEqual(other.from_("own").select("*").execute().data, [])
        self.db.from_("own").delete().eq("id", 7).execute()
        self.fails("PGRST301", client("nonsense").from_("tasks").select("*"))


if __name__ == "__main__":
    unittest.main()

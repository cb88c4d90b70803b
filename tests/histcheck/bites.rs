//! Does the checker bite? A small history that holds, and what it becomes when a relay loses,
//! repeats, tears, invents or hides something: each must be found, and by the invariant that is
//! named for it.

use std::sync::Arc;

use crate::check::{Evidence, Fired, judge};
use crate::record::{Intent, Kind, Note, Outcome, Record, Texts, Transport, Way};
use crate::tables::{Row, Table, View, Who, canary};
use crate::truth::{Line, Truth};

const SECOND: u64 = 1_000_000;
/// 2026-11-28 00:00:00 UTC.
const MIDNIGHT: u64 = 1_795_824_000 * SECOND;
const EPOCH: &str = "AAAAAAAAAAA";
const OTHER_EPOCH: &str = "BBBBBBBBBBA";

/// A mistake, and the invariant that must find it.
type Mistake = (&'static str, &'static str, fn(&mut History));

/// One screen's notes as texts, to be changed before they are judged.
struct History {
    view: View,
    /// When, kind of event, id, data.
    events: Vec<(u64, &'static str, String, String)>,
    intents: Vec<Intent>,
    faults: Vec<Fired>,
    lines: Vec<Line>,
    ends: Vec<u64>,
    written: String,
}

fn id(xmax: u64) -> String {
    format!("{EPOCH}.CCCCCCCCCCA.{xmax:x}")
}

fn element(table: &str, key: &str, row: &str, operation: &str, xid: u64) -> String {
    format!(
        r#"{{"type":"public.{table}","key":"{key}","value":{row},"headers":{{"operation":"{operation}","txid":"{xid}"}}}}"#
    )
}

/// Transactions 100 to 104, a tenth of a second after each other. Each moves 10 from account 0 to account 1,
/// grows a list and counts a register up; each screen looks at one of the tables.
fn lines() -> Vec<Line> {
    let mut lines = Vec::new();
    let mut lsn = 10;
    let mut line = |xid: u64, text: String| {
        lsn += 10;
        lines.push((lsn, xid, text));
    };
    let sets = |xid: u64| {
        let n = i64::try_from(xid).unwrap() - 100;
        let list: Vec<String> = (1..=n).map(|e| e.to_string()).collect();
        [
            (
                Table::Acct,
                "0",
                format!("k[integer]:0 bal[bigint]:{} tx[bigint]:{xid}", 500 - 10 * n),
            ),
            (
                Table::Acct,
                "1",
                format!("k[integer]:1 bal[bigint]:{} tx[bigint]:{xid}", 500 + 10 * n),
            ),
            (
                Table::List,
                "0",
                format!(
                    "k[integer]:0 elems[bigint[]]:'{{{}}}' tx[bigint]:{xid}",
                    list.join(",")
                ),
            ),
            (
                Table::Reg,
                "0",
                format!("k[integer]:0 v[bigint]:{n} tx[bigint]:{xid}"),
            ),
            (
                Table::Doc,
                "0",
                format!("id[integer]:0 tenant[text]:'t0' body[text]:'it''s {n}' tx[bigint]:{xid}"),
            ),
        ]
    };
    for xid in 100..105 {
        line(xid, "BEGIN".into());
        line(
            xid,
            format!("table public.hc_tx: INSERT: tx[bigint]:{xid} writer[integer]:0"),
        );
        for (table, _, row) in sets(xid) {
            let operation = if xid == 100 { "INSERT" } else { "UPDATE" };
            line(
                xid,
                format!("table public.{}: {operation}: {row}", table.name()),
            );
        }
        line(
            xid,
            format!("COMMIT (at 2026-11-28 00:00:00.{}5+00)", xid - 100),
        );
    }
    lines
}

/// What a screen of one of these tables is told, and what the writer was.
fn history(table: Table) -> History {
    let lines = lines();
    let truth = Truth::of(lines.iter().cloned(), &[]);
    let json = |place: usize, key: &str| {
        let (_, row) = truth.versions[&table][key]
            .iter()
            .find(|(version, _)| *version == place)
            .expect("each transaction writes each key");
        let members = row.as_ref().expect("nothing is deleted").0.iter();
        let members = members.map(|(name, value)| {
            let is_text = matches!(&**name, "tenant" | "body");
            let value = value.replace('{', "[").replace('}', "]");
            if is_text {
                format!("\"{name}\":\"{value}\"")
            } else {
                format!("\"{name}\":{value}")
            }
        });
        format!("{{{}}}", members.collect::<Vec<_>>().join(","))
    };
    let keys: &[&str] = if table == Table::Acct {
        &["0", "1"]
    } else {
        &["0"]
    };
    let mut events = Vec::new();
    for place in 0..5_usize {
        let xid = 100 + place as u64;
        let operation = if place == 0 { "insert" } else { "update" };
        let rows = keys
            .iter()
            .map(|key| element(table.name(), key, &json(place, key), operation, xid));
        let mut rows: Vec<String> = rows.collect();
        if place == 0 {
            rows.insert(0, r#"{"headers":{"control":"snapshot-start"}}"#.into());
            rows.push(r#"{"headers":{"control":"snapshot-end"}}"#.into());
        }
        let at = MIDNIGHT + place as u64 * 100_000 + 60_000;
        events.push((at, "data", id(xid + 1), format!("[{}]", rows.join(","))));
        if place == 0 || place == 4 {
            events.push((
                at + 1,
                "control",
                id(xid + 1),
                r#"{"upToDate":true,"lag_ms":1}"#.into(),
            ));
        }
    }
    let intents = (100..105).map(|xid| Intent {
        tx: xid,
        writer: 0,
        way: Way::Direct,
        asynchronous: false,
        begun: MIDNIGHT,
        ended: MIDNIGHT + SECOND,
        outcome: Outcome::Committed(Some(u64::try_from(xid).expect("positive"))),
    });
    History {
        view: View {
            table,
            filter: None,
            who: if table == Table::Doc {
                Who::Tenant(0)
            } else {
                Who::Visitor
            },
        },
        events,
        intents: intents.collect(),
        faults: Vec::new(),
        lines,
        ends: Vec::new(),
        written: String::new(),
    }
}

impl History {
    /// The invariants that are violated.
    fn violated(&self) -> Vec<&'static str> {
        let texts = Texts::default();
        let mut notes = vec![(MIDNIGHT, Note::Opened { relay: 0, id: None })];
        for (at, kind, id, text) in &self.events {
            let (id, text) = (texts.keep(id), texts.keep(text));
            let note = match *kind {
                "data" => Note::Data { id, text },
                "control" => Note::Control { id, text },
                _ => Note::Opened {
                    relay: 1,
                    id: Some(id),
                },
            };
            notes.push((*at, note));
        }
        let truth = Truth::of(self.lines.iter().cloned(), &self.ends);
        let last = |key: &Arc<str>| -> Option<Arc<Row>> {
            truth.versions[&self.view.table][key].last()?.1.clone()
        };
        let finals = truth.versions[&self.view.table].keys().filter_map(last);
        let finals = [(self.view, finals.collect())].into();
        let evidence = Evidence {
            records: vec![Record {
                number: 0,
                kind: Kind::Steady,
                transport: Transport::Http1,
                view: self.view,
                notes,
            }],
            texts: texts.all(),
            intents: self.intents.clone(),
            faults: self.faults.clone(),
            finals,
            stopped: MIDNIGHT + 5 * SECOND,
            ended: MIDNIGHT + 60 * SECOND,
            written: vec![("a log".into(), self.written.clone())],
            truth,
            ..Evidence::default()
        };
        let verdict = judge(&evidence);
        let findings = verdict.findings.iter();
        findings
            .filter(|(_, finding)| finding.violated > 0)
            .map(|(invariant, _)| *invariant)
            .collect()
    }

    fn replace(&mut self, event: usize, from: &str, to: &str) {
        let text = &mut self.events[event].3;
        assert!(text.contains(from), "{text} has {from}");
        *text = text.replace(from, to);
    }
}

/// On the register's screen: 0 is the state, 1 a control, 2 to 5 the events, 6 a control.
const MISTAKES: [Mistake; 17] = [
    ("an event is lost", "I01", |h| {
        h.events.remove(3);
    }),
    (
        "the id of an event stands for the next one too",
        "I01",
        |h| {
            h.events[3].2 = h.events[4].2.clone();
        },
    ),
    ("a heartbeat overtakes an event", "I01", |h| {
        let control = (h.events[2].0 + 1, "control", id(105), h.events[1].3.clone());
        h.events.insert(3, control);
    }),
    ("another epoch without a reset", "I01", |h| {
        for event in &mut h.events[4..] {
            event.2 = event.2.replace(EPOCH, OTHER_EPOCH);
        }
    }),
    ("a row that nobody committed", "I02", |h| {
        h.replace(3, "\"tx\":102", "\"tx\":777");
    }),
    ("a transaction that nobody committed", "I02", |h| {
        h.replace(3, "\"txid\":\"102\"", "\"txid\":\"99\"");
    }),
    ("an acknowledged transaction is gone", "I02", |h| {
        h.intents[0].tx = 4711;
    }),
    ("an event comes twice", "I03", |h| {
        let mut again = h.events[3].clone();
        again.0 += 1;
        h.events.insert(4, again);
    }),
    ("an event is wrong and the next one hides it", "I04", |h| {
        h.replace(3, "\"v\":2", "\"v\":9");
    }),
    ("two events change places", "I07", |h| h.events.swap(3, 4)),
    ("a resume starts too late", "I01", |h| {
        let (at, id) = (h.events[5].0, h.events[4].2.clone());
        h.events[5] = (at, "opened", id, String::new());
    }),
    ("a write is told as another transaction", "I08", |h| {
        h.intents[0].outcome = Outcome::Committed(Some(1));
    }),
    ("the last event never comes", "I09", |h| {
        h.events.remove(5);
        h.events[5].2 = id(104);
    }),
    (
        "heartbeats say that all is well, and it is not",
        "I10",
        |h| {
            h.events.truncate(2);
            let control = h.events[1].clone();
            for second in 1..50 {
                let at = control.0 + second * SECOND;
                h.events
                    .push((at, "control", control.2.clone(), control.3.clone()));
            }
        },
    ),
    ("a secret is in a log", "I11", |h| {
        h.written = format!("about {}", canary(2));
    }),
    ("a writer fails for no reason", "I12", |h| {
        h.intents[0].tx = 999;
        h.intents[0].outcome = Outcome::Failed {
            why: "XX000".into(),
            by_concurrency: false,
        };
    }),
    ("a screen never comes back", "I14", |h| {
        h.events.truncate(2);
        h.faults.push(Fired {
            kind: "a fault",
            target: String::new(),
            begun: MIDNIGHT + 3 * SECOND,
            healed: MIDNIGHT + 4 * SECOND,
            ready: Vec::new(),
            evidence: Some("seen".into()),
            harms_postgres: false,
        });
    }),
];

pub fn bite() {
    for table in [Table::Reg, Table::Acct, Table::List, Table::Doc] {
        assert_eq!(
            history(table).violated(),
            Vec::<&str>::new(),
            "{table:?} holds"
        );
    }
    for (what, invariant, make) in MISTAKES {
        let mut history = history(Table::Reg);
        make(&mut history);
        let found = history.violated();
        assert!(
            found.contains(&invariant),
            "{what}: {invariant} and not {found:?}"
        );
    }
    // Half of a transfer, of which the other half follows under the same id.
    let mut torn = history(Table::Acct);
    let (at, kind, id, text) = torn.events[3].clone();
    let (first, second) = text.split_once("},{\"type\"").expect("two rows");
    torn.events[3] = (at, kind, id.clone(), format!("{first}}}]"));
    torn.events
        .insert(4, (at + 1, kind, id, format!("[{{\"type\"{second}")));
    assert!(torn.violated().contains(&"I05"), "{:?}", torn.violated());
    // Two histories of one list.
    let mut forked = history(Table::List);
    forked.replace(3, "[1,2]", "[2,1]");
    assert!(
        forked.violated().contains(&"I06"),
        "{:?}",
        forked.violated()
    );
    // Another tenant's secret, and another tenant's row.
    let mut leaking = history(Table::Doc);
    leaking.replace(3, "it's 2", &canary(1));
    assert!(
        leaking.violated().contains(&"I11"),
        "{:?}",
        leaking.violated()
    );
    let mut foreign = history(Table::Doc);
    foreign.view.who = Who::Tenant(1);
    assert!(
        foreign.violated().contains(&"I01"),
        "{:?}",
        foreign.violated()
    );
    // A token from before a crash, taken for one of after it.
    let mut crashed = history(Table::Reg);
    crashed.ends = vec![crashed.lines[crashed.lines.len() / 2].0];
    assert!(
        crashed.violated().contains(&"I07"),
        "{:?}",
        crashed.violated()
    );
    eprintln!("histcheck: {} mistakes, all found", MISTAKES.len() + 5);
}

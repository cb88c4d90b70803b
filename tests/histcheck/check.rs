//! Holds what was seen against what happened. Pure: records in, a verdict out.
//!
//! An id names a cursor, and a cursor says of every transaction whether it is done. So at each
//! event it is known exactly what a screen that was given everything up to it must show: of each
//! key the newest version among the transactions that are done. That one comparison finds loss,
//! phantoms, torn transactions and rows that go back; the others say more closely what is wrong,
//! or do not lean on the id.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use rowcast::cursor::{Cursor, Name, Token};
use serde_json::Value;

use crate::record::{Intent, Kind, Note, Outcome, Record, Way};
use crate::resources::Memory;
use crate::tables::{Row, TOTAL, Table, View, Who, canary};
use crate::truth::{Truth, Txn};

const SECOND: u64 = 1_000_000;
/// How old a screen may be and still count as fresh.
const FRESH: u64 = 3 * SECOND;
/// For how long a screen may be old and not know it.
const HONEST: u64 = 12 * SECOND;
/// From then on an event may stand for several transactions.
const LATE: u64 = SECOND / 5;
/// A machine with more to do than it can: a pause of it is nobody's lie.
const AIR: u64 = 2 * SECOND;
/// Longest text that a view sends as a value; above it says that it is too large.
const TOO_LARGE: usize = 1 << 20;
/// Witnesses kept of one invariant.
const WITNESSES: usize = 5;

/// A fault as it happened.
#[derive(Debug, Clone)]
pub struct Fired {
    pub kind: &'static str,
    pub target: String,
    pub begun: u64,
    /// When the harness had put an end to it; what recovers does so from here on.
    pub healed: u64,
    /// Microseconds from the healing until the relays concerned said that they were ready.
    pub ready: Vec<u64>,
    /// Why it is known to have happened; `None` when it is not.
    pub evidence: Option<String>,
    /// Whether writers that speak to PostgreSQL may have noticed.
    pub harms_postgres: bool,
}

/// Everything that is judged.
#[derive(Debug, Default)]
pub struct Evidence {
    pub truth: Truth,
    pub records: Vec<Record>,
    pub texts: Vec<Arc<str>>,
    pub intents: Vec<Intent>,
    pub faults: Vec<Fired>,
    /// What each view is in the end, by the SELECT of its own role.
    pub finals: HashMap<View, Vec<Arc<Row>>>,
    /// When the writers had stopped and all was well.
    pub stopped: u64,
    pub ended: u64,
    /// Everything else that PostgreSQL and the relays wrote: logs and counters, by name.
    pub written: Vec<(String, String)>,
    /// Waits of writers for locks of the relays' own sessions, as PostgreSQL told them.
    pub lock_waits: Vec<String>,
    pub locks_watched: u64,
    /// What of the resources was not as it should be, and how often it was looked at.
    pub resources: (u64, Vec<String>),
    pub memory: Memory,
}

/// What one invariant came to.
#[derive(Debug, Default, Clone)]
pub struct Finding {
    pub checked: u64,
    pub violated: u64,
    pub witnesses: Vec<String>,
}

/// The judgement.
#[derive(Debug, Default)]
pub struct Verdict {
    pub findings: BTreeMap<&'static str, Finding>,
    pub counts: BTreeMap<&'static str, u64>,
    /// Microseconds, by kind of fault.
    pub recoveries: BTreeMap<&'static str, Vec<u64>>,
    /// From a commit to its arrival on screens that were connected, in microseconds.
    pub staleness: Vec<u64>,
    /// From the end of everything until the screens were the table.
    pub convergence: Vec<u64>,
    pub longest_lie: u64,
}

pub const INVARIANTS: [(&str, &str); 14] = [
    ("I01", "no loss: what an id covers is on the screen"),
    ("I02", "no phantom: only committed rows are seen"),
    ("I03", "no duplicate: nothing that was told is told again"),
    (
        "I04",
        "each live event is exactly the change of its transaction",
    ),
    ("I05", "whole transactions: sums hold in every state"),
    ("I06", "agreement: all see one history of each list"),
    (
        "I07",
        "monotone: no id and no row goes back without a reset",
    ),
    (
        "I08",
        "read your writes: the id of a write is its transaction",
    ),
    ("I09", "convergence: each screen is the table in the end"),
    (
        "I10",
        "honesty: a screen is fresh or knows in time that it is not",
    ),
    (
        "I11",
        "secrecy: nothing of another tenant in streams, logs, counters",
    ),
    (
        "I12",
        "writers unharmed: every failure of a writer is explained",
    ),
    ("I13", "resources return to where they were"),
    ("I14", "recovery after each fault"),
];

impl Verdict {
    pub fn check(
        &mut self,
        invariant: &'static str,
        holds: bool,
        witness: impl FnOnce() -> String,
    ) {
        let finding = self.findings.entry(invariant).or_default();
        finding.checked += 1;
        if !holds {
            finding.violated += 1;
            if finding.witnesses.len() < WITNESSES {
                finding.witnesses.push(witness());
            }
        }
    }

    pub fn count(&mut self, what: &'static str, by: u64) {
        *self.counts.entry(what).or_default() += by;
    }

    pub fn violations(&self) -> u64 {
        self.findings.values().map(|finding| finding.violated).sum()
    }
}

pub fn judge(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::default();
    for (invariant, _) in INVARIANTS {
        verdict.findings.entry(invariant).or_default();
    }
    for record in &evidence.records {
        let notes = record.notes.iter();
        let data = notes.filter(|(_, note)| matches!(note, Note::Data { .. }));
        verdict.count(record.transport.events(), data.count() as u64);
    }
    let parsed: Vec<Parsed> = evidence.texts.iter().map(|text| Parsed::of(text)).collect();
    let eras = eras_of_epochs(evidence, &parsed, &mut verdict);
    let visible = Visible::of(evidence);
    let mut lists = HashMap::new();
    for record in &evidence.records {
        let mut screen = Screen::new(record, evidence, &parsed, &eras, &mut lists, &mut verdict);
        screen.replay();
        let places = screen.places;
        if !matches!(record.kind, Kind::Slow) {
            honest(record, evidence, &parsed, &places, &visible, &mut verdict);
        }
        recoveries(record, evidence, &places, &visible, &mut verdict);
    }
    secrets(evidence, &mut verdict);
    writers(evidence, &mut verdict);
    for fault in &evidence.faults {
        for ready in &fault.ready {
            verdict
                .recoveries
                .entry("relay ready")
                .or_default()
                .push(*ready);
        }
    }
    verdict.findings.entry("I13").or_default().checked += evidence.resources.0;
    for complaint in &evidence.resources.1 {
        verdict.check("I13", false, || complaint.clone());
    }
    verdict
}

// ---- what events say

#[derive(Debug)]
struct Element {
    control: Option<Box<str>>,
    key: Arc<str>,
    operation: Box<str>,
    txid: Option<u64>,
    row: Option<Arc<Row>>,
    too_large: bool,
}

#[derive(Debug)]
enum Parsed {
    Data(Vec<Element>),
    Control { up_to_date: bool, error: bool },
    Nonsense,
}

impl Parsed {
    fn of(text: &str) -> Self {
        match serde_json::from_str(text) {
            Ok(Value::Array(elements)) => Self::Data(elements.iter().map(Element::of).collect()),
            Ok(Value::Object(members)) => Self::Control {
                up_to_date: members.get("upToDate") == Some(&Value::Bool(true)),
                error: members.contains_key("error"),
            },
            _ => Self::Nonsense,
        }
    }
}

impl Element {
    fn of(value: &Value) -> Self {
        let headers = &value["headers"];
        let text = |value: &Value| value.as_str().unwrap_or_default().into();
        Self {
            control: headers["control"].as_str().map(Into::into),
            key: value["key"].as_str().unwrap_or_default().into(),
            operation: text(&headers["operation"]),
            txid: headers["txid"].as_str().and_then(|txid| txid.parse().ok()),
            row: value.get("value").map(|row| Arc::new(Row::of_json(row))),
            too_large: headers["too_large"] == Value::Bool(true),
        }
    }
}

type Eras = HashMap<Name, usize>;

/// An epoch is the era of the transactions that were told live in it.
fn eras_of_epochs(evidence: &Evidence, parsed: &[Parsed], verdict: &mut Verdict) -> Eras {
    let mut votes: HashMap<Name, BTreeMap<usize, u64>> = HashMap::new();
    for (_, note) in evidence.records.iter().flat_map(|record| &record.notes) {
        let Note::Data { id, text } = note else {
            continue;
        };
        let (Ok(token), Parsed::Data(elements)) = (
            evidence.texts[*id as usize].parse::<Token>(),
            &parsed[*text as usize],
        ) else {
            continue;
        };
        for element in elements.iter().filter(|element| element.txid.is_some()) {
            let row = element.row.as_ref();
            let tx = row.map(|row| row.number("tx"));
            let place = tx.and_then(|tx| evidence.truth.of_tx.get(&tx));
            // A row may be told anew by a transaction that did not sign it: a cascade, a policy.
            let signed =
                place.filter(|place| Some(evidence.truth.txns[**place].xid) == element.txid);
            if let Some(place) = signed {
                let era = evidence.truth.txns[*place].era;
                *votes
                    .entry(token.epoch)
                    .or_default()
                    .entry(era)
                    .or_default() += 1;
            }
        }
    }
    let mut eras = Eras::new();
    for (epoch, votes) in votes {
        verdict.check("I07", votes.len() == 1, || {
            format!("epoch {epoch} tells of transactions of several eras: {votes:?}")
        });
        let most = votes.iter().max_by_key(|(_, votes)| **votes);
        eras.insert(epoch, *most.expect("there is a vote").0);
    }
    verdict.count("epochs", eras.len() as u64);
    eras
}

// ---- one screen

/// Where a screen stood from a moment on: era and cursor.
type Place = (u64, usize, Cursor);

#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own about one screen"
)]
struct Screen<'a> {
    record: &'a Record,
    evidence: &'a Evidence,
    parsed: &'a [Parsed],
    eras: &'a Eras,
    /// The longest list seen of a key in an era.
    lists: &'a mut HashMap<(usize, Arc<str>), Arc<str>>,
    verdict: &'a mut Verdict,
    rows: HashMap<Arc<str>, Arc<Row>>,
    /// Keys whose row was not sent because it is too large.
    large: HashSet<Arc<str>>,
    /// From the wire's key to the row's own, where the former is opaque.
    names: HashMap<Arc<str>, Arc<str>>,
    /// Keys touched by transactions that a crash took back: their truth is gone.
    excused: HashSet<Arc<str>>,
    token: Option<Token>,
    /// A state is complete.
    complete: bool,
    /// Between the marks of a snapshot.
    reading: bool,
    /// A reset came since the last complete state.
    was_reset: bool,
    /// A control came, so each event is of one transaction.
    live: bool,
    /// It came back with the id of another moment, so what follows from it fits nothing here.
    blind: bool,
    connection: usize,
    at: u64,
    places: Vec<Place>,
}

impl<'a> Screen<'a> {
    fn new(
        record: &'a Record,
        evidence: &'a Evidence,
        parsed: &'a [Parsed],
        eras: &'a Eras,
        lists: &'a mut HashMap<(usize, Arc<str>), Arc<str>>,
        verdict: &'a mut Verdict,
    ) -> Self {
        Self {
            record,
            evidence,
            parsed,
            eras,
            lists,
            verdict,
            rows: HashMap::new(),
            large: HashSet::new(),
            names: HashMap::new(),
            excused: HashSet::new(),
            token: None,
            complete: false,
            reading: false,
            was_reset: false,
            live: false,
            blind: false,
            connection: 0,
            at: 0,
            places: Vec::new(),
        }
    }

    fn replay(&mut self) {
        let mut last_data = 0;
        let mut current = false;
        let mut since = 0;
        for (at, note) in &self.record.notes {
            self.at = *at;
            match note {
                Note::Opened { id, .. } => {
                    self.connection += 1;
                    self.live = false;
                    self.reading = false;
                    current = false;
                    self.verdict.count("connections", 1);
                    self.verdict.count("resumes", u64::from(id.is_some()));
                    // A liar's token is not where it stands, and one without a token starts over.
                    if id.is_none() || self.record.kind == Kind::Liar {
                        self.forget();
                    }
                    self.blind = id.is_some() && self.record.kind == Kind::Liar;
                }
                Note::Data { id, text } => {
                    self.verdict.count("data events", 1);
                    self.data(*id, *text);
                    last_data = *at;
                    since = *at;
                }
                Note::Control { id, text } => {
                    self.verdict.count("control events", 1);
                    let up_to_date = self.control(*id, *text);
                    if up_to_date && !current {
                        current = true;
                        since = *at;
                    }
                }
                Note::Ended { .. } => {}
                Note::Broken { text } => {
                    let text = &self.evidence.texts[*text as usize];
                    let witness = self.witness(&format!("bytes that are no event: {text:?}"));
                    self.verdict.check("I03", false, || witness);
                }
                Note::Silent => self.verdict.count("silences noticed", 1),
                Note::Refused { status, .. } => {
                    self.verdict.count("connections refused", 1);
                    if *status != 0 && *status != 200 {
                        let witness = self.witness(&format!("a stream was refused with {status}"));
                        self.verdict.check("I10", false, || witness);
                    }
                }
            }
        }
        self.ends_as_the_table(since.max(last_data));
    }

    /// A screen that starts over shows nothing.
    fn forget(&mut self) {
        self.rows.clear();
        self.large.clear();
        self.names.clear();
        self.excused.clear();
        self.complete = false;
        self.token = None;
        self.was_reset = true;
    }

    fn witness(&self, what: &str) -> String {
        let from = self.record.notes.partition_point(|(at, _)| *at <= self.at);
        let frames: Vec<String> = self.record.notes[from.saturating_sub(3)..from]
            .iter()
            .map(|(at, note)| match note {
                Note::Data { id, text } | Note::Control { id, text } => {
                    let short: String = self.evidence.texts[*text as usize]
                        .chars()
                        .take(600)
                        .collect();
                    format!("{at} id {} {short}", self.evidence.texts[*id as usize])
                }
                other => format!("{at} {other:?}"),
            })
            .collect();
        format!(
            "{what}\n  observer {} ({:?}, {:?}, {}), connection {}, at {}, token {}\n  frames:\n    {}",
            self.record.number,
            self.record.kind,
            self.record.transport,
            self.record.view,
            self.connection,
            self.at,
            self.token
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            frames.join("\n    "),
        )
    }

    fn violated(&mut self, invariant: &'static str, what: &str) {
        let witness = self.witness(what);
        self.verdict.check(invariant, false, || witness);
    }

    /// The key of the row that this element is about.
    fn name(&mut self, element: &Element) -> Arc<str> {
        let table = self.record.view.table;
        let own = element.row.as_ref().map(|row| Arc::from(row.key(table)));
        if !self.record.view.asks() {
            if let Some(own) = own.filter(|own| *own != element.key) {
                self.violated("I04", &format!("key {} for the row of {own}", element.key));
            }
            return Arc::clone(&element.key);
        }
        if let Some(own) = own {
            self.names
                .insert(Arc::clone(&element.key), Arc::clone(&own));
            return own;
        }
        // Whoever was never shown the row cannot tell which one went.
        let name = self.names.get(&element.key);
        Arc::clone(name.unwrap_or(&element.key))
    }

    fn apply(&mut self, elements: &[Element]) {
        for element in elements {
            match element.control.as_deref() {
                Some("reset") => {
                    self.verdict.count("resets", 1);
                    self.forget_rows();
                    // Emptiness is a state too, until the marks of another one follow.
                    self.complete = true;
                    continue;
                }
                Some("snapshot-start") => {
                    self.verdict.count("snapshots", 1);
                    let empty = self.rows.is_empty();
                    if !empty {
                        self.violated("I07", "a second state without a reset before it");
                    }
                    self.reading = true;
                    continue;
                }
                Some("snapshot-end") => {
                    self.reading = false;
                    self.complete = true;
                    self.was_reset = true;
                    continue;
                }
                Some(other) => {
                    self.violated("I04", &format!("a control of name {other}"));
                    continue;
                }
                None => {}
            }
            self.verdict.count("elements", 1);
            let key = self.name(element);
            if element.operation.as_ref() == "delete" {
                self.rows.remove(&key);
                self.large.remove(&key);
            } else if element.too_large {
                self.rows.remove(&key);
                self.large.insert(Arc::clone(&key));
            } else if let Some(row) = &element.row {
                self.large.remove(&key);
                self.no_phantom(&key, row);
                self.rows.insert(Arc::clone(&key), Arc::clone(row));
            }
        }
    }

    fn forget_rows(&mut self) {
        self.rows.clear();
        self.large.clear();
        self.names.clear();
        self.excused.clear();
        self.was_reset = true;
    }

    /// A row that was seen is one that somebody committed.
    fn no_phantom(&mut self, key: &Arc<str>, row: &Row) {
        if self.evidence.truth.txns.is_empty() {
            // Where only the end is known.
            return;
        }
        let tx = row.number("tx");
        let known = tx == 0 || self.evidence.truth.of_tx.contains_key(&tx);
        if known {
            self.verdict.check("I02", true, String::new);
        } else if self.evidence.may_be_taken_back(tx) {
            self.verdict.count("seen and taken back by a crash", 1);
            self.excused.insert(Arc::clone(key));
        } else {
            self.violated("I02", &format!("never committed: {row}"));
        }
    }

    fn data(&mut self, id: u32, text: u32) {
        let parsed = self.parsed;
        let Parsed::Data(elements) = &parsed[text as usize] else {
            self.violated("I03", "an event of kind data that is no array");
            return;
        };
        let begins_anew = |element: &Element| element.control.is_some();
        if self.blind && !elements.iter().any(begins_anew) {
            self.verdict
                .count("events after a lie that was believed", 1);
            return;
        }
        self.blind = false;
        let id = &self.evidence.texts[id as usize];
        self.was_reset |= !self.complete;
        let reset_before = self.was_reset;
        self.apply(elements);
        if **id == *"0" {
            if !self.reading {
                self.violated("I03", "a piece of a state outside of one");
            }
            self.complete = false;
            return;
        }
        let Ok(token) = id.parse::<Token>() else {
            self.violated("I03", &format!("no token: {id}"));
            return;
        };
        if self.reading || !self.complete {
            self.violated("I05", "an id in the middle of a state");
            return;
        }
        let was_reset = self.was_reset || reset_before;
        self.was_reset = false;
        let before = self.token.replace(token);
        if was_reset {
            self.all(elements);
        } else if let Some(before) = before {
            self.step(&before, Some(elements));
        }
        self.stands();
        self.sums();
    }

    /// Whether the stream says that it is up to date.
    fn control(&mut self, id: u32, text: u32) -> bool {
        let parsed = self.parsed;
        let Parsed::Control { up_to_date, error } = parsed[text as usize] else {
            self.violated("I03", "an event of kind control that is no object");
            return false;
        };
        if error {
            self.verdict.count("streams that ended with an error", 1);
            return false;
        }
        let id = &self.evidence.texts[id as usize];
        let Ok(token) = id.parse::<Token>() else {
            // Nothing was given yet.
            return false;
        };
        if !self.complete {
            if self.token.is_some() || **id != *"0" {
                // It came back, and what it has is still good.
                self.verdict.count("controls before a state", 1);
            }
            return false;
        }
        self.live = true;
        if let Some(before) = self.token.replace(token) {
            self.step(&before, None);
        }
        self.stands();
        up_to_date
    }

    /// Keeps the place for those who ask when the screen stood where.
    fn stands(&mut self) {
        let Some(token) = &self.token else { return };
        match self.eras.get(&token.epoch) {
            Some(era) => self.places.push((self.at, *era, token.cursor.clone())),
            None => self
                .verdict
                .count("events of an epoch that told nothing", 1),
        }
    }

    /// From one id to the next.
    fn step(&mut self, before: &Token, elements: Option<&[Element]>) {
        let token = self.token.clone().expect("it has just been set");
        if (before.epoch, before.view) != (token.epoch, token.view) {
            self.violated(
                "I01",
                &format!("another epoch or view without a reset, after {before}"),
            );
            return;
        }
        if !token.cursor.covers(&before.cursor) {
            self.violated("I07", &format!("the id went back, from {before}"));
            return;
        }
        self.verdict.check("I07", true, String::new);
        let Some(era) = self.eras.get(&token.epoch).copied() else {
            return;
        };
        let view = self.record.view;
        let news = self.news(view.table, era, &before.cursor, &token.cursor);
        let mut keys: BTreeSet<Arc<str>> = BTreeSet::new();
        for place in &news {
            let changes = &self.evidence.truth.txns[*place].changes;
            let of_table = changes.iter().filter(|(table, ..)| *table == view.table);
            keys.extend(of_table.map(|(_, key, _)| Arc::clone(key)));
        }
        if view.asks() {
            for place in self.news(Table::Share, era, &before.cursor, &token.cursor) {
                for (table, _, row) in &self.evidence.truth.txns[place].changes {
                    if let (Table::Share, Some(row)) = (table, row) {
                        keys.extend(row.get("doc").map(Arc::from));
                    }
                }
            }
        }
        for element in elements.unwrap_or_default() {
            let key = self.name(element);
            keys.insert(key);
            self.once(element, before, &token, era);
        }
        if let (true, false, Some(elements)) = (self.live, view.asks(), elements) {
            self.exactly(elements, &news, era);
        }
        for key in keys {
            self.shows(&key, era, &token.cursor);
        }
    }

    /// Transactions that touch the table and are done now and were not before.
    fn news(&self, table: Table, era: usize, before: &Cursor, now: &Cursor) -> Vec<usize> {
        let truth = &self.evidence.truth;
        let all = truth.touching(table, era, before.xmin(), now.xmax());
        all.iter()
            .filter(|(xid, _)| now.is_done(*xid) && !before.is_done(*xid))
            .map(|(_, place)| *place)
            .collect()
    }

    /// What is told was not told before, and its id stands for it.
    fn once(&mut self, element: &Element, before: &Token, token: &Token, era: usize) {
        let Some(txid) = element.txid else { return };
        if before.cursor.is_done(txid) && !self.record.view.asks() {
            self.violated("I03", &format!("{txid} was told before: {}", element.key));
        } else {
            self.verdict.check("I03", true, String::new);
        }
        if !token.cursor.is_done(txid) {
            self.violated(
                "I05",
                &format!("the id does not stand for {txid} of its event"),
            );
        }
        if !self.evidence.truth.of_xid.contains_key(&(era, txid)) {
            if self.evidence.takes_back(era) {
                let key = self.name(element);
                self.excused.insert(key);
            } else {
                self.violated("I02", &format!("{txid} never committed"));
            }
        }
    }

    /// A live event is the change of one transaction, and the only one that came to be done.
    fn exactly(&mut self, elements: &[Element], news: &[usize], era: usize) {
        let view = self.record.view;
        let told: BTreeSet<u64> = elements.iter().filter_map(|element| element.txid).collect();
        // A connection that fell out of the buffer is given the net of what it missed.
        let seen = |place: &&usize| self.evidence.effect(&view, **place);
        let oldest = news.iter().find(seen);
        let is_late =
            oldest.is_some_and(|place| self.at > self.evidence.truth.txns[*place].at + LATE);
        if is_late && news.iter().filter(seen).count() > 1 {
            self.verdict.count("events that caught up", 1);
            return;
        }
        if told.len() > 1 {
            self.violated(
                "I05",
                &format!("one event of several transactions: {told:?}"),
            );
            return;
        }
        for place in news {
            let txn = &self.evidence.truth.txns[*place];
            let is_seen = self.evidence.effect(&view, *place);
            if is_seen && !told.contains(&txn.xid) && !elements.is_empty() {
                let what = format!(
                    "transaction {} (tx {:?}) is covered and was not told",
                    txn.xid, txn.tx
                );
                self.violated("I01", &what);
            } else {
                self.verdict.check("I04", true, String::new);
            }
        }
        let Some(place) = told
            .first()
            .and_then(|txid| self.evidence.truth.of_xid.get(&(era, *txid)))
        else {
            return;
        };
        let txn = &self.evidence.truth.txns[*place];
        let visible = |row: &Option<Arc<Row>>| row.clone().filter(|row| view.passes(row));
        for element in elements.iter().filter(|element| element.control.is_none()) {
            let key = Arc::clone(&element.key);
            let change = txn
                .changes
                .iter()
                .find(|(t, k, _)| *t == view.table && *k == key);
            let after = change.and_then(|(_, _, row)| visible(row));
            let same = change.is_some()
                && (element.too_large
                    || after == element.row
                    || view.table == Table::Big && element.row.is_some());
            if same {
                self.verdict.check("I04", true, String::new);
            } else {
                let there = after.map(|row| row.to_string()).unwrap_or_default();
                self.violated(
                    "I04",
                    &format!("{key} of transaction {} is {there}", txn.xid),
                );
            }
        }
    }

    /// The screen's row of this key is the newest one that is done.
    fn shows(&mut self, key: &Arc<str>, era: usize, cursor: &Cursor) {
        if self.excused.contains(key) {
            return;
        }
        let expected = self.evidence.expected(&self.record.view, key, era, cursor);
        let shown = self.rows.get(key);
        let same = match (&expected, shown) {
            (None, None) => !self.large.contains(key),
            (Some(expected), Some(shown)) => expected == shown,
            (Some(_), None) => self.large.contains(key),
            (None, Some(_)) => false,
        };
        if same || self.is_ahead(key, shown) {
            self.verdict.check("I01", true, String::new);
            return;
        }
        let text = |row: Option<&Arc<Row>>| row.map_or("nothing".to_owned(), ToString::to_string);
        let what = format!(
            "{key} is {} and shown as {}",
            text(expected.as_ref()),
            text(shown)
        );
        self.violated("I01", &what);
    }

    /// A row that was logged by its key is told as it is when the log is read, so it may be ahead of
    /// its transaction; never behind.
    fn is_ahead(&self, key: &Arc<str>, shown: Option<&Arc<Row>>) -> bool {
        if self.record.view.table != Table::Big {
            return false;
        }
        let truth = &self.evidence.truth;
        let versions = truth
            .versions
            .get(&Table::Big)
            .and_then(|keys| keys.get(key));
        versions.is_some_and(|versions| {
            versions.iter().any(|(_, row)| row.as_ref() == shown) || self.large.contains(key)
        })
    }

    /// After a state was read: every row of it.
    fn all(&mut self, elements: &[Element]) {
        self.excused.clear();
        let token = self.token.clone().expect("it has just been set");
        let Some(era) = self.eras.get(&token.epoch).copied() else {
            return;
        };
        for element in elements.iter().filter(|element| element.txid.is_some()) {
            let txid = element.txid.expect("filtered");
            if !self.evidence.truth.of_xid.contains_key(&(era, txid))
                && self.evidence.takes_back(era)
            {
                let key = self.name(element);
                self.excused.insert(key);
            }
        }
        for (key, row) in &self.rows {
            let tx = row.number("tx");
            if tx != 0 && !self.evidence.truth.of_tx.contains_key(&tx) {
                self.excused.insert(Arc::clone(key));
            }
        }
        let view = self.record.view;
        let keys = self.evidence.truth.versions.get(&view.table);
        let mut keys: BTreeSet<Arc<str>> =
            keys.into_iter().flat_map(HashMap::keys).cloned().collect();
        keys.extend(self.rows.keys().cloned());
        for key in keys {
            self.shows(&key, era, &token.cursor);
        }
    }

    /// What does not lean on ids: sums, and lists that only grow.
    fn sums(&mut self) {
        let Some(era) = self
            .token
            .as_ref()
            .and_then(|token| self.eras.get(&token.epoch))
            .copied()
        else {
            return;
        };
        match self.record.view {
            View {
                table: Table::Acct,
                filter: None,
                ..
            } => {
                let sum: i64 = self.rows.values().map(|row| row.number("bal")).sum();
                if sum == TOTAL {
                    self.verdict.check("I05", true, String::new);
                } else {
                    self.violated("I05", &format!("balances sum to {sum}"));
                }
            }
            View {
                table: Table::List, ..
            } => {
                let rows: Vec<_> = self
                    .rows
                    .iter()
                    .map(|(k, r)| (Arc::clone(k), Arc::clone(r)))
                    .collect();
                for (key, row) in rows {
                    let shown = row
                        .get("elems")
                        .unwrap_or_default()
                        .trim_end_matches('}')
                        .to_owned();
                    let longest = self
                        .lists
                        .entry((era, key))
                        .or_insert_with(|| shown.as_str().into());
                    let agrees = longest.starts_with(&shown) || shown.starts_with(&**longest);
                    if shown.len() > longest.len() {
                        *longest = shown.as_str().into();
                    }
                    let other = longest.to_string();
                    if agrees {
                        self.verdict.check("I06", true, String::new);
                    } else {
                        self.violated("I06", &format!("{row} is no beginning of {other}"));
                    }
                }
            }
            _ => {}
        }
    }

    fn ends_as_the_table(&mut self, since: u64) {
        let Some(expected) = self.evidence.finals.get(&self.record.view) else {
            return;
        };
        let table = self.record.view.table;
        let mut wrong = Vec::new();
        let mut there = HashSet::new();
        for row in expected {
            let key: Arc<str> = row.key(table).into();
            let is_large =
                self.large.contains(&key) && row.0.iter().any(|(_, v)| v.len() > TOO_LARGE / 2);
            if !is_large && self.rows.get(&key) != Some(row) {
                let shown = self
                    .rows
                    .get(&key)
                    .map_or("nothing".to_owned(), ToString::to_string);
                wrong.push(format!("{key} is {row} and shown as {shown}"));
            }
            there.insert(key);
        }
        for (key, row) in &self.rows {
            if !there.contains(key) {
                wrong.push(format!("{key} is gone and shown as {row}"));
            }
        }
        if self.blind {
            return;
        }
        if !self.complete {
            wrong.push("no state was ever complete".to_owned());
        }
        if wrong.is_empty() {
            self.verdict.check("I09", true, String::new);
            self.verdict
                .convergence
                .push(since.saturating_sub(self.evidence.stopped));
        } else {
            let what = format!(
                "{} rows differ: {}",
                wrong.len(),
                wrong[..wrong.len().min(4)].join("; ")
            );
            self.violated("I09", &what);
        }
    }
}

impl Evidence {
    /// Whether this transaction was acknowledged before it was safe, by the writer's own choice.
    fn may_be_taken_back(&self, tx: i64) -> bool {
        self.truth.eras > 1
            && self
                .intents
                .iter()
                .any(|intent| intent.tx == tx && intent.asynchronous)
    }

    /// Whether commits of this era may be gone.
    fn takes_back(&self, era: usize) -> bool {
        era + 1 < self.truth.eras && self.intents.iter().any(|intent| intent.asynchronous)
    }

    /// What a screen of this view shows under this key where this much is done.
    fn expected(&self, view: &View, key: &str, era: usize, cursor: &Cursor) -> Option<Arc<Row>> {
        let done = |txn: &Txn| txn.era < era || txn.era == era && cursor.is_done(txn.xid);
        let row = self.truth.row(view.table, key, done)?.1?;
        if !view.passes(row) {
            return None;
        }
        if view.table == Table::Doc {
            let Who::Tenant(tenant) = view.who else {
                return None;
            };
            let tenant = format!("t{tenant}");
            if row.get("tenant") != Some(&tenant) {
                let share = format!("{}/{}", Value::from(key), Value::from(tenant.as_str()));
                self.truth.row(Table::Share, &share, done)?.1?;
            }
        }
        Some(Arc::clone(row))
    }

    /// Whether the transaction changed what this view shows, as far as its rows tell.
    fn effect(&self, view: &View, place: usize) -> bool {
        let changes = &self.truth.txns[place].changes;
        changes.iter().any(|(table, key, row)| {
            if *table != view.table {
                return false;
            }
            let versions = &self.truth.versions[table][key];
            let at = versions.partition_point(|(version, _)| *version < place);
            let before = at.checked_sub(1).and_then(|at| versions[at].1.as_ref());
            let passes = |row: Option<&Arc<Row>>| row.is_some_and(|row| view.passes(row));
            passes(before) || passes(row.as_ref())
        })
    }
}

// ---- time

/// Of each view the transactions that its screens must be told of, in the order of their commits.
struct Visible(HashMap<View, Vec<usize>>);

impl Visible {
    fn of(evidence: &Evidence) -> Self {
        let mut visible = HashMap::new();
        for record in &evidence.records {
            visible.entry(record.view).or_insert_with(|| {
                let places = 0..evidence.truth.txns.len();
                // What a policy shows is not known so cheaply: there, what was shown is compared.
                places
                    .filter(|place| !record.view.asks() && evidence.effect(&record.view, *place))
                    .collect::<Vec<usize>>()
            });
        }
        Self(visible)
    }
}

fn is_done(txn: &Txn, era: usize, cursor: &Cursor) -> bool {
    txn.era < era || txn.era == era && cursor.is_done(txn.xid)
}

/// No screen is old for long without knowing it.
fn honest(
    record: &Record,
    evidence: &Evidence,
    parsed: &[Parsed],
    places: &[Place],
    visible: &Visible,
    verdict: &mut Verdict,
) {
    let list = &visible.0[&record.view];
    let mut next = 0;
    let mut standing = places.iter().peekable();
    let mut place: Option<(usize, Cursor)> = None;
    let mut believes = false;
    let mut lie: Option<u64> = None;
    let mut longest = 0;
    for (index, (at, note)) in record.notes.iter().enumerate() {
        while let Some((_, era, cursor)) = standing.next_if(|(when, ..)| when <= at) {
            place = Some((*era, cursor.clone()));
        }
        match note {
            Note::Data { .. } => {}
            Note::Control { text, .. } => {
                believes = matches!(
                    parsed[*text as usize],
                    Parsed::Control {
                        up_to_date: true,
                        ..
                    }
                );
            }
            _ => believes = false,
        }
        while let (Some(txn), Some((era, cursor))) = (list.get(next), &place) {
            if !is_done(&evidence.truth.txns[*txn], *era, cursor) {
                break;
            }
            let took = at.saturating_sub(evidence.truth.txns[*txn].at);
            if believes && matches!(note, Note::Data { .. }) {
                verdict.staleness.push(took);
            }
            next += 1;
        }
        let until = record
            .notes
            .get(index + 1)
            .map_or(evidence.ended, |(at, _)| *at);
        let heard_until = until.min(at + HONEST);
        let old_from = list
            .get(next)
            .map(|txn| evidence.truth.txns[*txn].at + FRESH);
        match old_from {
            Some(old_from) if believes && old_from < heard_until => {
                let begun = *lie.get_or_insert(old_from.max(*at));
                longest = longest.max(heard_until.saturating_sub(begun));
                if heard_until < until {
                    lie = None;
                }
            }
            _ => lie = None,
        }
    }
    verdict.longest_lie = verdict.longest_lie.max(longest);
    verdict.check("I10", longest <= HONEST + AIR, || {
        format!(
            "observer {} ({:?}, {:?}, {}) was behind for {} s and believed that it was not",
            record.number,
            record.kind,
            record.transport,
            record.view,
            longest / SECOND
        )
    });
}

/// From the end of each fault to the moment when a screen had everything from before that end.
fn recoveries(
    record: &Record,
    evidence: &Evidence,
    places: &[Place],
    visible: &Visible,
    verdict: &mut Verdict,
) {
    if record.kind != Kind::Steady {
        return;
    }
    let list = &visible.0[&record.view];
    for fault in &evidence.faults {
        let before = list.partition_point(|txn| evidence.truth.txns[*txn].at <= fault.healed);
        let from = places.partition_point(|(at, ..)| *at < fault.healed);
        let recovered = places[from..].iter().find(|(_, era, cursor)| {
            let recent = &list[before.saturating_sub(200)..before];
            recent
                .iter()
                .all(|txn| is_done(&evidence.truth.txns[*txn], *era, cursor))
        });
        // What the next fault broke again is its own affair.
        let others = evidence.faults.iter().map(|other| other.begun);
        let next = others.filter(|begun| *begun > fault.healed).min();
        let next = next.unwrap_or(u64::MAX);
        match recovered {
            Some((at, ..)) if *at > next => {
                verdict.count("recoveries overtaken by the next fault", 1);
            }
            None if next < evidence.ended => {
                verdict.count("recoveries overtaken by the next fault", 1);
            }
            Some((at, ..)) => {
                let took = at - fault.healed;
                verdict.recoveries.entry(fault.kind).or_default().push(took);
                verdict.check("I14", took <= 30 * SECOND, || {
                    let (number, view) = (record.number, record.view);
                    format!(
                        "observer {number} ({view}) took {} s after {}",
                        took / SECOND,
                        fault.kind
                    )
                });
            }
            None => verdict.check("I14", fault.healed + 30 * SECOND > evidence.ended, || {
                let (number, view) = (record.number, record.view);
                format!(
                    "observer {number} ({view}) never came back after {}",
                    fault.kind
                )
            }),
        }
    }
}

// ---- everything else

fn secrets(evidence: &Evidence, verdict: &mut Verdict) {
    let canaries: Vec<String> = (0..crate::tables::TENANTS).map(canary).collect();
    let found: Vec<Vec<bool>> = evidence
        .texts
        .iter()
        .map(|text| {
            canaries
                .iter()
                .map(|canary| text.contains(canary))
                .collect()
        })
        .collect();
    for record in &evidence.records {
        for (_, note) in &record.notes {
            let (Note::Data { text, .. } | Note::Control { text, .. }) = note else {
                continue;
            };
            for (tenant, is_there) in found[*text as usize].iter().enumerate() {
                let own = matches!(record.view.who, Who::Tenant(who) if who as usize == tenant);
                verdict.check("I11", !is_there || own, || {
                    format!(
                        "observer {} ({}) was given {}",
                        record.number, record.view, canaries[tenant]
                    )
                });
            }
        }
    }
    for (name, text) in &evidence.written {
        for canary in &canaries {
            verdict.check("I11", !text.contains(canary), || {
                format!("{canary} is in {name}")
            });
        }
    }
}

fn writers(evidence: &Evidence, verdict: &mut Verdict) {
    for intent in &evidence.intents {
        let place = evidence.truth.of_tx.get(&intent.tx);
        match &intent.outcome {
            Outcome::Committed(xid) => {
                verdict.count("transactions committed", 1);
                let excused = evidence.may_be_taken_back(intent.tx);
                verdict.check("I02", place.is_some() || excused, || {
                    format!(
                        "tx {} was acknowledged and is not in the write-ahead log: {intent:?}",
                        intent.tx
                    )
                });
                if let (Some(xid), Some(place)) = (xid, place) {
                    let txn = &evidence.truth.txns[*place];
                    verdict.check("I08", txn.xid == *xid, || {
                        format!("tx {} was told as {xid} and is {}", intent.tx, txn.xid)
                    });
                }
            }
            Outcome::RolledBack => {
                verdict.count("transactions rolled back", 1);
                verdict.check("I02", place.is_none(), || {
                    format!("tx {} was rolled back and is there", intent.tx)
                });
            }
            Outcome::Failed {
                why,
                by_concurrency,
            } => {
                verdict.count("transactions refused", 1);
                verdict.check("I02", place.is_none(), || {
                    format!("tx {} failed ({why}) and is there", intent.tx)
                });
                verdict.check("I12", *by_concurrency || evidence.explains(intent), || {
                    format!(
                        "{:?} writer {} failed and no fault explains it: {why}",
                        intent.way, intent.writer
                    )
                });
            }
            Outcome::Unknown(why) => {
                verdict.count("transactions of unknown outcome", 1);
                verdict.count("of those, committed", u64::from(place.is_some()));
                verdict.check("I12", evidence.explains(intent), || {
                    format!(
                        "{:?} writer {} lost its connection and no fault explains it: {why}",
                        intent.way, intent.writer
                    )
                });
            }
        }
        if matches!(intent.outcome, Outcome::Committed(_)) {
            verdict.check("I12", true, String::new);
        }
    }
    verdict.findings.entry("I12").or_default().checked += evidence.locks_watched;
    for wait in &evidence.lock_waits {
        verdict.check("I12", false, || wait.clone());
    }
}

impl Evidence {
    /// Whether a fault was about while this was tried, of a kind that this writer can notice.
    fn explains(&self, intent: &Intent) -> bool {
        self.faults.iter().any(|fault| {
            // What a fault broke may be found broken a little later.
            let healed = fault.healed + fault.ready.iter().max().copied().unwrap_or_default();
            let about = fault.begun <= intent.ended && intent.begun <= healed + 15 * SECOND;
            about && (fault.harms_postgres || intent.way == Way::Api)
        })
    }
}

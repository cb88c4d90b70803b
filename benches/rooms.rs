//! How long the pure rooms take for what a busy relay asks of them all day: the token of a place in
//! the log, the cursors of a batch, the net changes of a transaction, the bytes of an event, the
//! filter of a view, the whole way from a row of the log to an event, and what a screen missed. No
//! socket and no database, so that a number here is the code's alone.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput};
use jiff::Timestamp;
use rowcast::cursor::{Cursor, Name, Steps, Token, Xid};
use rowcast::event::{Delta, Element, Entry, Image, Operation, Scope, Transaction, net};
use rowcast::filter::{Condition, Facts, Matcher, decidable};
use rowcast::log::fold;
use rowcast::sse::Array;
use rowcast::view::image::Images;

/// Where a database stands that has been busy for some years.
const XMAX: Xid = 81_234_567_890;

/// A task as `row_to_json` writes it.
fn task(id: usize, title: &str) -> String {
    format!(
        r#"{{"id":{id},"board_id":7,"title":"{title}","done":false,"position":{id}.5,"due":"2026-11-23","at":"2026-11-23T12:00:00.123456+00:00"}}"#
    )
}

/// The columns of [`task`]'s primary key.
fn key() -> [String; 1] {
    ["id".to_owned()]
}

fn token(c: &mut Criterion) {
    let ordinary = Token {
        epoch: Name::of(["epoch"]),
        view: Name::of(["/rest/v1/tasks?board_id=eq.7"]),
        cursor: Cursor::new(XMAX, (1..=12).map(|distance| XMAX - 7 * distance)),
    };
    let text = ordinary.to_string();
    let mut group = c.benchmark_group("token");
    group.bench_function("write", |b| b.iter(|| black_box(&ordinary).to_string()));
    group.bench_function("read", |b| b.iter(|| black_box(&text).parse::<Token>()));
    group.finish();
}

/// One cursor for each of 1,000 transactions, of which two of three are in order.
fn steps(c: &mut Criterion) {
    const BATCH: u64 = 1_000;
    let start = Cursor::new(XMAX, []);
    let end = Cursor::new(XMAX + BATCH, []);
    let mut order: Vec<Xid> = (XMAX..XMAX + BATCH).collect();
    for swapped in order.chunks_exact_mut(6) {
        swapped.swap(1, 4);
    }
    let mut group = c.benchmark_group("steps");
    group.throughput(Throughput::Elements(BATCH));
    group.bench_function("a batch of 1,000 transactions", |b| {
        b.iter(|| {
            let mut steps = Steps::new(&start, &end, order.iter().copied());
            for xid in &order {
                black_box(steps.deliver(*xid));
            }
        });
    });
    group.finish();
}

/// A transaction of 1,000 entries: 500 rows, each updated twice.
fn entries() -> Vec<Entry> {
    let stages = ["before", "between", "after"]
        .map(|title| -> Vec<Arc<str>> { (0..500).map(|id| task(id, title).into()).collect() });
    let steps = stages.windows(2).flat_map(|pair| {
        let rows = pair[0].iter().zip(&pair[1]);
        rows.map(|(old, new)| (Arc::clone(old), Arc::clone(new)))
    });
    (1..)
        .zip(steps)
        .map(|(id, (old, new))| Entry {
            id,
            rel: 16_384,
            operation: Operation::Update,
            channel: None,
            old: Some(old),
            new: Some(new),
            truncated: false,
            at: Timestamp::UNIX_EPOCH,
        })
        .collect()
}

fn event(c: &mut Criterion) {
    let key = key();
    let image = task(7, "Water the plants");
    let entries = entries();
    let entries: Vec<&Entry> = entries.iter().collect();
    let mut group = c.benchmark_group("event");
    group.bench_function("an image taken apart", |b| {
        b.iter(|| Image::parse(black_box(&image)));
    });
    group.throughput(Throughput::Elements(1_000));
    group.bench_function("net of 1,000 entries", |b| {
        b.iter(|| net(black_box(&entries), &key));
    });
    group.finish();
}

fn sse(c: &mut Criterion) {
    let elements: Vec<Element> = (0..100)
        .map(|id| Element::Upsert {
            key: id.to_string().into(),
            value: Some(task(id, "Water the plants").into()),
            inserted: false,
            xid: XMAX,
            at: Timestamp::UNIX_EPOCH,
        })
        .collect();
    let encode = || {
        let mut array = Array::new("public.tasks");
        for element in black_box(&elements) {
            array.push(element);
        }
        array.finish()
    };
    let mut group = c.benchmark_group("sse");
    group.throughput(Throughput::Bytes(encode().len() as u64));
    group.bench_function("an event of 100 rows", |b| b.iter(encode));
    group.finish();
}

/// `board_id=eq.7&done=is.false&position=lt.100`
fn matcher() -> Matcher {
    let conditions = [
        ("board_id", "eq.7", "int8", vec!["7".to_owned()]),
        ("done", "is.false", "bool", vec![]),
        ("position", "lt.100", "numeric", vec!["100".to_owned()]),
    ]
    .map(|(column, text, base, values)| {
        let condition = Condition::parse(column, text).expect("the condition is well-formed");
        let facts = Facts {
            base,
            byte_ordered: true,
            deterministic: true,
        };
        let kind = decidable(&condition, facts).expect("the type compares outside the database");
        (condition, kind, values)
    });
    let typed = conditions
        .iter()
        .map(|(condition, kind, values)| (condition, *kind, values.as_slice()));
    Matcher::new(typed).expect("the values are of their columns' kinds")
}

/// Decided on an image that matches.
fn filter(c: &mut Criterion) {
    let matcher = matcher();
    let text = task(42, "Water the plants");
    let image = Image::parse(&text).expect("a task is a JSON object");
    let decide = || matcher.matches(|column| black_box(&image).get(column));
    assert_eq!(decide(), Ok(true), "the filter is decided to its end");
    c.bench_function("filter/three conditions", |b| b.iter(decide));
}

/// A transaction that changed the title of one row.
fn transaction(xid: Xid, id: usize) -> Transaction {
    let entry = Entry {
        id: 1,
        rel: TABLE,
        operation: Operation::Update,
        channel: None,
        old: Some(task(id, "Water the plants").into()),
        new: Some(task(id, "Water the plants again").into()),
        truncated: false,
        at: Timestamp::UNIX_EPOCH,
    };
    let changes = net(&[&entry], &key()).expect("a task has its key");
    Transaction {
        xid,
        at: Timestamp::UNIX_EPOCH,
        deltas: vec![Delta {
            table: TABLE,
            scope: Scope::Keys,
            changes,
        }],
        messages: Vec::new(),
        reset_all: false,
    }
}

/// Its oid.
const TABLE: u32 = 16_384;

/// What a commit costs a view that shows the row, and one that does not.
fn view(c: &mut Criterion) {
    let images = Images {
        key: key().to_vec(),
        matcher: matcher(),
        columns: None,
    };
    let told = |transaction: &Transaction| {
        let elements = images.elements(transaction.xid, &transaction.deltas[0]);
        let elements = elements.expect("the images are whole");
        let mut array = Array::new("public.tasks");
        for element in &elements {
            array.push(element);
        }
        (!array.is_empty()).then(|| array.finish())
    };
    let (shown, other) = (transaction(XMAX, 42), transaction(XMAX, 4_200));
    assert!(told(&shown).is_some() && told(&other).is_none());
    let mut group = c.benchmark_group("view");
    group.bench_function("a log row to an event", |b| {
        b.iter(|| told(&transaction(black_box(XMAX), 42)));
    });
    group.bench_function("a change that it shows", |b| {
        b.iter(|| told(black_box(&shown)));
    });
    group.bench_function("a change that it does not show", |b| {
        b.iter(|| told(black_box(&other)));
    });
    group.finish();
}

/// 1,000 transactions that changed 100 rows ten times each.
fn missed(c: &mut Criterion) {
    const COUNT: usize = 1_000;
    let transactions: Vec<Transaction> = (XMAX..)
        .zip(0..COUNT)
        .map(|(xid, number)| transaction(xid, number % 100))
        .collect();
    let mut group = c.benchmark_group("missed");
    group.throughput(Throughput::Elements(COUNT as u64));
    group.bench_function("fold of 1,000 transactions", |b| {
        b.iter(|| fold(black_box(&transactions), TABLE));
    });
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    token(&mut criterion);
    steps(&mut criterion);
    event(&mut criterion);
    sse(&mut criterion);
    filter(&mut criterion);
    view(&mut criterion);
    missed(&mut criterion);
    criterion.final_summary();
}

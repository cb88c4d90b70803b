//! Screens in a real Chromium. Its own `EventSource` connects, comes back and keeps the id; the
//! script in `tests/browser/` only writes down what it does, and this makes notes of it.

use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use crate::installed::{folder, has_chromium};
use crate::observers::Watching;
use crate::record::{Kind, Note, Record, Texts, Transport};
use crate::tables::{Table, View, Who};

/// What they look at, each at the next relay's door.
const TABLES: [Table; 4] = [Table::Reg, Table::Acct, Table::List, Table::Child];
/// Longest start, and longest end, of a browser.
const PATIENCE: Duration = Duration::from_mins(1);

/// A browser whose screens are about to connect.
pub struct Browser {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    watching: Watching,
}

/// A line of the script.
#[derive(Deserialize)]
struct Line {
    screen: usize,
    /// Milliseconds since 1970.
    at: u64,
    #[serde(flatten)]
    told: Told,
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Told {
    /// With the id that was sent.
    Opened {
        id: Option<String>,
    },
    Data {
        id: String,
        data: String,
    },
    Control {
        id: String,
        data: String,
    },
    /// An event without a name.
    Message {
        data: String,
    },
    Ended,
    /// No stream came of it: the status of the answer, 0 for none.
    Refused {
        status: u16,
    },
    Silent,
}

impl Browser {
    /// `None` where there is no Chromium.
    pub async fn open(watching: &Watching) -> Option<Self> {
        if !has_chromium() {
            return None;
        }
        let doors = watching.doors.iter().cycle();
        let urls = TABLES
            .iter()
            .zip(doors)
            .map(|(table, door)| format!("http://{door}{}", view(*table).path()));
        let mut child = Command::new("node")
            .arg(folder("browser").join("screens.mjs"))
            .args(urls)
            .env("ROWCAST_URL", format!("http://{}", watching.doors[0]))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("node can be started");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = timeout(PATIENCE, lines.next_line()).await;
        let first = first.expect("the browser starts in time").unwrap();
        assert_eq!(first.as_deref(), Some("ready"), "the browser starts");
        Some(Self {
            child,
            lines,
            watching: watching.clone(),
        })
    }

    /// How many screens it has.
    pub fn screens() -> usize {
        TABLES.len()
    }

    /// Keeps what its screens notice, until all stop. Their numbers begin with `first`.
    pub async fn run(mut self, first: usize) {
        let mut screens = TABLES.map(|_| Vec::new());
        let mut stop = self.watching.stop.clone();
        loop {
            let line = tokio::select! {
                line = self.lines.next_line() => line.unwrap(),
                _ = stop.wait_for(|stop| *stop) => break,
            };
            // Without its end it has crashed: then its screens are not the table in the end.
            let Some(line) = line else { break };
            let line: Line = serde_json::from_str(&line).expect("a line of the script");
            let relay = line.screen % self.watching.doors.len();
            let note = line.told.note(relay, &self.watching.texts);
            screens[line.screen].push((line.at * 1000, note));
        }
        for (number, (notes, table)) in screens.into_iter().zip(TABLES).enumerate() {
            self.watching.records.lock().unwrap().push(Record {
                number: first + number,
                kind: Kind::Steady,
                transport: Transport::Chromium,
                view: view(table),
                notes,
            });
        }
        // With its input it closes the browser and ends.
        drop(self.child.stdin.take());
        let ended = timeout(PATIENCE, async {
            while let Ok(Some(_)) = self.lines.next_line().await {}
            self.child.wait().await
        });
        let _killed = ended.await;
    }
}

fn view(table: Table) -> View {
    View {
        table,
        filter: None,
        who: Who::Visitor,
    }
}

impl Told {
    fn note(self, relay: usize, texts: &Texts) -> Note {
        let keep = |text: &str| texts.keep(text);
        match self {
            Self::Opened { id } => Note::Opened {
                relay,
                id: id.as_deref().map(keep),
            },
            Self::Data { id, data } => Note::Data {
                id: keep(&id),
                text: keep(&data),
            },
            Self::Control { id, data } => Note::Control {
                id: keep(&id),
                text: keep(&data),
            },
            Self::Message { data } => Note::Broken { text: keep(&data) },
            Self::Ended => Note::Ended { by_us: false },
            Self::Refused { status } => Note::Refused { relay, status },
            Self::Silent => Note::Silent,
        }
    }
}

//! What a seed means: the class of the run, its faults and when they come. Pure.

use std::time::Duration;

/// A fault of the schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    RelayKill,
    RelayTerm,
    RelayStop,
    BackendKill,
    ListenerEnd,
    PostgresKill,
    PostgresRestart,
    DatabaseCut,
    DatabaseStall,
    DatabaseOneWay,
    DatabaseHalfOpen,
    DatabaseSlow,
    ClientCut,
    ClientStall,
    ClientHalfOpen,
    ClientSlow,
    LongTransaction,
    LongElsewhere,
    StuckListener,
    TrimToTheEdge,
    Ddl,
    Revoke,
    PoolHog,
    Herd,
}

pub const FAULTS: [Fault; 24] = [
    Fault::RelayKill,
    Fault::RelayTerm,
    Fault::RelayStop,
    Fault::BackendKill,
    Fault::ListenerEnd,
    Fault::PostgresKill,
    Fault::PostgresRestart,
    Fault::DatabaseCut,
    Fault::DatabaseStall,
    Fault::DatabaseOneWay,
    Fault::DatabaseHalfOpen,
    Fault::DatabaseSlow,
    Fault::ClientCut,
    Fault::ClientStall,
    Fault::ClientHalfOpen,
    Fault::ClientSlow,
    Fault::LongTransaction,
    Fault::LongElsewhere,
    Fault::StuckListener,
    Fault::TrimToTheEdge,
    Fault::Ddl,
    Fault::Revoke,
    Fault::PoolHog,
    Fault::Herd,
];

impl Fault {
    pub fn name(self) -> &'static str {
        match self {
            Self::RelayKill => "kill -9 of a relay",
            Self::RelayTerm => "SIGTERM of a relay",
            Self::RelayStop => "SIGSTOP of a relay",
            Self::BackendKill => "kill -9 of a backend",
            Self::ListenerEnd => "end of the listener's backend",
            Self::PostgresKill => "kill -9 of PostgreSQL",
            Self::PostgresRestart => "fast restart of PostgreSQL",
            Self::DatabaseCut => "database link cut",
            Self::DatabaseStall => "database link stalled",
            Self::DatabaseOneWay => "database link stalled one way",
            Self::DatabaseHalfOpen => "database link half-open",
            Self::DatabaseSlow => "database link slow",
            Self::ClientCut => "client link cut",
            Self::ClientStall => "client link stalled",
            Self::ClientHalfOpen => "client link half-open",
            Self::ClientSlow => "client link slow",
            Self::LongTransaction => "long transaction",
            Self::LongElsewhere => "long transaction in another database",
            Self::StuckListener => "stuck foreign listener",
            Self::TrimToTheEdge => "trim to the edge",
            Self::Ddl => "table changed",
            Self::Revoke => "right revoked and granted",
            Self::PoolHog => "pool hog",
            Self::Herd => "herd of connections",
        }
    }

    /// Whether everybody's connection to PostgreSQL suffers.
    pub fn harms_postgres(self) -> bool {
        matches!(
            self,
            Self::BackendKill | Self::PostgresKill | Self::PostgresRestart
        )
    }
}

/// One fault of a run.
#[derive(Debug, Clone, Copy)]
pub struct Planned {
    /// Milliseconds after the writers began.
    pub at: u64,
    pub fault: Fault,
    /// Which relay, where it is about one.
    pub relay: usize,
    /// How long it lasts, in milliseconds.
    pub lasts: u64,
}

/// A whole run.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub seconds: u64,
    /// Some writers do not wait for the disk.
    pub asynchronous: bool,
    pub observers: usize,
    /// For how long a screen may be away. Where it is shorter than the run, the log must be trimmed in
    /// the end; a minute is the least that a relay takes.
    pub retention: Duration,
    /// Mean pause of a writer, in milliseconds.
    pub pause: u64,
    pub faults: Vec<Planned>,
}

/// What is done to a run on purpose, other than what its seed says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// As the seed says.
    Seeded,
    /// No fault.
    Quiet,
    /// This fault and no other, so many times.
    Only(Fault, u64),
}

impl Plan {
    pub fn of(seed: u64, seconds: u64, scenario: Scenario) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let healthy = random.u8(..5) == 0;
        let asynchronous = random.u8(..5) == 0;
        let mut faults = Vec::new();
        // The first seconds are for arriving, the last ones for the last fault to heal in.
        let (from, to) = (4_000, (seconds * 1000).saturating_sub(8_000).max(5_000));
        let fault = |random: &mut fastrand::Rng, fault, at| Planned {
            at,
            fault,
            relay: random.usize(..crate::world::RELAYS),
            lasts: random.u64(1_500..6_000),
        };
        match scenario {
            Scenario::Quiet => {}
            Scenario::Seeded if healthy => {}
            Scenario::Seeded => {
                // 12 to 40 in five minutes, each kind before any a second time.
                let number = (seconds * random.u64(24..60) / 300).max(6);
                let mut kinds = FAULTS.to_vec();
                random.shuffle(&mut kinds);
                for place in 0..number {
                    let kind = kinds[usize::try_from(place).expect("few") % kinds.len()];
                    let at = from + (to - from) * place / number + random.u64(..1_000);
                    faults.push(fault(&mut random, kind, at));
                }
            }
            Scenario::Only(kind, number) => {
                for place in 0..number {
                    let at = from + (to - from) * place / number + random.u64(..300);
                    faults.push(fault(&mut random, kind, at));
                }
            }
        }
        Self {
            seed,
            seconds,
            asynchronous,
            retention: Duration::from_secs(if seed.is_multiple_of(2) { 60 } else { 3600 }),
            observers: if seconds <= 60 { 80 } else { 120 },
            pause: 120,
            faults,
        }
    }
}

//! Does to a run what its plan says, and says whether it really happened.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_postgres::{Client, NoTls};

use crate::check::Fired;
use crate::harness::signal;
use crate::proxy::{Trouble, Way};
use crate::record::now;
use crate::schedule::{Fault, Plan, Planned};
use crate::world::{Relay, World};

/// Longest wait for anything to come back.
const PATIENCE: Duration = Duration::from_secs(40);

/// Runs the plan to its end. Faults that touch the same process do not overlap; others may.
pub async fn run(world: Arc<World>, plan: &Plan) -> Vec<Fired> {
    let begun = Instant::now();
    let fired = Arc::new(Mutex::new(Vec::new()));
    let processes = Arc::new(tokio::sync::Mutex::new(()));
    let mut running = tokio::task::JoinSet::new();
    for planned in plan.faults.clone() {
        sleep_until(begun + Duration::from_millis(planned.at)).await;
        let one = Director {
            world: Arc::clone(&world),
            planned,
        };
        let (fired, processes) = (Arc::clone(&fired), Arc::clone(&processes));
        let alone = {
            use Fault::{
                BackendKill, PostgresKill, PostgresRestart, RelayKill, RelayStop, RelayTerm,
            };
            matches!(
                planned.fault,
                BackendKill | PostgresKill | PostgresRestart | RelayKill | RelayStop | RelayTerm
            )
        };
        let task = async move {
            let _turn = if alone {
                Some(processes.lock().await)
            } else {
                None
            };
            let told = one.run().await;
            fired.lock().unwrap().push(told);
        };
        if alone {
            task.await;
        } else {
            running.spawn(task);
        }
    }
    while running.join_next().await.is_some() {}
    std::mem::take(&mut *fired.lock().unwrap())
}

struct Director {
    world: Arc<World>,
    planned: Planned,
}

/// What a fault leaves to tell: why it is known to have happened, and since when it is over.
struct Told {
    evidence: Option<String>,
    healed: u64,
    ready: Vec<u64>,
}

impl Director {
    async fn run(self) -> Fired {
        let begun = now();
        let fault = self.planned.fault;
        let told = match fault {
            Fault::RelayKill => self.end_relay("KILL").await,
            Fault::RelayTerm => self.end_relay("TERM").await,
            Fault::RelayStop => self.stop_relay().await,
            Fault::PostgresKill => self.end_postgres("KILL").await,
            Fault::PostgresRestart => self.end_postgres("INT").await,
            Fault::BackendKill => self.kill_backend().await,
            Fault::ListenerEnd => self.end_listener().await,
            Fault::LongTransaction | Fault::LongElsewhere => self.long_transaction().await,
            Fault::StuckListener => self.stuck_listener().await,
            Fault::TrimToTheEdge => self.trim().await,
            Fault::Ddl => self.ddl().await,
            Fault::Revoke => self.revoke().await,
            Fault::PoolHog => self.pool_hog().await,
            Fault::Herd => self.herd().await,
            _ => self.link().await,
        };
        Fired {
            kind: fault.name(),
            target: format!("relay {}", self.planned.relay),
            begun,
            healed: told.healed,
            ready: told.ready,
            evidence: told.evidence,
            harms_postgres: fault.harms_postgres(),
        }
    }

    fn relay(&self) -> &Relay {
        &self.world.relays[self.planned.relay]
    }

    async fn lasts(&self) {
        sleep(Duration::from_millis(self.planned.lasts)).await;
    }

    async fn end_relay(&self, name: &str) -> Told {
        let relay = self.relay();
        let there = relay.signal(name).await;
        let ended = relay.gone(Duration::from_secs(20)).await;
        sleep(Duration::from_millis(self.planned.lasts / 10)).await;
        let started = now();
        relay.start().await;
        let ready = relay.ready(started, PATIENCE).await;
        Told {
            evidence: there.then_some(ended),
            healed: started,
            ready: ready.into_iter().collect(),
        }
    }

    async fn stop_relay(&self) -> Told {
        let relay = self.relay();
        let there = relay.signal("STOP").await;
        self.lasts().await;
        relay.signal("CONT").await;
        let healed = now();
        let ready = relay.ready(healed, PATIENCE).await;
        Told {
            evidence: there.then(|| format!("stopped for {} ms", self.planned.lasts)),
            healed,
            ready: ready.into_iter().collect(),
        }
    }

    async fn client(&self) -> Option<Client> {
        let connecting = tokio_postgres::connect(&self.world.database.url, NoTls);
        let (client, connection) = timeout(Duration::from_secs(5), connecting)
            .await
            .ok()?
            .ok()?;
        tokio::spawn(connection);
        Some(client)
    }

    /// When PostgreSQL answers a question.
    async fn answers(&self) -> u64 {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Some(client) = self.client().await
                && client.batch_execute("select").await.is_ok()
            {
                return now();
            }
            sleep(Duration::from_millis(10)).await;
        }
        now()
    }

    /// Each relay's time back, from then on.
    async fn all_ready(&self, since: u64) -> Vec<u64> {
        let relays = self.world.relays.iter();
        let ready = relays.map(|relay| relay.ready(since, PATIENCE));
        let ready = futures::future::join_all(ready).await;
        ready.into_iter().flatten().collect()
    }

    async fn end_postgres(&self, name: &str) -> Told {
        let Some(pid) = self.world.server.cluster.pid() else {
            return never();
        };
        signal(pid, name).await;
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end && self.world.server.cluster.pid() == Some(pid) {
            sleep(Duration::from_millis(10)).await;
        }
        let healed = self.answers().await;
        let next = self.world.server.cluster.pid();
        Told {
            evidence: (next != Some(pid)).then(|| format!("{pid} became {next:?}")),
            healed,
            ready: self.all_ready(healed).await,
        }
    }

    /// PostgreSQL then ends all others, and recovers.
    async fn kill_backend(&self) -> Told {
        let Some(client) = self.client().await else {
            return never();
        };
        let sql = "select pid from pg_stat_activity where backend_type = 'client backend' \
                   and pid <> pg_backend_pid() order by application_name <> 'rowcast feed', random() limit 1";
        let Ok(row) = client.query_one(sql, &[]).await else {
            return never();
        };
        let pid: i32 = row.get(0);
        signal(u32::try_from(pid).expect("a pid"), "KILL").await;
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end && !client.is_closed() {
            sleep(Duration::from_millis(10)).await;
        }
        let healed = self.answers().await;
        Told {
            evidence: client
                .is_closed()
                .then(|| format!("{pid} took all others along")),
            healed,
            ready: self.all_ready(healed).await,
        }
    }

    async fn end_listener(&self) -> Told {
        let Some(client) = self.client().await else {
            return never();
        };
        let sql = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                   where application_name in ('rowcast doorbell', 'rowcast feed')";
        let ended: i64 = client.query_one(sql, &[]).await.map_or(0, |row| row.get(0));
        let healed = now();
        Told {
            evidence: (ended > 0).then(|| format!("{ended} backends ended")),
            healed,
            ready: self.all_ready(healed).await,
        }
    }

    /// One of the links misbehaves.
    async fn link(&self) -> Told {
        let relay = self.relay();
        let of_clients = matches!(
            self.planned.fault,
            Fault::ClientCut | Fault::ClientStall | Fault::ClientHalfOpen | Fault::ClientSlow
        );
        let link = if of_clients {
            &relay.door
        } else {
            &relay.database
        };
        let stalled = Way {
            stalled: true,
            ..Way::default()
        };
        let swallowed = Way {
            swallowed: true,
            ..Way::default()
        };
        let slow = Way {
            delay: Duration::from_millis(self.planned.lasts / 15),
            slice: 1 + usize::try_from(self.planned.lasts % 700).expect("small"),
            rate: 400_000,
            ..Way::default()
        };
        let trouble = match self.planned.fault {
            Fault::DatabaseStall | Fault::ClientStall => Trouble {
                up: stalled,
                down: stalled,
                ..Trouble::default()
            },
            Fault::DatabaseOneWay => Trouble {
                down: stalled,
                ..Trouble::default()
            },
            Fault::DatabaseHalfOpen => Trouble {
                up: swallowed,
                ..Trouble::default()
            },
            Fault::ClientHalfOpen => Trouble {
                down: swallowed,
                ..Trouble::default()
            },
            Fault::DatabaseSlow | Fault::ClientSlow => Trouble {
                up: slow,
                down: slow,
                ..Trouble::default()
            },
            // Cut at once, and nobody comes in for a while.
            _ => Trouble {
                refuses: true,
                ..Trouble::default()
            },
        };
        let read = || {
            let done = &link.done;
            [
                ("cut", &done.cut),
                ("bytes swallowed", &done.swallowed_bytes),
                ("pieces delayed", &done.delayed),
                ("pieces stalled", &done.stalls),
            ]
            .map(|(what, count)| (what, count.load(Ordering::Relaxed)))
        };
        let before = read();
        let end = tokio::time::Instant::now() + PATIENCE;
        while trouble.refuses && read() == before && tokio::time::Instant::now() < end {
            // A relay that another fault has just stopped has nobody: whoever comes first is cut.
            link.cut();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        link.misbehave(trouble);
        if trouble.refuses {
            link.cut();
        }
        self.lasts().await;
        let after = read();
        link.heal();
        let healed = now();
        let did = after
            .iter()
            .zip(before)
            .filter(|(after, before)| after.1 > before.1);
        let did: Vec<String> = did
            .map(|(after, before)| format!("{} {}", after.1 - before.1, after.0))
            .collect();
        Told {
            evidence: (!did.is_empty()).then(|| did.join(", ")),
            healed,
            ready: relay.ready(healed, PATIENCE).await.into_iter().collect(),
        }
    }

    async fn long_transaction(&self) -> Told {
        let mut url = self.world.database.url.clone();
        if self.planned.fault == Fault::LongElsewhere {
            let cut = url.rfind("dbname=").expect("a database") + "dbname=".len();
            url.replace_range(cut.., "postgres");
        }
        let Ok((client, connection)) = tokio_postgres::connect(&url, NoTls).await else {
            return never();
        };
        tokio::spawn(connection);
        let held = client
            .batch_execute("begin isolation level repeatable read; select pg_current_xact_id()")
            .await;
        sleep(Duration::from_millis(self.planned.lasts * 2)).await;
        // Cut by another fault it is still one that was long.
        let ended = client.batch_execute("rollback").await;
        Told {
            evidence: held
                .is_ok()
                .then(|| format!("held for {} ms, {ended:?}", self.planned.lasts * 2)),
            healed: now(),
            ready: Vec::new(),
        }
    }

    /// It listens and sits in a transaction, so the queue of notices cannot be emptied.
    async fn stuck_listener(&self) -> Told {
        let Some(client) = self.client().await else {
            return never();
        };
        let stuck = client
            .batch_execute("listen rowcast; begin; select 1")
            .await;
        self.lasts().await;
        drop(client);
        Told {
            evidence: stuck
                .is_ok()
                .then(|| "it listened and did not read".to_owned()),
            healed: now(),
            ready: Vec::new(),
        }
    }

    /// Trims everything that may be trimmed, again and again: who is away then is reset.
    async fn trim(&self) -> Told {
        let Some(client) = self.client().await else {
            return never();
        };
        let end = Instant::now() + Duration::from_millis(self.planned.lasts);
        let mut trims = 0;
        let mut failed = None;
        while Instant::now() < end {
            match client.batch_execute(TRIM).await {
                Ok(()) => trims += 1,
                Err(error) => failed = Some(format!("{error:?}")),
            }
            sleep(Duration::from_millis(50)).await;
        }
        Told {
            evidence: (trims > 0).then(|| format!("{trims} trims, {failed:?}")),
            healed: now(),
            ready: Vec::new(),
        }
    }

    async fn ddl(&self) -> Told {
        // Another fault may have stopped the server just now.
        self.answers().await;
        let Some(mut client) = self.client().await else {
            return never();
        };
        let mut done = 0;
        for sql in [
            "alter table hc_life add column extra int",
            "alter table hc_life alter column extra type bigint",
            "alter table hc_life drop column extra",
            "create index hc_reg_v on hc_reg (v)",
            "drop index hc_reg_v",
        ] {
            // It must wait for no writer for long, nor let writers wait for it.
            let sql = format!("set lock_timeout = '80ms'; {sql}");
            for _ in 0..100 {
                if client.batch_execute(&sql).await.is_ok() {
                    done += 1;
                    break;
                }
                sleep(Duration::from_millis(40)).await;
                // Another fault may have cut us.
                if client.is_closed()
                    && let Some(again) = self.client().await
                {
                    client = again;
                }
            }
            sleep(Duration::from_millis(self.planned.lasts / 5)).await;
        }
        Told {
            evidence: (done > 0).then(|| format!("{done} of 5 statements")),
            healed: now(),
            ready: Vec::new(),
        }
    }

    async fn revoke(&self) -> Told {
        self.answers().await;
        let Some(client) = self.client().await else {
            return never();
        };
        let revoked = client
            .batch_execute("revoke select on hc_xfer from hc_visitor")
            .await;
        self.lasts().await;
        let granted = loop {
            // Another fault may have cut us; the right must come back.
            if let Some(client) = self.client().await
                && client
                    .batch_execute("grant select on hc_xfer to hc_visitor")
                    .await
                    .is_ok()
            {
                break now();
            }
            sleep(Duration::from_millis(50)).await;
        };
        Told {
            evidence: revoked.is_ok().then(|| "revoked and granted".to_owned()),
            healed: granted,
            ready: Vec::new(),
        }
    }

    /// Requests that take a second each, more than the pool has connections.
    async fn pool_hog(&self) -> Told {
        let door = self.relay().door.address;
        let token = crate::world::token("hc_writer", &[]).await;
        let end = Instant::now() + Duration::from_millis(self.planned.lasts);
        let hogs = (0..30).map(|_| async {
            let http = crate::world::http();
            let url = format!("http://{door}/rest/v1/rpc/hc_sleep");
            let authorization = format!("Bearer {token}");
            let headers = [
                ("authorization", authorization.as_str()),
                ("content-type", "application/json"),
            ];
            let mut answered = 0;
            while Instant::now() < end {
                let answer = crate::world::ask(
                    &http,
                    hyper::Method::POST,
                    &url,
                    &headers,
                    "{}".into(),
                    Duration::from_secs(12),
                )
                .await;
                answered += u32::from(answer.is_ok());
            }
            answered
        });
        let answered: u32 = futures::future::join_all(hogs).await.iter().sum();
        Told {
            evidence: (answered > 0).then(|| format!("{answered} slow requests answered")),
            healed: now(),
            ready: Vec::new(),
        }
    }

    /// Many connections at once that ask for nothing.
    async fn herd(&self) -> Told {
        let door = self.relay().door.address;
        let connecting =
            (0..300).map(|_| timeout(Duration::from_secs(5), TcpStream::connect(door)));
        let herd = futures::future::join_all(connecting).await;
        let there = herd.iter().filter(|one| matches!(one, Ok(Ok(_)))).count();
        self.lasts().await;
        drop(herd);
        Told {
            evidence: (there > 100).then(|| format!("{there} connections")),
            healed: now(),
            ready: Vec::new(),
        }
    }
}

fn never() -> Told {
    Told {
        evidence: None,
        healed: now(),
        ready: Vec::new(),
    }
}

const TRIM: &str = "select rowcast.trim('1 second', 1000)";

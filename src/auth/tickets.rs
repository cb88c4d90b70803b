//! One-time tickets: an identity under a random name, for readers that cannot send headers.
//!
//! Promises that a ticket opens one stream, within 30 s, and only at the paths it was made for; that
//! there are never more than 10,000; and that nothing kept here can be turned back into a ticket.
//! It does not know requests. Tickets live in the memory of one relay: behind a balancer they need
//! the one that made them, and everybody else has cookies.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::time::Instant;

use super::Identity;
use super::keys::fingerprint;

/// How long a ticket waits to be used.
pub const LIFETIME: Duration = Duration::from_secs(30);
/// Most tickets at once.
const MOST: usize = 10_000;
/// As many of these may be of one user, so that nobody shuts out all others.
const MOST_OF_ONE: usize = 7_500;
/// Bytes of chance in a ticket.
const BYTES: usize = 32;
/// Letters that they make.
const LETTERS: usize = 43;

/// Why there is no ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IssueError {
    /// As many tickets as there may be wait to be used, or as many as one user gets.
    #[error("too many tickets wait to be used")]
    Full,
    /// The system gave no random numbers.
    #[error("the system has no random numbers")]
    NoChance,
}

/// The tickets that wait to be used.
#[derive(Default)]
pub struct Tickets {
    /// A standard mutex: held for a look-up and never across an await.
    waiting: Mutex<Waiting>,
    users: RandomState,
}

#[derive(Default)]
struct Waiting {
    /// By SHA-256 of the ticket, so that the time a look-up takes tells nothing about others.
    tickets: HashMap<[u8; 32], Ticket>,
    /// The same in the order in which they end, those already used among them.
    order: VecDeque<Place>,
}

struct Place {
    print: [u8; 32],
    end: Instant,
}

struct Ticket {
    identity: Identity,
    paths: Vec<String>,
    /// Whose it is: everybody with the same role and claims is one.
    user: u64,
}

impl fmt::Debug for Tickets {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Tickets")
    }
}

/// Whether a text has the form of a ticket. A filter never has: it holds a dot.
#[must_use]
pub fn has_form(text: &str) -> bool {
    text.len() == LETTERS
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

impl Tickets {
    /// Makes a ticket for `identity` that opens a stream at one of `paths`, or at any when there are
    /// none.
    ///
    /// # Errors
    /// [`IssueError::Full`] while 10,000 wait, or 7,500 of the same user.
    pub fn issue(&self, identity: Identity, paths: Vec<String>) -> Result<String, IssueError> {
        let mut bytes = [0; BYTES];
        SystemRandom::new()
            .fill(&mut bytes)
            .map_err(|_| IssueError::NoChance)?;
        let text = URL_SAFE_NO_PAD.encode(bytes);
        let user = (&identity.role, identity.context_claims());
        let user = self.users.hash_one(user);
        let now = Instant::now();
        let mut waiting = self.lock();
        waiting.forget(now);
        if !waiting.has_room_for(user) {
            return Err(IssueError::Full);
        }
        let print = fingerprint(text.as_bytes());
        waiting.order.push_back(Place {
            print,
            end: now + LIFETIME,
        });
        let ticket = Ticket {
            identity,
            paths,
            user,
        };
        waiting.tickets.insert(print, ticket);
        Ok(text)
    }

    /// Takes a ticket for a stream at `path`. It is used up whatever the answer: a ticket that was
    /// shown at the wrong place may have been found there.
    pub fn redeem(&self, ticket: &str, path: &str, now: SystemTime) -> Option<Identity> {
        let found = {
            let mut waiting = self.lock();
            waiting.forget(Instant::now());
            waiting.tickets.remove(&fingerprint(ticket.as_bytes()))?
        };
        let opens = found.paths.is_empty() || found.paths.iter().any(|one| one == path);
        let lives = found.identity.expires.is_none_or(|expires| now < expires);
        (opens && lives).then_some(found.identity)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// One that was used waits for nothing: who comes back in a herd uses his at once.
    fn has_room_for(&self, user: u64) -> bool {
        if self.tickets.len() < MOST_OF_ONE {
            // Nobody has so many while there are not so many in all.
            return true;
        }
        let own = self.tickets.values().filter(|ticket| ticket.user == user);
        self.tickets.len() < MOST && own.count() < MOST_OF_ONE
    }

    /// Drops what has ended. All live equally long, so the oldest is always in front.
    fn forget(&mut self, now: Instant) {
        while self.order.front().is_some_and(|place| place.end <= now) {
            if let Some(place) = self.order.pop_front() {
                self.tickets.remove(&place.print);
            }
        }
        if self.order.len() >= 2 * MOST {
            let Self { tickets, order } = self;
            order.retain(|place| tickets.contains_key(&place.print));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ann() -> Identity {
        Identity {
            role: Some("ann".into()),
            claims: "{}".into(),
            expires: None,
            verified: true,
            signed_by: None,
        }
    }

    fn redeem(tickets: &Tickets, ticket: &str, path: &str) -> bool {
        tickets.redeem(ticket, path, SystemTime::now()).is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn a_ticket_opens_one_stream() {
        let tickets = Tickets::default();
        let ticket = tickets.issue(ann(), Vec::new()).unwrap();
        assert!(has_form(&ticket));
        assert!(!redeem(&tickets, "another", "/x"));
        assert!(redeem(&tickets, &ticket, "/x"));
        assert!(!redeem(&tickets, &ticket, "/x"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_ticket_is_dead_after_30_seconds() {
        let tickets = Tickets::default();
        let (early, late) = (
            tickets.issue(ann(), Vec::new()).unwrap(),
            tickets.issue(ann(), Vec::new()).unwrap(),
        );
        tokio::time::advance(Duration::from_secs(29)).await;
        assert!(redeem(&tickets, &early, "/x"));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!redeem(&tickets, &late, "/x"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_ticket_opens_only_its_paths_and_is_used_up_elsewhere() {
        let tickets = Tickets::default();
        let paths = vec!["/rest/v1/tasks".to_owned()];
        let ticket = tickets.issue(ann(), paths.clone()).unwrap();
        assert!(redeem(&tickets, &ticket, "/rest/v1/tasks"));
        let ticket = tickets.issue(ann(), paths).unwrap();
        assert!(!redeem(&tickets, &ticket, "/rest/v1/salaries"));
        assert!(!redeem(&tickets, &ticket, "/rest/v1/tasks"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_ticket_does_not_outlive_its_token() {
        let tickets = Tickets::default();
        let now = SystemTime::now();
        let identity = Identity {
            expires: Some(now),
            ..ann()
        };
        let ticket = tickets.issue(identity, Vec::new()).unwrap();
        assert!(tickets.redeem(&ticket, "/x", now).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_ten_thousand_there_is_no_ticket_until_the_oldest_end() {
        let tickets = Tickets::default();
        let issue = |name: &str| {
            let identity = Identity {
                claims: format!(r#"{{"sub":"{name}"}}"#).into(),
                ..ann()
            };
            tickets.issue(identity, Vec::new())
        };
        for _ in 0..MOST_OF_ONE {
            issue("ann").unwrap();
        }
        // Who takes as many as he can get leaves some to others.
        assert_eq!(issue("ann"), Err(IssueError::Full));
        for _ in MOST_OF_ONE..MOST {
            issue("bob").unwrap();
        }
        assert_eq!(issue("zed"), Err(IssueError::Full));
        tokio::time::advance(LIFETIME).await;
        assert!(issue("ann").is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn tickets_that_were_used_leave_their_place_to_others() {
        let tickets = Tickets::default();
        let _waits = tickets.issue(ann(), Vec::new()).unwrap();
        for _ in 0..3 * MOST {
            let ticket = tickets.issue(ann(), Vec::new()).unwrap();
            assert!(redeem(&tickets, &ticket, "/x"));
        }
        let waiting = tickets.lock();
        assert_eq!(waiting.tickets.len(), 1);
        assert!(waiting.order.len() <= 2 * MOST, "{}", waiting.order.len());
    }
}

//! Which server may be followed: none that lies behind one that was followed already, and once there was a
//! primary no standby of it.
//!
//! A failover makes a standby the primary, and its timeline one higher. When the old primary comes
//! back, it takes writes and answers as if nothing had happened, on the lower timeline: whoever
//! follows it goes back in time, and whoever writes there loses what he wrote. So the highest
//! timeline that was seen is remembered, and a connection to a server on a lower one is refused.
//!
//! A standby takes over when it is promoted. Before that a connection that was made while the primary was away would
//! stay with it: reads would be of earlier, and each write an error, for as long as the connection lasts.
//!
//! In memory, and by all connections of a process. Not in tokens: those are not signed, and whoever
//! made one up could stop a relay. Somebody who wants to go back on purpose restarts the relays.

use std::sync::{Arc, Mutex};

use tokio_postgres::{Client, SimpleQueryMessage};

/// The highest timeline that was seen. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Fence(Arc<Mutex<Option<Seen>>>);

#[derive(Debug, Clone)]
struct Seen {
    /// Numbers of `initdb`: only digits.
    system: String,
    timeline: u32,
}

/// The SQLSTATE with which a server is refused that lies behind or is a standby. PostgreSQL has no such code.
pub const BEHIND: &str = "RCF01";

/// What a server says of itself. The file's name knows a new timeline at once, the control file only
/// after the next checkpoint (measured).
const ASK: &str = "select (select system_identifier::text from pg_control_system()), \
    case when pg_is_in_recovery() then 0 \
    else ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint end";

impl Fence {
    /// Remembers where this server is. A login that may not ask for it is let through: it sees less.
    ///
    /// # Errors
    /// PostgreSQL's answer.
    pub async fn learn(&self, client: &Client) -> Result<(), tokio_postgres::Error> {
        let answer = match client.simple_query(ASK).await {
            Ok(answer) => answer,
            Err(error) if error.code().is_some() => return Ok(()),
            Err(error) => return Err(error),
        };
        for message in answer {
            if let SimpleQueryMessage::Row(row) = message {
                let system = row.get(0).unwrap_or_default();
                let timeline = row.get(1).and_then(|text| text.parse().ok());
                self.raise(system, timeline.unwrap_or(0));
            }
        }
        Ok(())
    }

    fn raise(&self, system: &str, timeline: u32) {
        if timeline == 0 || system.is_empty() || !system.bytes().all(|byte| byte.is_ascii_digit()) {
            return;
        }
        let mut seen = self.0.lock().expect("no panic while held");
        let behind = |seen: &Seen| seen.system == system && seen.timeline >= timeline;
        if !seen.as_ref().is_some_and(behind) {
            *seen = Some(Seen {
                system: system.to_owned(),
                timeline,
            });
        }
    }

    /// A statement that fails with [`BEHIND`] on a server that must not be used; `None` before any
    /// was seen. It may stand in front of anything else.
    #[must_use]
    pub fn statement(&self) -> Option<String> {
        let seen = self.0.lock().expect("no panic while held").clone()?;
        let Seen { system, timeline } = seen;
        Some(format!(
            "do $rowcast$ declare here bigint; begin \
             begin select t.timeline into here from ({ASK}) as t (system, timeline) where t.system = '{system}'; \
             exception when insufficient_privilege then return; end; \
             if here < {timeline} then \
             raise exception using errcode = '{BEHIND}', message = case here when 0 then \
             'this server is a standby, and a primary of the same system was seen before \
             (found: pg_is_in_recovery() is true; try: the primary''s address, or several with \
             target_session_attrs=read-write)' else format( \
             'this server is on timeline %s, and timeline {timeline} of the same system was seen before: \
             it is an old primary that came back after a failover (try: stop it, or make it a standby of the new \
             primary; to go back to it on purpose, restart every relay)', here) end; \
             end if; end $rowcast$",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::embedded::tests::throw_away;

    #[test]
    fn the_highest_timeline_of_a_system_is_kept() {
        let fence = Fence::default();
        assert!(fence.statement().is_none());
        let timeline = || fence.0.lock().unwrap().clone().unwrap().timeline;
        fence.raise("7", 2);
        fence.raise("7", 1);
        assert_eq!(timeline(), 2);
        fence.raise("7", 4);
        assert_eq!(timeline(), 4);
        // Another system is another story.
        fence.raise("8", 1);
        assert_eq!(timeline(), 1);
        // Nothing that is no number comes near the statement.
        fence.raise("' or true", 9);
        fence.raise("", 9);
        fence.raise("8", 0);
        assert_eq!(timeline(), 1);
    }

    #[tokio::test]
    async fn a_server_that_lies_behind_is_refused_and_no_other() {
        let Some((_directory, cluster)) = throw_away().await else {
            return;
        };
        let target = cluster.target("postgres");
        let (client, connection) = target.connect("test").await.unwrap();
        tokio::spawn(connection);
        let fence = Fence::default();
        fence.learn(&client).await.unwrap();
        let Seen { system, timeline } = fence.0.lock().unwrap().clone().unwrap();
        assert_eq!(timeline, 1);
        let ask = async || client.batch_execute(&fence.statement().unwrap()).await;
        ask().await.unwrap();
        fence.raise(&system, 2);
        let refused = ask().await.unwrap_err();
        assert_eq!(refused.code().unwrap().code(), BEHIND);
        assert!(
            refused
                .as_db_error()
                .unwrap()
                .message()
                .contains("timeline 1")
        );
        fence.raise("1", 7);
        ask().await.unwrap();
        cluster.stop().await;
    }
}

//! How long what somebody has opened may stay open.
//!
//! A stream ends with the token that opened it, unless its owner brings a later token meanwhile: any
//! request of the same identity to the same relay will do. Pure but for its lock.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::SystemTime;

use tokio::sync::watch;

use super::Identity;

/// When the streams of each identity end.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<HashMap<String, watch::Sender<SystemTime>>>);

impl Sessions {
    /// The end of what `identity` opens now, which may move on; `None` when it has no end.
    #[must_use]
    pub fn end(&self, identity: &Identity) -> Option<watch::Receiver<SystemTime>> {
        let expires = identity.expires?;
        let mut ends = self.ends();
        ends.retain(|_, end| end.receiver_count() > 0);
        let end = ends.entry(identity.context_claims());
        let end = end.or_insert_with(|| watch::Sender::new(expires));
        extend(end, expires);
        Some(end.subscribe())
    }

    /// Somebody brought a valid token: what the same identity has open lasts as long.
    pub fn renew(&self, identity: &Identity) {
        let Some(expires) = identity.expires else {
            return;
        };
        let ends = self.ends();
        if ends.is_empty() {
            return;
        }
        if let Some(end) = ends.get(&identity.context_claims()) {
            extend(end, expires);
        }
    }

    fn ends(&self) -> std::sync::MutexGuard<'_, HashMap<String, watch::Sender<SystemTime>>> {
        self.0.lock().expect("no panic while held")
    }
}

fn extend(end: &watch::Sender<SystemTime>, expires: SystemTime) {
    end.send_if_modified(|end| {
        let later = expires > *end;
        if later {
            *end = expires;
        }
        later
    });
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn identity(sub: &str, expires: u64) -> Identity {
        Identity {
            role: Some("web".to_owned()),
            claims: format!(r#"{{"role":"web","sub":"{sub}","exp":{expires}}}"#).into(),
            expires: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(expires)),
            verified: true,
        }
    }

    #[test]
    fn a_later_token_of_the_same_person_moves_the_end_and_no_other_does() {
        let sessions = Sessions::default();
        let ann = identity("ann", 100);
        let end = sessions.end(&ann).unwrap();
        sessions.renew(&identity("bob", 300));
        sessions.renew(&identity("ann", 50));
        assert_eq!(*end.borrow(), ann.expires.unwrap());
        let later = identity("ann", 200);
        sessions.renew(&later);
        assert_eq!(*end.borrow(), later.expires.unwrap());
        drop(end);
        // Nobody is there any more: nothing is kept for the next one.
        assert_eq!(*sessions.end(&ann).unwrap().borrow(), ann.expires.unwrap());
    }
}

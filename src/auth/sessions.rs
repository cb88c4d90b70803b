//! How long what somebody has opened may stay open.
//!
//! A stream ends with the token that opened it, unless its owner brings a later token meanwhile: any
//! request of the same identity to the same relay will do. It also ends when the issuer removes the key of that
//! token and no other was brought. Pure but for its lock.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::SystemTime;

use tokio::sync::watch;

use super::{Identity, Print};

/// When the streams of each identity end.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<HashMap<String, Session>>);

/// What one identity has open.
#[derive(Debug)]
struct Session {
    end: watch::Sender<SystemTime>,
    /// The keys of its tokens, each with the latest of their ends.
    keys: Vec<(Print, SystemTime)>,
}

impl Sessions {
    /// The end of what `identity` opens now, which may move on; `None` when it has no end.
    #[must_use]
    pub fn end(&self, identity: &Identity) -> Option<watch::Receiver<SystemTime>> {
        let (key, expires) = (identity.signed_by?, identity.expires?);
        let mut sessions = self.sessions();
        let session = sessions.entry(identity.context_claims());
        let session = session.or_insert_with(|| Session {
            end: watch::Sender::new(expires),
            keys: Vec::new(),
        });
        // Who had something open is not there any more.
        if session.end.receiver_count() == 0 {
            session.keys.clear();
        }
        session.extend(key, expires);
        Some(session.end.subscribe())
    }

    /// Somebody brought a valid token: what the same identity has open lasts as long.
    pub fn renew(&self, identity: &Identity) {
        let (Some(key), Some(expires)) = (identity.signed_by, identity.expires) else {
            return;
        };
        let mut sessions = self.sessions();
        if sessions.is_empty() {
            return;
        }
        if let Some(session) = sessions.get_mut(&identity.context_claims()) {
            session.extend(key, expires);
        }
    }

    /// Forgets who has nothing open any more, and tells whether anybody is left. Now and then, since it looks at all:
    /// thousands who come back at once must not do so each.
    pub(super) fn tidy(&self) -> bool {
        let mut sessions = self.sessions();
        sessions.retain(|_, session| session.end.receiver_count() > 0);
        !sessions.is_empty()
    }

    /// Tokens of other keys are worth nothing any more.
    pub(super) fn keep_signed_by(&self, serves: impl Fn(&Print) -> bool) {
        for session in self.sessions().values_mut() {
            session.keys.retain(|(key, _)| serves(key));
            session.settle();
        }
    }

    fn sessions(&self) -> std::sync::MutexGuard<'_, HashMap<String, Session>> {
        self.0.lock().expect("no panic while held")
    }
}

impl Session {
    fn extend(&mut self, key: Print, expires: SystemTime) {
        match self.keys.iter_mut().find(|(known, _)| *known == key) {
            Some((_, end)) => *end = expires.max(*end),
            None => self.keys.push((key, expires)),
        }
        self.settle();
    }

    /// It lasts as long as the last of its tokens; without any it is over.
    fn settle(&self) {
        let ends = self.keys.iter().map(|(_, end)| *end);
        let latest = ends.max().unwrap_or(SystemTime::UNIX_EPOCH);
        self.end.send_if_modified(|end| {
            let moved = latest != *end;
            *end = latest;
            moved
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const KEY: Print = Print([1; 32]);

    fn identity(sub: &str, expires: u64) -> Identity {
        signed(KEY, sub, expires)
    }

    fn signed(key: Print, sub: &str, expires: u64) -> Identity {
        Identity {
            role: Some("web".to_owned()),
            claims: format!(r#"{{"role":"web","sub":"{sub}","exp":{expires}}}"#).into(),
            expires: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(expires)),
            verified: true,
            signed_by: Some(key),
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

    #[test]
    fn what_a_key_has_opened_ends_with_it_unless_another_one_serves() {
        let sessions = Sessions::default();
        let other = Print([2; 32]);
        let ann = sessions.end(&identity("ann", 100)).unwrap();
        let bob = sessions.end(&identity("bob", 300)).unwrap();
        let second = signed(other, "bob", 200);
        sessions.renew(&second);
        sessions.keep_signed_by(|key| *key == other);
        assert_eq!(*ann.borrow(), SystemTime::UNIX_EPOCH);
        assert_eq!(*bob.borrow(), second.expires.unwrap());
        // With a new token it is as it was.
        let again = signed(other, "ann", 400);
        assert_eq!(
            *sessions.end(&again).unwrap().borrow(),
            again.expires.unwrap()
        );
        drop((ann, bob));
        assert!(!sessions.tidy());
    }
}

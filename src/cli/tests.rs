//! What looks as if it were a setting, and is none.

use super::*;

#[test]
fn a_variable_that_nothing_reads_is_told_of() {
    let unread = |names: &[(&str, &str)]| {
        let set = names
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Unread::of(set)
    };
    let found = unread(&[
        ("ROWCAST_JWT_SECRETS", "x"),
        ("ROWCAST_ANON_ROLL", "web_anon"),
        ("PGRST_LOG_LEVEL", "info"),
    ]);
    assert_eq!(found.unknown, ["ROWCAST_ANON_ROLL", "ROWCAST_JWT_SECRETS"]);
    assert_eq!(found.theirs, ["PGRST_LOG_LEVEL"]);
    assert_eq!(found.told().len(), 2);
    let read = unread(&[
        ("ROWCAST_JWT_SECRET", "x"),
        ("ROWCAST_JWT_SECRET_FILE", "x"),
        ("ROWCAST_MAX_STREAMS_PER_USER", "1"),
        // Of a command.
        ("ROWCAST_URL", "http://127.0.0.1:3000"),
        ("PGRST_DB_SCHEMAS", "public"),
        ("HOME", "/"),
        // Kubernetes, for a service of our name.
        ("ROWCAST_SERVICE_HOST", "10.0.0.1"),
        ("ROWCAST_SERVICE_PORT_HTTP", "3000"),
        ("ROWCAST_PORT", "tcp://10.0.0.1:3000"),
        ("ROWCAST_PORT_3000_TCP_ADDR", "10.0.0.1"),
    ]);
    assert_eq!(read, Unread::default());
}

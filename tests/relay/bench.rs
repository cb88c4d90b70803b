//! `rowcast bench` tells the truth about what arrived, and clears away what it made.

use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use crate::harness::{DEADLINE, command, database, signal};

/// Runs it small; returns whether it was content, what it said as JSON, and its error output.
async fn bench(arguments: &[&str]) -> (bool, Value, String) {
    let running = command()
        .args(["bench", "--json", "--screens", "50"])
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    let output = tokio::time::timeout(DEADLINE * 3, running).await;
    let output = output.expect("it is bounded").unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    let said = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.success(), said, error)
}

#[tokio::test]
async fn every_commit_is_counted_at_every_screen() {
    let directory = tempfile::tempdir().unwrap();
    let picture = directory.path().join("latency.svg");
    let (content, said, error) = bench(&[
        "--rate",
        "50",
        "--seconds",
        "2",
        "--views",
        "5",
        "--idle",
        "1",
        "--svg",
        picture.to_str().unwrap(),
    ])
    .await;
    assert!(content, "{error}{said:#}");
    let changes = &said["changes"];
    assert_eq!(changes["committed"], 100);
    // Each is of one view, and each view is on ten screens.
    assert_eq!(changes["expected"], 1000);
    assert_eq!(changes["delivered"], changes["expected"]);
    for trouble in [
        "lost",
        "folded",
        "duplicated",
        "out_of_order",
        "resets",
        "closed",
    ] {
        assert_eq!(changes[trouble], 0, "{trouble}: {said:#}");
    }
    for latency in [
        &said["latency_ms"],
        &said["commit_ms"],
        &said["connect"]["each_ms"],
        &said["bench"]["slip_ms"],
    ] {
        let order = ["p50", "p90", "p99", "p99_9", "max"].map(|name| latency[name].as_f64());
        assert!(order.is_sorted() && order[0].is_some(), "{latency}");
    }
    assert!(said["latency_ms"]["p50"].as_f64() > Some(0.0));
    if cfg!(target_os = "linux") {
        let relay = &said["relay"];
        for figure in [
            "cpu_us_per_event",
            "cpu_us_per_commit",
            "cpus",
            "idle_cpus",
            "rss_bytes",
        ] {
            assert!(relay[figure].as_f64() > Some(0.0), "{figure}: {relay}");
        }
    }
    assert!(said["bench"]["limits"].is_array());
    let picture = std::fs::read_to_string(picture).unwrap();
    assert!(picture.starts_with("<svg") && picture.ends_with("</svg>\n"));
}

#[tokio::test]
async fn a_running_relay_is_measured_and_its_database_left_as_it_was() {
    let database = database().await;
    let relay = database.relay().await;
    let pid = relay.child.id().unwrap().to_string();
    let on = [
        "--url",
        &relay.url,
        "--database-url",
        &database.url,
        "--pid",
        &pid,
    ];
    let short = ["--rate", "20", "--seconds", "1"];
    let (content, said, error) = bench(&[&on[..], &short].concat()).await;
    assert!(content, "{error}{said:#}");
    assert_eq!(said["changes"]["delivered"], 1000, "{said:#}");
    // A grant after the watch is a change of the table: its screens read anew, and miss what they read past.
    assert!(relay.metric("rowcast_drift_total").await <= 0.0, "{error}");
    assert_eq!(
        database
            .one("select count(*) from pg_class where relname = 'rowcast_bench'")
            .await,
        "0"
    );
    // Nobody may watch what is not there; the table is made anew.
    assert!(bench(&[&on[..], &short].concat()).await.0);

    let (content, said, error) = bench(&["--url", &relay.url]).await;
    assert!(!content && said == Value::Null);
    assert!(error.contains("try:   --database-url"), "{error}");
}

#[tokio::test]
async fn what_the_system_does_not_give_is_said_before_anything_is_started() {
    // A shell of its own has a limit of its own.
    let binary = command().as_std().get_program().to_owned();
    let output = tokio::process::Command::new("sh")
        .args([
            "-c",
            "ulimit -n 150; exec \"$0\" bench --screens 100 --seconds 1",
        ])
        .arg(binary)
        .output()
        .await
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(
        error.contains("100 screens need as many open files") && error.contains("--screens 50"),
        "{error}"
    );
}

#[tokio::test]
async fn whoever_is_told_to_stop_while_he_begins_leaves_nothing_behind() {
    for name in ["INT", "TERM", "HUP"] {
        let mut bench = command()
            .args(["bench", "--screens", "1"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = bench.id().unwrap();
        let mut error = BufReader::new(bench.stderr.take().unwrap());
        let mut said = String::new();
        error.read_line(&mut said).await.unwrap();
        assert_eq!(said, "starting a PostgreSQL and a relay for this run\n");
        signal(pid, name).await;
        let ended = tokio::time::timeout(DEADLINE, bench.wait()).await;
        assert_eq!(ended.unwrap().unwrap().code(), Some(1), "{name}");
        error.read_to_string(&mut said).await.unwrap();
        assert!(
            said.contains("interrupted; everything was cleared away"),
            "{said}"
        );
        assert!(!std::path::Path::new(&format!("/tmp/rowcast-bench-{pid}")).exists());
    }
}

#[tokio::test]
async fn a_picture_that_cannot_be_written_is_refused_before_the_run() {
    let directory = tempfile::tempdir().unwrap();
    let picture = directory.path().join("missing/latency.svg");
    let picture = picture.to_str().unwrap();
    let (content, _, error) = bench(&["--seconds", "1", "--svg", picture]).await;
    assert!(!content);
    assert!(
        error.starts_with(&format!("error: the picture {picture} cannot be written\n")),
        "{error}"
    );
}

#[tokio::test]
async fn what_stands_against_a_run_is_said_with_what_to_try() {
    let (database, other) = (database().await, database().await);
    let relay = database.relay().await;
    let on = |database: &str, more: &[&str]| {
        let relay = ["--url", &relay.url, "--database-url", database];
        let all = [&relay[..], more].concat();
        all.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let state_too_large = ["--rows", "7000", "--size", "10000"];
    for (arguments, found, advice) in [
        (
            on(&database.url, &["--token", "nonsense"]),
            "PGRST30",
            "--token with a token that it takes",
        ),
        (on(&database.url, &state_too_large), "RCR01", "--rows"),
        (
            on(&other.url, &[]),
            "schema \"rowcast\" does not exist",
            "--database-url with the database that the relay serves",
        ),
        // No process has so high a number.
        (
            on(&database.url, &["--pid", "4194305"]),
            "no such process",
            "--pid $(pidof rowcast)",
        ),
        (
            on(&database.url, &["--views", "100000", "--rows", "10000"]),
            "at most 2,000,000 rows",
            "fewer --views",
        ),
    ] {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (content, _, error) = bench(&arguments).await;
        let (before, tried) = error.split_once("try:").unwrap_or_default();
        assert!(!content && before.contains(found), "{error}");
        assert!(tried.contains(advice), "{error}");
    }
}

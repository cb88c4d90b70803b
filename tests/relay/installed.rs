//! What tests need besides Rust and PostgreSQL, and whether it is there. What is missing is left out
//! and said; in CI it fails.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

/// A folder under `tests/`.
pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join(name)
}

/// Whether this file is there, made by this command. If not, says so and in CI fails.
pub fn installed(file: &Path, how: &str) -> bool {
    let there = file.exists();
    if !there {
        let message = format!(
            "skipped: {} is missing; make it with: {how}",
            file.display()
        );
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{message}");
        eprintln!("{message}");
    }
    there
}

/// Whether there is a Chromium, and what drives it.
pub fn has_chromium() -> bool {
    let places = [
        "/usr/bin/chromium",
        "/usr/bin/chromium-browser",
        "/usr/bin/google-chrome",
    ];
    let chromium = std::env::var("CHROMIUM").unwrap_or_else(|_| {
        let there = places.iter().find(|place| Path::new(place).exists());
        (*there.unwrap_or(&places[0])).to_owned()
    });
    installed(Path::new(&chromium), "apt-get install chromium")
        && installed(
            &folder("browser").join("node_modules/playwright-core"),
            "npm ci --prefix tests/browser",
        )
}

/// nginx as `docs/reliability.md` sets it up, ready to be started in `folder`; `None` where it is not
/// installed. `relays` are addresses with `; server ` between them.
pub fn nginx(folder: &Path, relays: &str, listen: &str) -> Option<Command> {
    if !has_proxy("nginx") {
        return None;
    }
    let server = include_str!("../proxies/nginx.conf")
        .replace("RELAY", relays)
        .replace("LISTEN", listen);
    // One process, which can be ended.
    let whole = format!(
        "daemon off; master_process off; pid {0}/pid; error_log {0}/errors; events {{}} \
         http {{ access_log off; client_body_temp_path {0}/a; proxy_temp_path {0}/b; \
         fastcgi_temp_path {0}/c; uwsgi_temp_path {0}/d; scgi_temp_path {0}/e; {server} }}",
        folder.display()
    );
    // Comments end with their lines.
    std::fs::write(folder.join("conf"), whole).unwrap();
    let mut command = Command::new("nginx");
    command
        .env(
            "PATH",
            "/usr/sbin:/usr/bin:/opt/homebrew/bin:/usr/local/bin",
        )
        .arg("-p")
        .arg(folder)
        .arg("-c")
        .arg(folder.join("conf"))
        .args(["-e", "errors"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    Some(command)
}

/// Whether this proxy is there.
pub fn has_proxy(program: &str) -> bool {
    let there = [
        "/usr/sbin",
        "/usr/bin",
        "/opt/homebrew/bin",
        "/usr/local/bin",
    ];
    let found = there
        .iter()
        .any(|folder| Path::new(folder).join(program).exists());
    if !found {
        assert!(
            std::env::var_os("CI").is_none(),
            "{program} is missing: tests/setup.sh test"
        );
        eprintln!("skipped: {program} is not installed");
    }
    found
}

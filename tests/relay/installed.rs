//! What tests need besides Rust and PostgreSQL, and whether it is there. What is missing is left out
//! and said; in CI it fails.

use std::path::{Path, PathBuf};

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

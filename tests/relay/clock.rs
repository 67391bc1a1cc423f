//! A clock that jumps by years in both directions, with the real binary (by libfaketime).

use crate::support::client::Client;
use crate::support::negentropy_client::neg_ids;
use crate::support::process::{RelayProcess, negsync};
use crate::support::{Author, events, id_of, model};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

const YEAR_S: i64 = 365 * 86_400;
/// Events this close to a limit are not tested, because the clock advances during the test.
const MARGIN_S: i64 = 100;

/// The path of libfaketime, from `NEGSYNC_FAKETIME` or as installed by Debian.
fn libfaketime() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("NEGSYNC_FAKETIME") {
        return Some(path.into());
    }
    let library = |entry: std::io::Result<std::fs::DirEntry>| {
        Some(entry.ok()?.path().join("faketime/libfaketimeMT.so.1")).filter(|path| path.exists())
    };
    std::fs::read_dir("/usr/lib").ok()?.find_map(library)
}

/// The clock of a relay, as an offset to ours.
struct Clock {
    file: PathBuf,
    offset_s: i64,
}

impl Clock {
    fn set(&mut self, offset_s: i64) {
        // Replaced atomically: it is read at every access to the clock.
        let beside = self.file.with_extension("new");
        std::fs::write(&beside, format!("{offset_s:+}\n")).unwrap();
        std::fs::rename(beside, &self.file).unwrap();
        self.offset_s = offset_s;
    }

    fn now(&self) -> i64 {
        (events::unix_now() as i64 + self.offset_s).max(0)
    }
}

fn start(store: &Path, library: &Path, clock: &Clock) -> RelayProcess {
    let mut command = Command::new(env!("CARGO_BIN_EXE_negsync"));
    command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", &clock.file);
    command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    RelayProcess::start_by(command, store, &[])
}

/// An accepted event, and the second at which it expires.
struct Held {
    event: Value,
    expires_at: i64,
}

/// All current events are stored, and an event that was due at any time never comes back.
async fn check(client: &mut Client, clock: &Clock, held: &mut Vec<Held>, about: &str) {
    // An event that is due in a moment may be visible or not.
    let now = clock.now();
    held.retain(|it| it.expires_at > now);
    let expected = model::ids(held.iter().map(|it| &it.event));
    for filter in [json!({}), json!({ "kinds": [1] })] {
        assert_eq!(neg_ids(client, &filter).await, expected, "{about} {filter}");
        let filters = std::slice::from_ref(&filter);
        assert_eq!(client.count(filters).await, expected.len() as u64, "{about} {filter}");
        assert_eq!(model::ids(&client.query(filters).await), expected, "{about} {filter}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sets_and_answers_are_right_whatever_the_clock_does() {
    let Some(library) = libfaketime() else {
        // Past the test harness, which would capture the output.
        let text = "\n!!!! SKIPPED: a clock that jumps; install libfaketime (Debian: libfaketime)";
        let _ = writeln!(std::io::stderr(), "{text}");
        return;
    };
    for seed in 0..2 {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("events.sqlite");
        let mut clock = Clock { file: folder.path().join("clock"), offset_s: 0 };
        clock.set(0);
        let relay = start(&store, &library, &clock);
        let mut client = relay.client().await;
        let author = Author::new(1);
        let mut rng = StdRng::seed_from_u64(seed);
        let mut held: Vec<Held> = Vec::new();
        let far = [-60 * YEAR_S, -YEAR_S, -3_600, 3_600, YEAR_S, 150 * YEAR_S];
        for step in 0..12 {
            clock.set(match rng.random_range(0..3) {
                0 => far[rng.random_range(0..far.len())],
                _ => rng.random_range(-20_000..20_000),
            });
            let about = format!("seed {seed}, step {step}, {:+} s", clock.offset_s);
            check(&mut client, &clock, &mut held, &about).await;
            let now = clock.now();
            for number in 0..6 {
                let content = format!("{step} {number}");
                let ahead = rng.random_range(-5_000..5_000);
                let lasts = rng.random_range(-5_000..30_000);
                let is_near = |at: i64| at.abs() < MARGIN_S;
                if is_near(ahead - 900) || is_near(lasts) {
                    continue;
                }
                let (created_at, expires_at) = ((now + ahead).max(0), (now + lasts).max(0));
                let tags = json!([["expiration", expires_at.to_string()]]);
                let event = author.event(1, created_at as u64, tags, &content);
                let (accepted, text) = client.publish(&event).await;
                let expected = created_at <= now + 900 && expires_at > now;
                assert_eq!(accepted, expected, "{about}: {ahead} {lasts}: {text}");
                if accepted {
                    held.push(Held { event, expires_at });
                }
            }
            check(&mut client, &clock, &mut held, &about).await;
            // An event without a meaningful time.
            let event = author.event(1, 1, json!([]), &format!("{step}"));
            assert!(client.publish(&event).await.0, "{about}");
            held.push(Held { event, expires_at: i64::MAX });
        }
        clock.set(0);
        check(&mut client, &clock, &mut held, "at the end").await;
        relay.signal("TERM");
        let (status, log) = relay.ended();
        assert!(status.success() && !log.contains("panicked"), "{log}");
        let path = store.to_str().unwrap();
        let checked = negsync(&["check", "--store", path], "");
        assert!(checked.status.success(), "{checked:?}");
        let exported = negsync(&["export", "--store", path], "").stdout;
        let exported: Vec<Value> =
            exported.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(
            model::ids(&exported),
            held.iter().map(|it| id_of(&it.event).to_owned()).collect()
        );
    }
}

//! The configuration file: a mistake prevents the start and is reported with the key and its line.

use crate::support::process::{RelayProcess, negsync, negsync_with};
use std::path::{Path, PathBuf};
use std::process::Command;

fn write(directory: &Path, text: &str) -> PathBuf {
    let path = directory.join("relay.toml");
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn an_unknown_key_or_a_bad_value_stops_the_start_with_key_and_line() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("events.sqlite");
    for (text, line, key) in [
        ("[relay]\nlisten = \"127.0.0.1:0\"\nnmae = \"x\"\n", 3, "nmae"),
        ("# the limits\n\n[limit]\nfilters = 3\n", 3, "limit"),
        ("relay = 5\n", 1, "relay"),
        ("[relay]\n\nlisten = \"localhost\"\n", 3, "listen: must be an address and a port"),
        ("[relay]\npubkey = \"npub1\"\n", 2, "pubkey"),
        ("[limits]\nmessage_bytes = 10\n", 2, "message_bytes"),
        ("[limits]\nevent_bytes = -1\n", 2, "event_bytes"),
        (
            "[limits]\nmessage_bytes = 50_000\n# more\nevent_bytes = 50_001\n",
            4,
            "event_bytes: an event may have 50001 bytes",
        ),
        (
            "[limits]\nmessage_bytes = 262143\nevent_bytes = 262144\n",
            3,
            "lower event_bytes or raise message_bytes",
        ),
        ("[store]\nreaders = 1\n[limits]\nevent_bytes = 4194305\n", 4, "event_bytes: "),
        ("[limits]\nsubscriptions = 0\n", 2, "subscriptions"),
        ("[limits]\nfilters = \"3\"\n", 2, "filters"),
        ("[limits]\nsend_timeout_s = 1.5\n", 2, "send_timeout_s"),
        ("[negentropy]\nframe_limit_bytes = 4095\n", 2, "frame_limit_bytes"),
        ("[negentropy]\nmax_sync_events = 0\n", 2, "max_sync_events"),
        ("[store]\nsynchronous = \"off\"\n", 2, "synchronous"),
        ("[store]\nreaders = 0\n", 2, "readers"),
        ("[index]\nmemory_mb = true\n", 2, "memory_mb"),
        ("[log]\nformat = \"xml\"\n", 2, "format"),
        ("[log]\nlevel = \"loud\"\n", 2, "level"),
        ("[log]\n\nlevel = \"negsync=loud\"\n", 3, "level"),
        ("[log]\nlevel = \"\"\n", 2, "level"),
        ("[log]\nlevel = \"info\"\nlevel = \"warn\"\n", 3, "level"),
        ("[relay]\nname = \"unclosed\n", 2, "name"),
        ("[[peer]]\nlive = true\nurl = \"relay.example.com\"\n", 3, "url: "),
        ("[[peer]]\nurl = \"ws://127.0.0.1:99999\"\n", 2, "url: "),
        ("[[peer]]\nurl = \"ws://abc.onion\"\n", 2, "url: an onion service needs a proxy"),
        (
            "[[peer]]\nurl = \"wss://a.example\"\n[[peer]]\nurl = \"WSS://A.example.:443/\"\n",
            4,
            "url: wss://a.example is in an earlier [[peer]] with the same filter; keep one of them",
        ),
        ("[sync]\nproxy = \"socks4://a\"\n", 2, "proxy"),
        ("[[peer]]\nurl = \"ws://a\"\nmax_up_kib_s = 1\n", 3, "max_up_kib_s"),
        ("[[peer]]\nurl = \"ws://a\"\nfilter = []\n", 3, "filter"),
        (
            "[[peer]]\nurl = \"ws://a\"\n\n[[peer]]\nurl = \"ws://b\"\nfilter = { kind = [1] }\n",
            6,
            "filter: kind: not a filter key",
        ),
        ("[[peer]]\nurl = \"ws://a\"\n[peer.filter]\nkinds = 1\n", 3, "filter: kinds: must be"),
        ("[limits]\nsubscriptions = \"5\"\n", 2, "subscriptions: must be a whole number from 1"),
    ] {
        let config = write(directory.path(), text);
        let store = store.to_str().unwrap();
        for command in ["relay", "import", "export"] {
            let arguments = [command, "--config", config.to_str().unwrap(), "--store", store];
            let ended = negsync(&arguments, "");
            let error = &ended.stderr;
            assert!(!ended.status.success(), "{command} took {text}");
            assert!(error.contains(&format!("line {line}:")), "{text}: {error}");
            assert!(error.contains(key), "{text}: {error}");
            assert!(error.contains("relay.toml"), "{text}: {error}");
        }
    }
    assert!(!store.exists(), "a start that was refused made a store");
}

#[test]
fn an_event_may_be_as_long_as_a_message() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("events.sqlite");
    for text in [
        "[limits]\nevent_bytes = 4194304\n",
        "[limits]\nmessage_bytes = 262144\n",
        "[limits]\nmessage_bytes = 1024\nevent_bytes = 1024\n",
    ] {
        let config = write(directory.path(), text);
        let (config, store) = (config.to_str().unwrap(), store.to_str().unwrap());
        let ended = negsync(&["import", "--config", config, "--store", store], "");
        assert!(ended.status.success(), "{text}: {}", ended.stderr);
    }
}

#[test]
fn a_missing_file_is_named() {
    let ended = negsync(&["relay", "--config", "/nowhere/relay.toml"], "");
    assert!(!ended.status.success() && ended.stderr.contains("/nowhere/relay.toml"));
}

#[test]
fn the_store_comes_from_the_file_and_the_flag_wins() {
    let directory = tempfile::tempdir().unwrap();
    let [in_file, in_flag] = ["file.sqlite", "flag.sqlite"].map(|name| directory.path().join(name));
    let text = format!("[store]\npath = {:?}\nsynchronous = \"normal\"\n", in_file);
    let config = write(directory.path(), &text);
    let config = config.to_str().unwrap();
    assert!(negsync(&["import", "--config", config], "").status.success());
    assert!(in_file.exists() && !in_flag.exists());
    let flag = in_flag.to_str().unwrap();
    assert!(negsync(&["import", "--config", config, "--store", flag], "").status.success());
    assert!(in_flag.exists());
    let export = negsync(&["export", "--config", config], "");
    assert!(export.status.success() && export.stdout.is_empty());
}

#[test]
fn the_shipped_file_starts() {
    let directory = tempfile::tempdir().unwrap();
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/relay.toml");
    let store = directory.path().join("events.sqlite");
    let ended = negsync(&["import", "--config", config, "--store", store.to_str().unwrap()], "");
    assert!(ended.status.success(), "{}", ended.stderr);
}

#[test]
fn a_variable_wins_over_the_file_and_a_flag_over_both() {
    let directory = tempfile::tempdir().unwrap();
    let [file, variable, flag] =
        ["file.sqlite", "variable.sqlite", "flag.sqlite"].map(|name| directory.path().join(name));
    let config = write(directory.path(), &format!("[store]\npath = {file:?}\n"));
    let config = config.to_str().unwrap();
    let variables = [("NEGSYNC__STORE__PATH", variable.to_str().unwrap())];
    assert!(negsync_with(&variables, &["import", "--config", config], "").status.success());
    assert!(variable.exists() && !file.exists());
    let arguments = ["import", "--config", config, "--store", flag.to_str().unwrap()];
    assert!(negsync_with(&variables, &arguments, "").status.success());
    assert!(flag.exists() && !file.exists());
    // Without a file.
    std::fs::remove_file(&variable).unwrap();
    assert!(negsync_with(&variables, &["import"], "").status.success());
    assert!(variable.exists());
}

#[test]
fn a_wrong_variable_stops_the_start_with_its_name_and_a_hint() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("events.sqlite");
    for (variable, value, said) in [
        ("NEGSYNC__STOR__PATH", "a", "did you mean NEGSYNC__STORE__PATH?"),
        ("NEGSYNC_STORE_PATH", "a", "two underscores between them: NEGSYNC__STORE__PATH"),
        ("NEGSYNC_INDEX__MEMORY_MB", "8", "NEGSYNC__INDEX__MEMORY_MB"),
        ("NEGSYNC__LIMITS__FILTERS", "0", "0 is not between 1 and 1000"),
        ("NEGSYNC__PEER", "[{ url = \"relay.example.com\" }]", "ws://"),
        ("NEGSYNC__PEER", "[{ url = \"ws://a.onion\" }]", "an onion service needs a proxy"),
    ] {
        for command in ["relay", "import", "export"] {
            let arguments = [command, "--store", store.to_str().unwrap()];
            let ended = negsync_with(&[(variable, value)], &arguments, "");
            let named = format!("environment variable {variable}: ");
            assert!(!ended.status.success(), "{command} took {variable}={value}");
            let is_named = ended.stderr.contains(&named) && ended.stderr.contains(said);
            assert!(is_named, "{variable}: {}", ended.stderr);
        }
    }
    assert!(!store.exists());
}

/// After SIGHUP a variable still overrides the file.
#[test]
fn a_variable_wins_over_a_file_that_is_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("events.sqlite");
    let text = |name| format!("[relay]\nname = {name:?}\n[limits]\nfilters = 5\n");
    let config = write(directory.path(), &text("one"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_negsync"));
    command.env("NEGSYNC__LIMITS__FILTERS", "7");
    let relay = RelayProcess::start_by(command, &store, &["--config", config.to_str().unwrap()]);
    write(directory.path(), &text("two"));
    relay.signal("HUP");
    let line = relay.logged("configuration reloaded");
    assert!(line.contains("changed: relay.name"), "{line}");
    write(directory.path(), &text("two").replace("= 5", "= 9"));
    relay.signal("HUP");
    let line = relay.logged_again("configuration reloaded", 1);
    assert!(line.contains("changed: nothing"), "{line}");
}

#[test]
fn a_configuration_is_checked_without_a_start() {
    let directory = tempfile::tempdir().unwrap();
    let file = write(directory.path(), "[limits]\nfilters = 3\n");
    let file = file.to_str().unwrap();
    let ended = negsync(&["config", "check", file], "");
    assert!(ended.status.success(), "{ended:?}");
    assert!(ended.stdout.starts_with(&format!("{file}: nothing is wrong; 1 of ")), "{ended:?}");
    assert_eq!(negsync(&["config", "check", "--config", file], "").stdout, ended.stdout);
    for (text, said) in [
        ("[limits]\n\nfilters = 0\n", "relay.toml, line 3: filters: "),
        ("[sync]\nkey_file = \"/nowhere/key\"\n", "/nowhere/key"),
        ("[retention]\nrules = [{ kinds = [7] }]\n", "relay.toml, line 2: rules: "),
        ("[retention]\nrules = [{ kinds = [[7]], max_age_s = 1 }]\n", "line 2: rules"),
    ] {
        std::fs::write(file, text).unwrap();
        let ended = negsync(&["config", "check", file], "");
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.stderr.contains(said), "no {said} in {ended:?}");
    }
    std::fs::write(file, format!("[moderation]\nfile = {file:?}\n")).unwrap();
    let ended = negsync(&["config", "check", file], "");
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains("relay.toml, line 1: "), "{ended:?}");
}

/// The output is an equivalent configuration, except for secrets.
#[test]
fn what_is_in_force_is_shown_with_where_it_comes_from() {
    let directory = tempfile::tempdir().unwrap();
    let text = "[relay]\nname = \"a \\\"name\\\"\"\n[limits]\nfilters = 3\nsubscriptions = 4\n\
        [retention]\nrules = [{ kinds = [7, [1000, 1999]], max_age_s = 60 }]\n\
        [sync]\nproxy = \"socks5://user:hidden@127.0.0.1:9050\"\n\
        [[peer]]\nurl = \"wss://relay.example.com/?token=hidden\"\nfilter = { kinds = [1] }\n";
    let file = write(directory.path(), text);
    let file = file.to_str().unwrap();
    let arguments = ["config", "show", "--config", file, "--store", "other.sqlite"];
    let variables = [("NEGSYNC__LIMITS__FILTERS", "5")];
    let ended = negsync_with(&variables, &arguments, "");
    assert!(ended.status.success(), "{ended:?}");
    assert!(!ended.stdout.contains("hidden"), "{ended:?}");
    let line = |begin: &str| ended.stdout.lines().find(|line| line.starts_with(begin)).unwrap();
    for (begin, end) in [
        ("name = \"a \\\"name\\\"\" ", "relay.toml, line 2"),
        ("name = 'a \"name\"' ", "relay.toml, line 2"),
        ("filters = 5 ", "# environment, NEGSYNC__LIMITS__FILTERS"),
        ("subscriptions = 4 ", "relay.toml, line 5"),
        ("event_tags = 5000 ", "# default"),
        ("path = \"other.sqlite\" ", "# command line"),
        ("[[peer]]", "relay.toml, line 10"),
    ] {
        // TOML has two kinds of quotes.
        if begin.starts_with("name") && !ended.stdout.contains(begin) {
            continue;
        }
        assert!(line(begin).ends_with(end), "{begin}: {ended:?}");
    }
    let shown = write(directory.path(), &ended.stdout);
    let again = negsync(&["config", "show", "--json", "--config", shown.to_str().unwrap()], "");
    assert!(again.status.success(), "{again:?}");
    let shown: serde_json::Value = serde_json::from_str(&again.stdout).unwrap();
    let rules = &shown["keys"]["retention.rules"]["value"];
    assert_eq!(rules[0], serde_json::json!({ "kinds": [7, [1000, 1999]], "max_age_s": 60 }));
    assert_eq!(shown["keys"]["relay.name"]["value"], "a \"name\"");
}

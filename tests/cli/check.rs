//! `negsync check`: a sound store passes, and every kind of fault is found and reported.

use super::import::{import, lines};
use crate::support::process::{Ended, RelayProcess, negsync};
use crate::support::{Author, corpora, events, id_of};
use negsync::store::Event;
use rusqlite::{Connection, params};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn check(store: &Path, more: &[&str]) -> Ended {
    negsync(&[&["check", "--store", store.to_str().unwrap()], more].concat(), "")
}

fn report(store: &Path) -> Value {
    let ended = check(store, &["--json"]);
    let report: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{ended:?}"));
    let expected = if report["sound"] == true { 0 } else { 2 };
    assert_eq!(ended.status.code(), Some(expected), "{ended:?}");
    report
}

#[test]
fn whatever_the_rules_have_made_of_events_is_sound() {
    for corpus in corpora(90, 400) {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path().join("events.sqlite");
        assert!(import(&store, &[], &lines(&corpus.events)).status.success());
        let ended = check(&store, &[]);
        assert_eq!(ended.status.code(), Some(0), "{}: {ended:?}", corpus.name);
        assert!(ended.stdout.ends_with("nothing is wrong\n"), "{ended:?}");
        let report = report(&store);
        assert!(report["events"].as_u64() > Some(100) && report["tags"].as_u64() > Some(50));
        assert_eq!((&report["found"], &report["findings"]), (&json!({}), &json!([])));
    }
}

/// Two notes with tags, an article, a profile, a deletion request that matches none of them but
/// names an empty address, and a request to vanish of another author, which cannot be deleted.
struct Sound {
    directory: TempDir,
    note: Value,
    article: Value,
}

fn vanished() -> Author {
    Author::new(2)
}

impl Sound {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let author = Author::new(1);
        let at = events::EPOCH;
        let note = author.event(1, at, json!([["t", "one"], ["p", author.key()]]), "a note");
        let article = author.event(30_023, at, json!([["d", "x"]]), "an article");
        let others = [
            author.event(1, at, json!([["t", "two"]]), "another"),
            author.event(0, at, json!([]), "{}"),
            author.deletion(
                at,
                json!([["e", "00".repeat(32)], ["a", author.address(30_023, "none")]]),
            ),
        ];
        let farewell = vanished().event(62, at, json!([["relay", "ALL_RELAYS"]]), "");
        let gone = [
            vanished().note(at, "gone"),
            author.event(1_059, at, json!([["p", vanished().key()]]), "gone"),
            vanished().deletion(at, json!([["e", id_of(&farewell)]])),
        ];
        let deletion = vanished().deletion(at + 1, json!([["e", id_of(&farewell)]]));
        let later = [farewell, deletion];
        let all = [&[note.clone(), article.clone()], &others[..], &gone, &later].concat();
        let sound = Self { directory, note, article };
        assert_eq!(import(&sound.store(), &[], &lines(&all)).status.code(), Some(0));
        assert_eq!(report(&sound.store())["events"], 7);
        sound
    }

    fn store(&self) -> PathBuf {
        self.directory.path().join("events.sqlite")
    }
}

#[test]
fn what_is_wrong_is_found_with_the_event_it_is_about() {
    type Harm = fn(&Connection, &Sound);
    let cases: [(&str, &str, Harm); 20] = [
        ("signature", "sig", |store, _| {
            run(
                store,
                "UPDATE event SET json = replace(json, substr(json, -20, 9), '000000000') WHERE kind = 1 AND row = (SELECT min(row) FROM event)",
            );
        }),
        ("signature", "id", |store, _| {
            run(store, "UPDATE event SET json = replace(json, 'a note', 'a lie')");
        }),
        ("event", "content: missing", |store, _| {
            run(
                store,
                "UPDATE event SET json = replace(json, 'content', 'contents') WHERE json LIKE '%a note%'",
            );
        }),
        ("signature", "id", |store, sound| {
            // Invalid UTF-8.
            let mut json = sound.note.to_string().into_bytes();
            let note = json.windows(6).position(|part| part == b"a note").unwrap();
            json[note] ^= 0x80;
            let sql = "UPDATE event SET json = CAST(?1 AS TEXT) WHERE id = ?2";
            store.execute(sql, params![json, id_blob(&sound.note)]).unwrap();
        }),
        ("column", "created_at", |store, _| {
            run(store, "UPDATE event SET created_at = 5 WHERE json LIKE '%a note%'");
        }),
        ("column", "expires_at", |store, _| {
            run(store, "UPDATE event SET expires_at = 32503680000 WHERE json LIKE '%a note%'");
        }),
        ("column", "address", |store, _| {
            run(store, "UPDATE event SET address = NULL WHERE kind = 30023");
        }),
        ("tag", "is not indexed", |store, sound| {
            let id = id_blob(&sound.note);
            store.execute("DELETE FROM tag WHERE id = ?1", [id]).unwrap();
        }),
        ("tag", "does not have it", |store, sound| {
            let sql = "INSERT INTO tag SELECT x'740161', created_at, id, kind, row FROM event WHERE id = ?1";
            store.execute(sql, [id_blob(&sound.note)]).unwrap();
        }),
        ("tag", "not stored", |store, _| {
            run(store, "DELETE FROM event WHERE json LIKE '%a note%'");
        }),
        ("rule", "deleted by its id", |store, sound| {
            let sql = "INSERT INTO tombstone SELECT id, pubkey,
                (SELECT row FROM event WHERE kind = 5 AND pubkey = it.pubkey)
                FROM event it WHERE id = ?1";
            store.execute(sql, [id_blob(&sound.note)]).unwrap();
        }),
        ("rule", "deleted by its address", |store, sound| {
            let sql = "INSERT INTO address_tombstone SELECT pubkey, kind, address, created_at,
                (SELECT row FROM event WHERE kind = 5 AND pubkey = it.pubkey)
                FROM event it WHERE id = ?1";
            store.execute(sql, [id_blob(&sound.article)]).unwrap();
        }),
        ("rule", "its author has vanished", |store, _| {
            put(store, &vanished().note(events::EPOCH - 1, "back"));
        }),
        ("rule", "its addressee has vanished", |store, _| {
            let addressee = vanished().key();
            let wrap =
                Author::new(1).event(1_059, events::EPOCH, json!([["p", addressee]]), "back");
            put(store, &wrap);
            let key = [&[b'p', 0][..], &blob(&addressee)].concat();
            let sql =
                "INSERT INTO tag SELECT ?1, created_at, id, kind, row FROM event WHERE id = ?2";
            store.execute(sql, params![key, id_blob(&wrap)]).unwrap();
        }),
        ("rule", "forget its author, who is not kept out", |store, _| {
            run(store, "DELETE FROM vanished");
        }),
        ("rule", "deletes \"none\" of kind 30023, and that is not kept out", |store, _| {
            run(store, "UPDATE address_tombstone SET created_at = created_at - 1");
        }),
        ("rule", "deletes event 0000", |store, _| {
            run(store, "UPDATE tombstone SET id = x'11' WHERE id = zeroblob(32)");
        }),
        ("rule", "kept out by a request to delete that is not stored", |store, sound| {
            let sql = "INSERT INTO tombstone VALUES (?1, ?1, 1000)";
            store.execute(sql, [id_blob(&sound.note)]).unwrap();
        }),
        ("rule", "its recipient has deleted it", |store, _| {
            let recipient = Author::new(1).key();
            let wrap =
                Author::new(3).event(1_059, events::EPOCH, json!([["p", recipient]]), "back");
            put(store, &wrap);
            let sql = "INSERT INTO tombstone SELECT ?1, pubkey, row FROM event
                WHERE kind = 5 AND pubkey = ?2";
            store.execute(sql, params![id_blob(&wrap), blob(&recipient)]).unwrap();
        }),
        ("rule", "a newer version", |store, _| {
            run(store, "DROP INDEX event_address");
            let older = Author::new(1).event(30_023, events::EPOCH - 1, json!([["d", "x"]]), "");
            let sql = "INSERT INTO event (id, pubkey, created_at, kind, address, json)
                SELECT ?1, pubkey, created_at - 1, kind, address, ?2 FROM event WHERE kind = 30023";
            store.execute(sql, params![id_blob(&older), older.to_string()]).unwrap();
        }),
    ];
    for (number, (what, words, harm)) in cases.into_iter().enumerate() {
        let sound = Sound::new();
        let store = sound.store();
        assert_eq!(report(&store)["sound"], true);
        let connection = Connection::open(&store).unwrap();
        harm(&connection, &sound);
        drop(connection);
        let report = report(&store);
        let findings = report["findings"].as_array().unwrap();
        let is_it = |finding: &&Value| {
            finding["what"] == what && finding["detail"].as_str().unwrap().contains(words)
        };
        let found = findings.iter().find(is_it);
        let found = found.unwrap_or_else(|| panic!("case {number}, {what} {words}: {report}"));
        assert!(found["id"].as_str().is_some_and(|id| id.len() == 64), "{report}");
        let ended = check(&store, &[]);
        assert!(ended.stdout.contains(words), "{ended:?}");
        // Its hint works.
        let exported = negsync(&["export", "--store", store.to_str().unwrap()], "");
        let fresh = sound.directory.path().join("fresh.sqlite");
        import(&fresh, &[], &exported.stdout);
        assert_eq!(self::report(&fresh)["sound"], true, "case {number}");
    }
}

fn run(store: &Connection, sql: &str) {
    assert!(
        store.execute(sql, []).is_ok_and(|changed| changed > 0 || sql.starts_with("DROP")),
        "{sql}"
    );
}

/// A relay that was stopped during a removal continues when it starts.
#[test]
fn what_is_still_to_vanish_is_said_and_is_nothing_wrong() {
    let sound = Sound::new();
    let connection = Connection::open(sound.store()).unwrap();
    put(&connection, &vanished().note(events::EPOCH, "not yet gone"));
    run(&connection, "UPDATE vanished SET pending = 1");
    drop(connection);
    let report = report(&sound.store());
    assert_eq!((&report["sound"], &report["vanishing"]), (&json!(true), &json!(1)), "{report}");
    let ended = check(&sound.store(), &[]);
    assert!(ended.stdout.contains("1 of vanished keys"), "{ended:?}");
}

/// Stores an event past the rules, without its tags.
fn put(store: &Connection, event: &Value) {
    let sql = "INSERT INTO event (id, pubkey, created_at, kind, json) VALUES (?1, ?2, ?3, ?4, ?5)";
    let key = blob(event["pubkey"].as_str().unwrap());
    let (at, kind) = (event["created_at"].as_u64().unwrap() as i64, event["kind"].as_u64());
    let kind = kind.unwrap() as i64;
    let event = Event::parse(&event.to_string()).unwrap();
    store.execute(sql, params![event.item().id, key, at, kind, event.json()]).unwrap();
}

fn id_blob(event: &Value) -> Vec<u8> {
    blob(id_of(event))
}

fn blob(hex: &str) -> Vec<u8> {
    faster_hex::hex_decode_vec(hex.as_bytes()).unwrap()
}

#[test]
fn damage_to_the_file_is_found_and_the_rest_is_read_on() {
    let sound = Sound::new();
    let store = sound.store();
    let connection = Connection::open(&store).unwrap();
    let root = |name: &str| -> usize {
        let sql = "SELECT rootpage FROM sqlite_schema WHERE name = ?1";
        connection.query_row(sql, [name], |row| row.get::<_, i64>(0)).unwrap() as usize
    };
    let (index, table) = (root("event_time"), root("tombstone"));
    drop(connection);
    let whole = std::fs::read(&store).unwrap();
    for (page, events) in [(index, 7), (table, 7), (1, 0)] {
        let mut bytes = whole.clone();
        bytes[(page - 1) * 4_096..page * 4_096].fill(0xa5);
        std::fs::write(&store, bytes).unwrap();
        let report = report(&store);
        assert!(report["found"]["file"].as_u64() > Some(0), "{report}");
        assert_eq!(report["events"], events, "{report}");
    }
}

/// Events of a store with damaged pages, as `export` gives them, and the exit code.
fn exported_ids_of(store: &Path) -> (Option<i32>, BTreeSet<String>) {
    let ended = negsync(&["export", "--store", store.to_str().unwrap()], "");
    let ids: Vec<String> = ended
        .stdout
        .lines()
        .map(|line| id_of(&serde_json::from_str(line).unwrap()).to_owned())
        .collect();
    let once: BTreeSet<String> = ids.iter().cloned().collect();
    assert_eq!(once.len(), ids.len(), "an event is exported twice");
    assert_eq!(
        ended.stderr.contains("the store is damaged"),
        ended.status.code() == Some(2),
        "{}",
        ended.stderr
    );
    (ended.status.code(), once)
}

#[test]
fn what_can_be_read_of_a_damaged_store_is_exported() {
    const PAGE: usize = 4_096;
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("events.sqlite");
    let author = Author::new(61);
    let notes: Vec<Value> = (0..400_u64)
        .map(|number| {
            author.note(
                events::EPOCH + number * 7_919 % 400,
                &format!("{number} {}", "x".repeat(200)),
            )
        })
        .collect();
    assert!(import(&store, &[], &lines(&notes)).status.success());
    let all: BTreeSet<String> = notes.iter().map(|note| id_of(note).to_owned()).collect();
    assert_eq!(exported_ids_of(&store), (Some(0), all.clone()));
    let whole = std::fs::read(&store).unwrap();
    // A leaf of a table begins with 13, one of an index with 10.
    let is_leaf_of_events =
        |page: &[u8]| page[0] == 13 && page.windows(6).any(|text| text == b"{\"id\":");
    let leaves: Vec<usize> = (1..whole.len() / PAGE)
        .filter(|page| is_leaf_of_events(&whole[page * PAGE..][..PAGE]))
        .collect();
    assert!(leaves.len() > 10, "{leaves:?}");
    let connection = Connection::open(&store).unwrap();
    let sql = "SELECT rootpage FROM sqlite_schema WHERE name = 'event_time'";
    let index = connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap() as usize - 1;
    drop(connection);
    let ids_in = |page: usize| -> BTreeSet<&String> {
        let text = String::from_utf8_lossy(&whole[page * PAGE..][..PAGE]);
        all.iter().filter(|id| page != index && text.contains(id.as_str())).collect()
    };
    let last = leaves.len() - 1;
    for pages in [
        vec![leaves[3]],
        vec![leaves[0], leaves[1], leaves[2], leaves[7]],
        vec![leaves[last]],
        vec![index],
        vec![index, leaves[5]],
        leaves.clone(),
    ] {
        let mut bytes = whole.clone();
        pages.iter().for_each(|page| bytes[page * PAGE..][..PAGE].fill(0xa5));
        std::fs::write(&store, bytes).unwrap();
        let lost: BTreeSet<&String> = pages.iter().flat_map(|page| ids_in(*page)).collect();
        let readable = all.iter().filter(|id| !lost.contains(id)).cloned().collect();
        assert_eq!(exported_ids_of(&store), (Some(2), readable), "{pages:?}");
        assert!(report(&store)["found"]["file"].as_u64() > Some(0));
    }
    // One flipped bit makes the id of a row a text.
    let leaf = leaves[4] * PAGE;
    let header =
        whole[leaf..][..PAGE].windows(3).rposition(|types| types == [0, 0x4c, 0x4c]).unwrap();
    let mut bytes = whole.clone();
    bytes[leaf + header + 1] ^= 1;
    std::fs::write(&store, bytes).unwrap();
    assert_eq!(exported_ids_of(&store), (Some(2), all));
    let report = self::report(&store);
    assert_eq!(
        (&report["found"]["event"], &report["events"]),
        (&json!(1), &json!(400)),
        "{report}"
    );
    let fresh = directory.path().join("fresh.sqlite");
    import(&fresh, &[], &negsync(&["export", "--store", store.to_str().unwrap()], "").stdout);
    assert_eq!(self::report(&fresh)["sound"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_checked_beside_a_running_relay_as_it_is_at_one_moment() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("events.sqlite");
    let relay = RelayProcess::start(&store);
    let mut client = relay.client().await;
    let sent = events::generate(91, 600);
    let checking = {
        let store = store.clone();
        tokio::task::spawn_blocking(move || (0..5).map(|_| report(&store)).collect::<Vec<_>>())
    };
    client.publish_all(&sent).await;
    for report in checking.await.unwrap() {
        assert_eq!(report["sound"], true, "{report}");
    }
    assert_eq!(report(&store)["events"], client.count(&[json!({})]).await);
}

#[test]
fn what_is_no_store_is_no_finding() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing.sqlite");
    let other = directory.path().join("other.sqlite");
    Connection::open(&other).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    for store in [&missing, &other] {
        let ended = check(store, &[]);
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.stderr.contains(store.to_str().unwrap()), "{ended:?}");
    }
    assert!(!missing.exists());
}

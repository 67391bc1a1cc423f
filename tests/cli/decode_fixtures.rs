//! `negsync decode` with messages of other programs: every message is explained completely, or up
//! to the faulty byte.

use crate::support::process::negsync;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use std::path::PathBuf;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/decode")).join(name)
}

fn lines(name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(fixture(name)).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// The text for each line, and its fault.
fn decode(lines: &[String], arguments: &[&str]) -> Vec<(String, Option<String>)> {
    let ended = negsync(&[&["decode", "-"], arguments].concat(), &(lines.join("\n") + "\n"));
    let mut wrong: Vec<Option<String>> = vec![None; lines.len()];
    for line in ended.stderr.lines() {
        let (number, reason) =
            line.strip_prefix("negsync: line ").unwrap().split_once(": ").unwrap();
        wrong[number.parse::<usize>().unwrap() - 1] = Some(reason.to_owned());
    }
    let is_wrong = wrong.iter().any(Option::is_some);
    assert_eq!(ended.status.code(), Some(i32::from(is_wrong)), "{}", ended.stderr);
    let texts = ended.stdout.split("\n\n").map(str::to_owned);
    texts.zip(wrong).collect()
}

/// The position in an error: a byte of the message, or of the line.
fn byte(reason: &str) -> usize {
    let rest = reason.strip_prefix("byte ").unwrap_or_else(|| panic!("no byte: {reason}"));
    let (number, rest) = rest.split_once([':', ' ']).unwrap();
    assert!(!rest.is_empty(), "{reason}");
    number.parse().unwrap_or_else(|_| panic!("no byte: {reason}"))
}

/// The bytes of all ranges in a table, with the version byte: the length of the message.
fn table_bytes(text: &str) -> usize {
    let rows = text.lines().filter(|line| line.starts_with(' '));
    let bytes = rows.filter_map(|row| {
        let mut columns = row.split_whitespace();
        columns.next()?.parse::<usize>().ok()?;
        columns.next()?.parse::<usize>().ok()
    });
    1 + bytes.sum::<usize>()
}

#[test]
fn every_message_of_a_client_is_explained() {
    let mut explained = Vec::new();
    for (name, verbs) in [
        ("nostr-tools.txt", vec!["NEG-OPEN", "NEG-MSG", "NEG-CLOSE"]),
        ("ndk.txt", vec!["NEG-OPEN", "NEG-MSG", "NEG-CLOSE"]),
        ("nostr-sdk.txt", vec!["NEG-OPEN", "NEG-MSG", "NEG-CLOSE"]),
        ("refused.txt", vec!["NEG-OPEN", "NEG-ERR"]),
    ] {
        let lines = lines(name);
        let decoded = decode(&lines, &[]);
        assert_eq!(decoded.len(), lines.len());
        for (line, (text, wrong)) in lines.iter().zip(decoded) {
            assert_eq!(wrong, None, "{line}");
            let message: Value = serde_json::from_str(line.trim_start_matches(['<', '>'])).unwrap();
            let verb = message[0].as_str().unwrap();
            assert!(verbs.contains(&verb) && text.starts_with(verb), "{text}");
            if let ("NEG-OPEN" | "NEG-MSG", Some(Value::String(hex))) =
                (verb, message.as_array().unwrap().last())
            {
                assert_eq!(table_bytes(&text), hex.len() / 2, "{text}");
            }
            explained.push((verb.to_owned(), text));
        }
    }
    // All kinds of ranges and all next steps occur.
    for said in
        ["fingerprint ", " skip\n", "asks to compare", "asks for all of", "settles 9 ranges"]
    {
        assert!(explained.iter().any(|(_, text)| text.contains(said)), "{said}");
    }
}

#[test]
fn frames_as_strfry_cuts_them_are_told_as_cut() {
    for (name, says) in [
        ("cut-in-a-list.bin", "1 list of 1869 ids"),
        ("cut-in-a-split.bin", "asks to compare 3056 fingerprints"),
    ] {
        let message = std::fs::read(fixture(name)).unwrap();
        assert!((59_000..=60_000).contains(&message.len()), "{} bytes", message.len());
        let hex = faster_hex::hex_string(&message);
        let (text, wrong) = decode(&[hex], &["--from", "relay"]).remove(0);
        assert_eq!(wrong, None);
        assert_eq!(table_bytes(&text), message.len());
        assert!(text.contains(says) && text.contains("was cut by its frame limit at"), "{text}");
    }
}

#[test]
fn what_a_fuzzer_made_is_explained_up_to_the_byte_that_is_wrong() {
    let lines = lines("fuzzer.txt");
    let decoded = decode(&lines, &[]);
    assert_eq!(decoded.len(), lines.len());
    let mut faults = 0;
    for (hex, (text, wrong)) in lines.iter().zip(decoded) {
        match wrong {
            Some(reason) => {
                faults += 1;
                let byte = byte(&reason);
                assert!(byte <= hex.len() / 2, "{hex}: {reason}");
                assert!(text.contains(&format!("{byte} wrong")), "{hex}: {text}");
            }
            None => assert_eq!(table_bytes(&text), hex.len() / 2, "{text}"),
        }
    }
    assert!(faults > 20 && faults < lines.len(), "{faults} of {}", lines.len());
}

#[test]
fn whatever_a_line_holds_its_wrong_byte_is_named() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let recorded = ["nostr-tools.txt", "ndk.txt", "nostr-sdk.txt", "refused.txt", "fuzzer.txt"];
    let recorded: Vec<String> = recorded.into_iter().flat_map(lines).collect();
    let pieces =
        ["\"", "[", "]", "{}", ",", "\\", "\\u00e9", "é", "0", "z", " ", "null", "\"NEG-MSG\","];
    let mut mutated: Vec<String> = [
        r#"["NEG-MSG","n"]"#,
        r#"["NEG-MSG","n",61]"#,
        r#"["NEG-MSG","n","61",1]"#,
        r#"["NEG-OPEN","n",1,"61"]"#,
        r#"["NEG-ERR"]"#,
        r#"["NEG-CLOSE","n",1e999]"#,
        "[]",
        "{}",
        r#"> {"a":1}"#,
    ]
    .map(str::to_owned)
    .into();
    while mutated.len() < 1_500 {
        let mut line: Vec<char> = recorded.choose(&mut rng).unwrap().chars().take(400).collect();
        for _ in 0..rng.random_range(1..4) {
            let place = rng.random_range(0..=line.len());
            let end = line.len().min(place + rng.random_range(0..4));
            let piece = pieces.choose(&mut rng).unwrap().chars();
            line.splice(place..end, piece.take(rng.random_range(0..30)));
        }
        let line: String = line.into_iter().collect();
        if !line.trim().is_empty() {
            mutated.push(line);
        }
    }
    let ended = negsync(&["decode", "-"], &(mutated.join("\n") + "\n"));
    let mut wrong = 0;
    for line in ended.stderr.lines() {
        let (number, reason) =
            line.strip_prefix("negsync: line ").unwrap().split_once(": ").unwrap();
        let line = &mutated[number.parse::<usize>().unwrap() - 1];
        assert!(byte(reason) <= line.len(), "{line}: {reason}");
        wrong += 1;
    }
    assert!(wrong > 200 && wrong < mutated.len(), "{wrong} of {}", mutated.len());
    for (line, at) in [
        (r#"["NEG-MSG","n"]"#, 14),
        (r#"["NEG-MSG","n",61]"#, 15),
        (r#"< ["NEG-MSG","n","61",1]"#, 22),
        (r#"["NEG-OPEN","n",1,"61"]"#, 16),
        (r#"["NEG-OPEN","n",{},16,"61"]"#, 19),
        (r#"["NEG-CLOSE",7]"#, 13),
        (r#"["NEG","n"]"#, 1),
        (r#"["NEG-MSG","n","61""#, 19),
        (r#"["NEG-MSG";"n","61"]"#, 10),
    ] {
        let ended = negsync(&["decode", line], "");
        let said = format!("byte {at} of the line: ");
        assert!(ended.stderr.contains(&said), "{line}: {}", ended.stderr);
    }
}

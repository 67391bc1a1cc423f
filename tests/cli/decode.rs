//! `negsync decode`: explains the contents of NIP-77 messages.

use crate::support::process::{Ended, negsync};
use negsync::item::Item;
use negsync::reconcile::message::{Decoder, Encoder};
use negsync::reconcile::{Bound, Initiator, InitiatorOptions, Responder, SortedItems};
use nostr::Timestamp;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use std::fmt::Write;

const TWO_IDS: &str = "6100000202de242f8e63411c4a6d2098f2d5e903f24ec8055c3e7df43f5879bdea4f3bfc45\
    54bbb3b1b47aab6867d4652ae27b9ee5de11db14c3a17582a6f9389bd277c99c";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn last_line(ended: &Ended) -> &str {
    ended.stdout.lines().last().unwrap_or_else(|| panic!("nothing was said: {ended:?}"))
}

/// The text for each line of standard input, and the errors of `negsync` with their line numbers.
fn decode_lines(lines: &str, arguments: &[&str]) -> (Vec<String>, Vec<(usize, String)>) {
    let ended = negsync(&[&["decode", "-"], arguments].concat(), lines);
    let wrong: Vec<(usize, String)> = ended
        .stderr
        .lines()
        .map(|line| {
            let (number, reason) =
                line.strip_prefix("negsync: line ").unwrap().split_once(": ").unwrap();
            (number.parse().unwrap(), reason.to_owned())
        })
        .collect();
    assert_eq!(ended.status.code(), Some(i32::from(!wrong.is_empty())), "{}", ended.stderr);
    (ended.stdout.split("\n\n").map(str::to_owned).collect(), wrong)
}

#[test]
fn the_same_ids_mean_something_else_from_either_side() {
    for (message, sentence) in [
        (format!(r#"["NEG-MSG","n","{TWO_IDS}"]"#), "The sender lists all 2 ids that it has in"),
        (format!(r#"> ["NEG-MSG","n","{TWO_IDS}"]"#), "The sender lists all 2 ids that it has in"),
        (format!(r#"> > < ["NEG-MSG","n","{TWO_IDS}"]"#), "The relay settles 1 range with all 2"),
        (format!(r#"["NEG-OPEN","n",{{}},"{TWO_IDS}"]"#), "and asks for the relay's ids there."),
        (
            r#"["NEG-OPEN","n",[{"kinds":[1]},{}],"6100000200"]"#.into(),
            "and names none of its own.",
        ),
        (r#"< ["NEG-MSG","n","61"]"#.into(), "does not speak."),
        (r#"> ["NEG-CLOSE","n"]"#.into(), "The client ends the session."),
        (r#"["NEG-ERR","n","blocked: too many query results",500]"#.into(), "at most 500 items:"),
        (r#"["NEG-ERR","n","closed: \u001b[31m"]"#.into(), "session: open it again."),
    ] {
        for ended in [negsync(&["decode", &message], ""), negsync(&["decode", "-"], &message)] {
            assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
            assert!(last_line(&ended).contains(sentence), "{message}: {}", ended.stdout);
            assert!(!ended.stdout.contains('\u{1b}'), "{ended:?}");
        }
    }
    let relay = negsync(&["decode", "--from", "relay", TWO_IDS], "");
    assert_eq!(last_line(&relay), "The relay settles 1 range with all 2 ids that it has there.");
    let client = negsync(&["decode", "--from", "client", "61"], "");
    assert_eq!(last_line(&client), "The client asks nothing more; NEG-CLOSE ends the session.");
    assert!(!negsync(&["decode", "--from", "nobody", "61"], "").status.success());
}

#[test]
fn what_is_wrong_is_named_with_its_byte() {
    let cut = &TWO_IDS[..TWO_IDS.len() - 2];
    for (message, shown, reason) in [
        ("", "0 wrong   >>> the end", "byte 0: the message is empty"),
        ("62", "0 wrong   >>> 62", "byte 0: version byte 0x62"),
        ("60", "0 wrong   >>> 60", "means version 0"),
        ("05ff", "0 wrong   >>> 05ff", "begins with 61"),
        (cut, "4 wrong  61000002 >>> 02de242f8e63411c...", "byte 4: a list announces 2 ids"),
        ("61000005", "3 wrong  610000 >>> 05", "byte 3: 5 is no range mode"),
        ("618000", "1 wrong  61 >>> 8000", "byte 1: a number is written with more digits"),
        ("61000002000205ab", "range up to", "byte 7: the message ends inside the id prefix"),
        ("610000000200000", "", "byte 7: the hex ends after one of its two digits"),
        ("610201ff0001010f00", "5 wrong  610201ff00 >>> 0101", "byte 5: a range ends below where"),
        ("61zz", "", "byte 1: 'z' is no hex digit"),
        ("61é", "", "byte 1: 'é' is no hex digit"),
        (r#"["NEG-MSG","n","61","61"]"#, "", "NEG-MSG takes an id and hex"),
        (r#"["NEG-OPEN","n",{},16,"6100"]"#, "", "five elements"),
        (r#"["NEG-OPEN","n",{},{},"6100"]"#, "", "several filters go into one array"),
        (r#"["NEG-OPEN","n","{}","6100"]"#, "", "no quotation marks around it"),
        (r#"["NEG-OPEN","n","6100",{}]"#, "", "an id, a filter and hex, in this order"),
        ("['NEG-MSG','n','61']", "", "have to be double"),
        (r#"["NEG-MSG","n","61""#, "", "column 19"),
        (r#"["NEG","n","61"]"#, "", r#""NEG" is no verb"#),
        (r#"[61]"#, "", "begins with a verb"),
    ] {
        let ended = negsync(&["decode", message], "");
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.stdout.contains(shown), "{message}: {}", ended.stdout);
        assert!(ended.stderr.contains(reason), "{message}: {}", ended.stderr);
    }
    let nothing = negsync(&["decode", "-"], "\n\n");
    assert!(!nothing.status.success() && nothing.stderr.contains("no message"), "{nothing:?}");
}

#[test]
fn a_filter_that_negsync_refuses_is_named() {
    for filter in [r#"{"kind":[1]}"#, r#"[{"kinds":[1]},{"kind":[1]}]"#] {
        let ended = negsync(&["decode", &format!(r#"["NEG-OPEN","n",{filter},"6100000200"]"#)], "");
        assert!(ended.status.success(), "{ended:?}");
        let expected = "negsync as the relay refuses the filter: kind: not a filter key of this \
                        relay; it is kinds, with an array";
        assert_eq!(last_line(&ended), expected);
    }
}

/// A bound in its full form.
fn shown(bound: &Bound) -> String {
    let time = match bound.item.created_at {
        u64::MAX => "infinity".to_owned(),
        second => Timestamp::from_secs(second).to_human_datetime().replace(['T', 'Z'], " "),
    };
    let prefix = hex(&bound.item.id[..usize::from(bound.id_len)]);
    format!("{} {prefix}", time.trim()).trim().to_owned()
}

/// A random message of ordered ranges, and its full table.
fn any_message(rng: &mut StdRng) -> (Vec<u8>, Vec<String>) {
    let mut out = Encoder::new();
    let mut rows = Vec::new();
    let mut last = Item::default();
    for _ in 0..rng.random_range(0..20) {
        let created_at = match rng.random_range(0..40) {
            0 => u64::MAX,
            _ => last.created_at.saturating_add(rng.random_range(1..2_000_000)),
        };
        if created_at == last.created_at {
            break;
        }
        let (mut id, id_len) = ([0; 32], rng.random_range(0..=32u8));
        rng.fill_bytes(&mut id[..usize::from(id_len)]);
        last = Item::new(created_at, id);
        let upper = Bound { item: last, id_len };
        let offset = out.message_bytes();
        let mut ids = Vec::new();
        let says = match rng.random_range(0..3) {
            0 => {
                out.skip(&upper);
                "skip".to_owned()
            }
            1 => {
                let fingerprint: [u8; 16] = rng.random();
                out.fingerprint(&upper, &fingerprint);
                format!("fingerprint {}", hex(&fingerprint))
            }
            _ => {
                ids = (0..rng.random_range(2..9)).map(|_| rng.random::<[u8; 32]>()).collect();
                out.id_list(&upper, ids.len());
                ids.iter().for_each(|id| out.id(id));
                format!("{} ids", ids.len())
            }
        };
        let bytes = out.message_bytes() - offset;
        rows.push(format!("{offset} {bytes} {} {says}", shown(&upper)));
        rows.extend(ids.iter().map(|id| hex(id)));
    }
    (out.finish(), rows)
}

#[test]
fn every_range_is_shown() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let messages: Vec<_> = (0..200).map(|_| any_message(&mut rng)).collect();
    let lines: String = messages.iter().map(|(bytes, _)| hex(bytes) + "\n").collect();
    let (explained, wrong) = decode_lines(&lines, &["--all"]);
    assert_eq!((explained.len(), wrong), (messages.len(), vec![]));
    let (short, _) = decode_lines(&lines, &[]);
    for (((bytes, rows), text), short) in messages.iter().zip(&explained).zip(&short) {
        let table: Vec<String> = text
            .lines()
            .filter(|line| line.starts_with(' '))
            .skip(1)
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(&table, rows, "{}", hex(bytes));
        assert_eq!(text.lines().next(), short.lines().next());
        assert!(short.lines().count() <= text.lines().count());
        for row in rows.iter().filter(|row| row.contains("ids")) {
            let count: usize = row.split(' ').rev().nth(1).unwrap().parse().unwrap();
            let more = format!("and {} more", count.saturating_sub(4));
            assert!(count <= 4 || short.contains(&more), "{row}: {short}");
        }
    }
}

/// The position of the first fault that an initiator refuses.
fn first_fault(message: &[u8]) -> Option<usize> {
    let mut ranges = match Decoder::new(message) {
        Ok(ranges) => ranges,
        Err(wrong) => return Some(wrong.offset),
    };
    let (mut lower, mut offset) = (Item::default(), ranges.offset());
    while let Some(range) = ranges.next() {
        match range {
            Err(wrong) => return Some(wrong.offset),
            Ok(range) if range.upper.item < lower => return Some(offset),
            Ok(range) => (lower, offset) = (range.upper.item, ranges.offset()),
        }
    }
    None
}

#[test]
fn a_mangled_message_is_explained_or_its_wrong_byte_is_named() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut messages = Vec::new();
    for _ in 0..1_500 {
        let mut message = any_message(&mut rng).0;
        for _ in 0..rng.random_range(1..4) {
            let place = rng.random_range(0..message.len());
            match rng.random_range(0..4) {
                0 => message.truncate(place.max(1)),
                1 => message[place] = rng.random(),
                2 => message[place] ^= 1 << rng.random_range(0..8),
                _ => message.insert(place, rng.random()),
            }
        }
        messages.push(message);
    }
    let lines: String =
        messages.iter().map(|bytes| format!("[\"NEG-MSG\",\"n\",\"{}\"]\n", hex(bytes))).collect();
    let (explained, wrong) = decode_lines(&lines, &[]);
    assert_eq!(explained.len(), messages.len());
    let expected: Vec<(usize, usize)> = messages
        .iter()
        .enumerate()
        .filter_map(|(place, message)| Some((place + 1, first_fault(message)?)))
        .collect();
    let named: Vec<(usize, usize)> = wrong
        .iter()
        .map(|(line, reason)| {
            let byte = reason.strip_prefix("byte ").unwrap().split(':').next().unwrap();
            (*line, byte.parse().unwrap())
        })
        .collect();
    assert_eq!(named, expected);
    // Lines may contain any characters.
    let lines: String = lines
        .lines()
        .map(|line| {
            let mut line: Vec<char> = line.chars().collect();
            let place = rng.random_range(0..line.len());
            line[place] = rng.random();
            let line: String = line.into_iter().filter(|char| !"\n\r".contains(*char)).collect();
            line + "\n"
        })
        .collect();
    decode_lines(&lines, &[]);
}

fn any_set(rng: &mut StdRng, count: usize) -> Vec<Item> {
    (0..count).map(|_| Item::new(rng.random_range(0..1_000_000), rng.random())).collect()
}

#[test]
fn a_frame_that_was_cut_is_told_from_a_whole_one() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut answers = Vec::new();
    for _ in 0..60 {
        let count = rng.random_range(10..3_000);
        let both = any_set(&mut rng, count);
        let mut side = || {
            let count = rng.random_range(1..200);
            SortedItems::new([both.clone(), any_set(&mut rng, count)].concat())
        };
        let (ours, theirs) = (side(), side());
        let mut initiator = Initiator::new(&ours, InitiatorOptions::reference(0)).unwrap();
        let limit = rng.random_range(4_096..20_000);
        let mut question = initiator.open();
        // Two questions: the second asks about many ranges.
        for _ in 0..2 {
            let whole = Responder::new(&theirs, 0).unwrap().answer(&question).unwrap();
            let limited = Responder::new(&theirs, limit).unwrap().answer(&question).unwrap();
            answers.push((limited == whole, limited));
            answers.push((true, whole.clone()));
            let mut found = negsync::reconcile::Difference::new();
            match initiator.receive(&whole, &mut found).unwrap() {
                negsync::reconcile::InitiatorStep::Send(next) => question = next,
                negsync::reconcile::InitiatorStep::Done => break,
            }
        }
    }
    let lines: String = answers.iter().map(|(_, bytes)| hex(bytes) + "\n").collect();
    let (explained, _) = decode_lines(&lines, &["--from", "relay"]);
    let cut = answers.iter().filter(|(whole, _)| !whole).count();
    assert!(cut > 5, "{cut} of {} answers were cut", answers.len());
    for ((whole, bytes), text) in answers.iter().zip(explained) {
        assert_eq!(text.contains("was cut"), !whole, "{}\n{text}", hex(bytes));
    }
}

#[test]
fn the_page_by_hand_shows_what_is_printed() {
    let page = std::fs::read_to_string("docs/protocol-by-hand.md").unwrap();
    let (_, command) = page.split_once("negsync decode` says what a line").unwrap();
    let (message, rest) = command.split_once("decode '").unwrap().1.split_once("'\n").unwrap();
    let ended = negsync(&["decode", message], "");
    assert_eq!(ended.stdout, rest.split_once("```").unwrap().0);
}

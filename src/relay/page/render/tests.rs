use super::super::facts::Span;
use super::*;
use crate::metrics::{DayDiffers, DriftLook, LastSync, PeerStatus, Tally, Verdict};
use crate::plot::Days;
use crate::store::DAY_S;
use serde_json::json;
use std::sync::Arc;

const NOW: u64 = 1_767_225_600;

fn facts(peers: Vec<PeerStatus>) -> Facts {
    let days = Days::new(NOW - 20 * DAY_S, NOW, 90);
    let span = Span::All;
    let kinds = (0..20).map(|kind| (kind, 1_000 - u64::from(kind))).collect();
    let held = days.bars();
    let (events, connections, neg_sessions) = (12_345, 3, 2);
    Facts {
        now: NOW,
        events,
        kinds: Arc::new(kinds),
        connections,
        neg_sessions,
        peers,
        span,
        days,
        held,
    }
}

fn peer(name: &str) -> PeerStatus {
    let day = DayDiffers { day: NOW - 3 * DAY_S, have: 7, need: 1_234 };
    let tally = Tally { round_trips: 3, bytes_up: 2_000, bytes_down: 1_000, ..Tally::default() };
    let last = LastSync {
        ended_at: NOW - 100,
        elapsed_s: 0.5,
        tally,
        verdict: Verdict::Differs,
        proof: None,
        not_compared: vec![4],
        differs: [("refused <here>".to_owned(), 7)].into(),
        refuses_writes: false,
        reached: true,
    };
    PeerStatus {
        name: name.to_owned(),
        have: 7,
        need: 1_234,
        differs_since: Some(NOW - 7_300),
        last_converged: Some(NOW - 100),
        last_sync: Some(last),
        last_error: Some(format!("cannot reach {name}")),
        last_error_at: Some(NOW - 50),
        totals: tally,
        syncs: 1,
        look: Some(Arc::new(DriftLook::new(NOW - 90, vec![day]))),
        ..PeerStatus::default()
    }
}

fn whole(facts: &Facts, viewer: Audience) -> String {
    let document = json!({
        "name": "<script>alert(1)</script>",
        "description": "\"quoted\" & <b>bold</b>",
        "contact": "mailto:<x>",
        "terms_of_service": "javascript:alert(1)",
        "supported_nips": [1, 77],
        "limitation": { "auth_required": true },
    });
    let document = RelayDocument::read(document.to_string().as_bytes()).unwrap();
    page(&document, "wss://a.example/\"x", facts, &parts(facts, viewer))
}

#[test]
fn nothing_that_others_wrote_is_markup() {
    let html = whole(&facts(vec![peer("ws://a/<img src=x>\"'&")]), Audience::Operator);
    for raw in ["<script>a", "<b>", "<x>", "<img", "\"quoted\" &", "src=x>\""] {
        assert!(!html.contains(raw), "{raw} in {html}");
    }
    assert!(html.contains("ws://a/&lt;img src=x&gt;&quot;&#39;&amp;"), "{html}");
}

#[test]
fn who_the_peers_are_only_the_operator_sees() {
    let facts = facts(vec![peer("wss://secret.example.com"), peer("wss://secret2.example.com")]);
    let shown = whole(&facts, Audience::Anyone);
    assert!(!shown.contains("secret") && !shown.contains("cannot reach"), "{shown}");
    assert!(shown.contains("Peer 1") && shown.contains("Peer 2"), "{shown}");
    let shown = whole(&facts, Audience::Operator);
    assert!(shown.contains("wss://secret2.example.com"), "{shown}");
    assert!(shown.contains("cannot reach wss://secret.example.com"), "{shown}");
}

#[test]
fn what_a_peer_lacks_stands_beside_its_name_and_on_its_day() {
    let html = whole(&facts(vec![peer("ws://a")]), Audience::Operator);
    for words in [
        "<dt>It lacks</dt><dd>7</dd>",
        "<dt>This relay lacks</dt><dd>1,234</dd>",
        "<dd>2 h ago<small><time datetime=\"2025-12-31T21:58:20Z\">2025-12-31 21:58:20 UTC</time>",
        "2025-12-29: 7 only here, 1234 only there",
        "<tr><td>2025-12-29</td><td>7</td><td>1,234</td></tr>",
        "<dd>3 round trips<small>2.0 KB up, 1.0 KB down, 0.5 s, 1 min ago</small>",
        "<dd>12,345</dd>",
        "<td>8 other kinds</td><td>7,876</td>",
    ] {
        assert!(html.contains(words), "{words} not in {html}");
    }
}

/// Events that only the peer has may be private.
#[test]
fn strangers_are_told_nothing_of_what_only_a_peer_has() {
    let html = whole(&facts(vec![peer("ws://a")]), Audience::Anyone);
    assert!(html.contains("2025-12-29: 7 only here<"), "{html}");
    let private = [
        "only there",
        "Only at",
        "only at",
        "1,234",
        "It lacks",
        "round trips",
        "clients connected",
        "NEG sessions",
    ];
    for words in private {
        assert!(!html.contains(words), "{words} in {html}");
    }
}

#[test]
fn a_relay_without_peers_has_no_section_for_them() {
    let html = whole(&facts(Vec::new()), Audience::Operator);
    assert!(!html.contains("Peers") && !html.contains("Round trips"), "{html}");
}

/// Only an equal peer is green; a reached peer is never "not reached".
#[test]
fn the_words_and_colours_are_those_of_the_verdict() {
    let with = |change: &dyn Fn(&mut PeerStatus)| {
        let mut peer = peer("ws://a");
        change(&mut peer);
        whole(&facts(vec![peer]), Audience::Operator)
    };
    let verdict = |verdict| {
        move |peer: &mut PeerStatus| {
            peer.last_error_at = None;
            peer.last_sync.as_mut().unwrap().verdict = verdict;
        }
    };
    let refuses = |peer: &mut PeerStatus| {
        peer.last_error_at = None;
        peer.last_sync.as_mut().unwrap().refuses_writes = true;
    };
    let dead = |peer: &mut PeerStatus| peer.last_sync = None;
    type Change<'a> = &'a dyn Fn(&mut PeerStatus);
    let cases: [(Change, &str); 6] = [
        (&verdict(Verdict::Equal), r#"<span class="mark good">● equal</span>"#),
        (&verdict(Verdict::CaughtUp), r#"<span class="mark good">● caught up</span>"#),
        (&verdict(Verdict::Differs), r#"<span class="mark differs">▲ differs</span>"#),
        (&verdict(Verdict::Incomplete), r#"<span class="mark bad">✕ incomplete</span>"#),
        (&refuses, r#"<span class="mark differs">▲ refuses writes</span>"#),
        (&dead, r#"<span class="mark bad">✕ not reached</span>"#),
    ];
    for (change, expected) in cases {
        let html = with(change);
        assert!(html.contains(expected), "{expected} not in {html}");
        assert_eq!(html.matches("class=\"mark ").count(), 1);
    }
}

#[test]
fn why_a_peer_differs_only_the_operator_is_told() {
    let facts = facts(vec![peer("ws://a")]);
    let html = whole(&facts, Audience::Operator);
    assert!(html.contains("<dt>Why it differs</dt><dd>7 refused &lt;here&gt;</dd>"), "{html}");
    assert!(!whole(&facts, Audience::Anyone).contains("refused"));
}

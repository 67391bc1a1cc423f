//! Renders the page as HTML: the whole page, and the parts that change.

mod peers;
mod words;

use super::facts::{Facts, Span};
use crate::plot::{self, escape};
use crate::utc;
use negsync_nostr::RelayDocument;
use peers::{differences, differences_in_numbers, peers};
use serde_json::Value;
use std::fmt::Write;
use words::{KEYS_OF_LIMITS, grouped, kind_name, size, time};

/// Maximum number of kinds with a row of their own.
const MOST_KINDS: usize = 12;

/// The location of the NIPs.
const NIPS: &str = "https://github.com/nostr-protocol/nips/blob/master/";
/// The URL schemes that become links.
const LINKED: [&str; 4] = ["https://", "http://", "mailto:", "nostr:"];

/// A part of the page, with the id of its element.
pub(super) type Part = (&'static str, String);

/// The audience of the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    /// May see public events, and of the peers only whether they are reached and equal, without
    /// their names.
    Anyone,
    Operator,
}

/// The part with the time of the data; a change of this part alone is not sent.
pub(super) fn as_of(facts: &Facts) -> Part {
    ("as-of", format!("As of {}", time(facts.now)))
}

/// The parts that change.
pub(super) fn parts(facts: &Facts, viewer: Audience) -> Vec<Part> {
    vec![
        ("now", now(facts, viewer)),
        ("peers", peers(facts, viewer)),
        ("days", days(facts, viewer)),
        ("kinds", kinds(facts)),
    ]
}

/// The whole page. `document` is the relay's NIP-11 document, `address` its WebSocket URL.
pub(super) fn page(
    document: &RelayDocument,
    address: &str,
    facts: &Facts,
    parts: &[Part],
) -> String {
    let text = |field: &Option<String>| escape(field.as_deref().unwrap_or_default());
    let part = |id: &str| parts.iter().find(|part| part.0 == id).map_or("", |part| part.1.as_str());
    let (name, version) = (text(&document.name), text(&document.version));
    let description = text(&document.description);
    let (style, script) = (super::STYLE, super::SCRIPT);
    let (now, kinds, policy) = (part("now"), part("kinds"), policy(document));
    let (_, as_of) = as_of(facts);
    let peers = section(facts, "Peers", "peers", part("peers"));
    let (days, spans, address) = (part("days"), spans(facts.span), escape(address));
    format!(
        r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{name}</title>
<style>{style}</style>
</head>
<body>
<main>
<header>
<h1>{name}</h1>
<p>{description}</p>
<p class="address"><code id="address">{address}</code><button type="button" id="copy" hidden>Copy</button></p>
<p class="state quiet"><span id="as-of">{as_of}</span> <span id="connection" role="status"></span></p>
</header>
<section aria-label="Now"><dl class="tiles" id="now">{now}</dl></section>
{peers}
<section><div class="head"><h2>Events over time</h2>{spans}</div><div class="card" id="days">{days}</div></section>
<section><h2>Kinds</h2><div class="card" id="kinds">{kinds}</div></section>
<section><h2>Policy</h2><div class="card">{policy}</div></section>
</main>
<footer>negsync {version}. All times and days are UTC. The same port speaks WebSocket to Nostr clients.</footer>
<script>{script}</script>
</body>
</html>
"#
    )
}

/// The selection of the time range.
fn spans(shown: Span) -> String {
    let link = |span: Span| {
        let current = if span == shown { r#" aria-current="true""# } else { "" };
        format!(r#"<a href="?days={}"{current}>{}</a>"#, span.name(), span.words())
    };
    let links: String = Span::ALL.into_iter().map(link).collect();
    format!(r#"<nav class="spans" aria-label="Time shown">{links}</nav>"#)
}

/// A section that is left out if it is empty.
fn section(facts: &Facts, title: &str, id: &str, inner: &str) -> String {
    if facts.peers.is_empty() {
        return String::new();
    }
    format!(r#"<section><h2>{title}</h2><div id="{id}">{inner}</div></section>"#)
}

/// The numbers at the top.
fn now(facts: &Facts, viewer: Audience) -> String {
    let mut out = String::new();
    let mut tile = |name: &str, value: String, more: &str| {
        let more = if more.is_empty() { String::new() } else { format!("<small>{more}</small>") };
        let _ = write!(out, "<div><dt>{name}</dt><dd>{value}{more}</dd></div>");
    };
    tile("Events stored", grouped(facts.events as u64), "");
    tile("Kinds stored", grouped(facts.kinds.len() as u64), "");
    if viewer == Audience::Anyone {
        return out;
    }
    let connections = format!("{} clients connected", grouped(facts.connections));
    tile("NEG sessions now", grouped(facts.neg_sessions), &connections);
    if facts.peers.is_empty() {
        return out;
    }
    let syncs: u64 = facts.peers.iter().map(|peer| peer.syncs).sum();
    let mean = |of: fn(&crate::metrics::Tally) -> u64| {
        let sum: u64 = facts.peers.iter().map(|peer| of(&peer.totals)).sum();
        sum as f64 / syncs.max(1) as f64
    };
    let count = format!("mean of {} syncs", grouped(syncs));
    if syncs == 0 {
        tile("Round trips a sync", "–".to_owned(), "no sync has ended yet");
        tile("Bytes a sync", "–".to_owned(), "no sync has ended yet");
        return out;
    }
    tile("Round trips a sync", format!("{:.1}", mean(|tally| tally.round_trips)), &count);
    let bytes = mean(|tally| tally.bytes_up + tally.bytes_down);
    tile("Bytes a sync", size(bytes as u64), &count);
    out
}

/// The number of our events by day, and below it, for the same days, the differences to each peer.
fn days(facts: &Facts, viewer: Audience) -> String {
    let per_bar = match facts.days.per_bar() {
        1 => "a bar for each day".to_owned(),
        days => format!("a bar for every {days} days"),
    };
    let shown: u64 = facts.held.iter().map(|bar| bar.held).sum();
    let (shown, all) = (grouped(shown), grouped(facts.events as u64));
    let shown =
        if shown == all { format!("all {all} events") } else { format!("{shown} of {all} events") };
    let most = facts.held.iter().map(|bar| bar.held).max().unwrap_or(0);
    let mut out = format!(
        r#"<figure><figcaption><span class="keys"><span class="key">held here: {shown}</span></span><span>{per_bar}</span></figcaption>{}</figure>"#,
        drawing(&plot::held(&facts.held), most),
    );
    out.push_str(&differences(facts, viewer));
    let mut edges = facts.days.edges();
    let first = edges.next().unwrap_or(facts.now);
    let last = edges.last().unwrap_or(facts.now).saturating_sub(1);
    let _ = write!(
        out,
        r#"<p class="axis"><span>{}</span><span>{}</span></p>"#,
        utc::date(first),
        utc::date(last)
    );
    out.push_str(&differences_in_numbers(facts, viewer));
    out
}

/// Bars with the value of the highest one.
fn drawing(bars: &str, most: u64) -> String {
    format!(r#"<div class="drawing"><span class="most">{}</span>{bars}</div>"#, grouped(most))
}

fn kinds(facts: &Facts) -> String {
    if facts.kinds.is_empty() {
        return r#"<p class="quiet">Nothing is stored yet.</p>"#.to_owned();
    }
    let mut out =
        String::from("<table><thead><tr><th>Kind</th><th>Events</th></tr></thead><tbody>");
    for (kind, count) in facts.kinds.iter().take(MOST_KINDS) {
        let name = kind_name(*kind);
        let _ = write!(
            out,
            r#"<tr><td>{kind}<span class="name">{name}</span></td><td>{}</td></tr>"#,
            grouped(*count)
        );
    }
    let others = facts.kinds.get(MOST_KINDS..).unwrap_or_default();
    if !others.is_empty() {
        let events: u64 = others.iter().map(|(_, count)| count).sum();
        let (kinds, events) = (grouped(others.len() as u64), grouped(events));
        let _ = write!(out, "<tr><td>{kinds} other kinds</td><td>{events}</td></tr>");
    }
    out.push_str("</tbody></table>");
    out
}

/// A link, if the text is a URL with one of the schemes; otherwise the text.
fn linked(text: &str) -> String {
    let escaped = escape(text);
    let is_link = LINKED.iter().any(|scheme| text.starts_with(scheme));
    if is_link { format!(r#"<a href="{escaped}" rel="noreferrer">{escaped}</a>"#) } else { escaped }
}

/// The limits and policies of the relay's NIP-11 document.
fn policy(document: &RelayDocument) -> String {
    let mut out = String::from("<table><tbody>");
    let mut row = |name: &str, html: &str| {
        let _ = write!(out, "<tr><td>{name}</td><td>{html}</td></tr>");
    };
    for (value, name) in [
        (&document.contact, "Contact"),
        (&document.pubkey, "Operator's public key"),
        (&document.posting_policy, "Posting policy"),
        (&document.terms_of_service, "Terms of service"),
    ] {
        if let Some(value) = value {
            row(name, &linked(value));
        }
    }
    let nips = document.supported_nips.iter().flatten();
    let nips: Vec<String> = nips
        .map(|nip| format!(r#"<a href="{NIPS}{nip:02}.md" rel="noreferrer">{nip}</a>"#))
        .collect();
    row("NIPs", &nips.join(", "));
    let limitation = serde_json::to_value(&document.limitation).unwrap_or_default();
    for (key, value) in limitation.as_object().into_iter().flatten() {
        let known = KEYS_OF_LIMITS.iter().find(|known| known.0 == key.as_str());
        let (name, unit) = known.map_or((escape(key), ""), |known| (known.1.to_owned(), known.2));
        let value = match (value, value.as_u64()) {
            (Value::Bool(true), _) => "yes".to_owned(),
            (Value::Bool(false), _) => "no".to_owned(),
            (_, Some(bytes)) if unit == "bytes" => size(bytes),
            (_, Some(number)) => format!("{} {unit}", grouped(number)),
            (other, None) => other.to_string(),
        };
        row(&name, &escape(value.trim()));
    }
    out.push_str("</tbody></table>");
    out
}

#[cfg(test)]
mod tests;

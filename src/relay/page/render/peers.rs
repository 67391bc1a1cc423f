//! Renders the states of the relay's peers.

use super::super::facts::Facts;
use super::words::{ago, grouped, size, time};
use super::{Audience, drawing};
use crate::config::Direction;
use crate::metrics::{DayDiffers, DriftLook, PeerState, PeerStatus};
use crate::plot::{self, Bar, escape};
use crate::utc;
use std::fmt::Write;

/// Maximum number of days in the table of a comparison; the newest ones.
const MOST_ROWS: usize = 400;

/// A card for each peer.
pub(super) fn peers(facts: &Facts, viewer: Audience) -> String {
    let cards = facts.peers.iter().enumerate();
    cards.map(|(place, peer)| card(peer, place, facts.now, viewer)).collect()
}

/// The name under which a viewer sees a peer.
fn name(peer: &PeerStatus, place: usize, viewer: Audience) -> String {
    match viewer {
        Audience::Operator => escape(&peer.name),
        Audience::Anyone => format!("Peer {}", place + 1),
    }
}

fn card(peer: &PeerStatus, place: usize, now: u64, viewer: Audience) -> String {
    let (mark, sign) = mark(peer.state());
    let words = peer.state().words();
    let direction = match peer.direction {
        Direction::Both => "both ways",
        Direction::Down => "down, from the peer",
        Direction::Up => "up, to the peer",
    };
    let live = if peer.live { ", live" } else { "" };
    let mut out = format!(
        r#"<div class="card"><div class="head"><h3>{}</h3><span class="mark {mark}">{sign}{words}</span><span class="quiet">{direction}{live}</span></div><dl class="facts">"#,
        name(peer, place, viewer),
    );
    let mut fact = |name: &str, value: &str| {
        let _ = write!(out, "<div><dt>{name}</dt><dd>{value}</dd></div>");
    };
    let when = |second: u64| format!("{}<small>{}</small>", ago(second, now), time(second));
    let converged = match (peer.in_step, peer.last_converged) {
        (true, _) => "now".to_owned(),
        (false, Some(second)) => when(second),
        (false, None) => "not yet".to_owned(),
    };
    fact("Last converged", &converged);
    if viewer == Audience::Operator {
        let known = peer.last_sync.is_some() || peer.have > 0 || peer.need > 0;
        let count = |number: u64| if known { grouped(number) } else { "not known yet".to_owned() };
        fact("It lacks", &count(peer.have));
        fact("This relay lacks", &count(peer.need));
    }
    if let Some(second) = peer.differs_since {
        fact("Differs since", &when(second));
    }
    if let (Some(last), Audience::Operator) = (&peer.last_sync, viewer) {
        let tally = &last.tally;
        let trips = tally.round_trips;
        let cost = format!(
            "{} round trip{}<small>{} up, {} down, {:.1} s, {}</small>",
            grouped(trips),
            if trips == 1 { "" } else { "s" },
            size(tally.bytes_up),
            size(tally.bytes_down),
            last.elapsed_s,
            ago(last.ended_at, now),
        );
        fact("Last sync", &cost);
        if !last.differs.is_empty() {
            let reasons: Vec<String> = last
                .differs
                .iter()
                .map(|(reason, count)| format!("{} {}", grouped(*count), escape(reason)))
                .collect();
            fact("Why it differs", &reasons.join(", "));
        }
        if !last.not_compared.is_empty() {
            let kinds: Vec<String> = last.not_compared.iter().map(u16::to_string).collect();
            fact("Not compared", &format!("kinds {}", kinds.join(", ")));
        }
    }
    out.push_str("</dl>");
    let failed = peer.last_error.as_ref().zip(peer.last_error_at);
    let failed = failed.filter(|(_, second)| !peer.connected && peer.failed_since_sync(*second));
    if let (Some((error, second)), Audience::Operator) = (failed, viewer) {
        let (error, ago) = (escape(error), ago(second, now));
        let _ = write!(out, r#"<p class="quiet">Last failure, {ago}: {error}</p>"#);
    }
    out.push_str("</div>");
    out
}

/// The state of a peer as a CSS class and as text that does not depend on colour.
fn mark(state: PeerState) -> (&'static str, &'static str) {
    match state {
        PeerState::InStep | PeerState::Equal | PeerState::CaughtUp => ("good", "● "),
        PeerState::NotReached | PeerState::Incomplete => ("bad", "✕ "),
        PeerState::Differs | PeerState::RefusesWrites => ("differs", "▲ "),
        PeerState::FirstSync => ("quiet", ""),
    }
}

/// The peers with a comparison by day, with their names.
fn looks(facts: &Facts, viewer: Audience) -> impl Iterator<Item = (usize, String, &DriftLook)> {
    let peers = facts.peers.iter().enumerate();
    peers.filter_map(move |(place, peer)| {
        Some((place, name(peer, place, viewer), peer.look.as_deref()?))
    })
}

/// The days on which each peer differs.
pub(super) fn differences(facts: &Facts, viewer: Audience) -> String {
    let differing = looks(facts, viewer).filter(|(_, _, look)| !look.days.is_empty());
    differing.map(|(_, name, look)| figure(facts, look, &name, viewer)).collect()
}

/// The same in numbers, with the peers that differ on no day.
pub(super) fn differences_in_numbers(facts: &Facts, viewer: Audience) -> String {
    let mut out = String::new();
    for (place, name, look) in looks(facts, viewer) {
        if !look.days.is_empty() {
            out.push_str(&table(look, place, &name, viewer));
        } else if look.error.is_none() {
            let at = time(look.at);
            let _ = write!(out, r#"<p class="equal quiet">{name}: equal on every day, {at}</p>"#);
        }
    }
    out
}

fn figure(facts: &Facts, look: &DriftLook, name: &str, viewer: Audience) -> String {
    let rows = look.days.iter().map(|it| {
        let need = if viewer == Audience::Operator { it.need } else { 0 };
        let bar = Bar { label: String::new(), held: 0, have: it.have, need };
        (it.day, bar)
    });
    let bars = facts.days.with(rows);
    let most = bars.iter().map(|bar| bar.have.max(bar.need)).max().unwrap_or(0);
    let sum = |side: fn(&DayDiffers) -> u64| grouped(look.days.iter().map(side).sum());
    let (need, drawn) = match viewer {
        Audience::Operator => {
            let need = sum(|day| day.need);
            let need = format!(r#"<span class="key need">only at {name}: {need}</span>"#);
            (need, plot::differences(&bars))
        }
        Audience::Anyone => (format!("<span>not at {name}</span>"), plot::only_here(&bars)),
    };
    format!(
        r#"<figure><figcaption><span class="keys"><span class="key have">only here: {}</span>{need}</span><span>{}</span></figcaption>{}</figure>"#,
        sum(|day| day.have),
        time(look.at),
        drawing(&drawn, most),
    )
}

fn table(look: &DriftLook, place: usize, name: &str, viewer: Audience) -> String {
    let is_operator = viewer == Audience::Operator;
    let only_there = if is_operator { format!("<th>Only at {name}</th>") } else { String::new() };
    let mut out = format!(
        r#"<details id="days-{place}"><summary>{name}: the days in numbers</summary><div class="scroll" tabindex="0" role="region" aria-label="{name}: the days in numbers"><table><thead><tr><th>Day</th><th>Only here</th>{only_there}</tr></thead><tbody>"#
    );
    for day in look.days.iter().rev().take(MOST_ROWS) {
        let (date, have) = (utc::date(day.day), grouped(day.have));
        let need =
            if is_operator { format!("<td>{}</td>", grouped(day.need)) } else { String::new() };
        let _ = write!(out, "<tr><td>{date}</td><td>{have}</td>{need}</tr>");
    }
    let older = look.days.len().saturating_sub(MOST_ROWS);
    if older > 0 {
        let columns = if is_operator { 2 } else { 1 };
        let _ =
            write!(out, r#"<tr><td>and {older} older days</td><td colspan="{columns}"></td></tr>"#);
    }
    out.push_str("</tbody></table></div></details>");
    out
}

//! The line protocol of the negentropy reference suite, so that it can be run
//! over this engine.
//!
//! In: `item,<created_at>,<id hex>`, `seal`, `initiate`, `msg,<hex>`.
//! Out: `msg,<hex>`; an initiator writes `have,<hex>` and `need,<hex>` lines
//! before its `msg`, or `done` when nothing is left to ask.
//!
//! `FRAMESIZELIMIT` is the longest message in bytes, 0 or unset for none.
//! `RULE=adaptive` asks by this engine's own rule instead of the reference's.
//! Any error ends the program with a non-zero status.

use anyhow::{Context, Result, bail};
use negsync_reconcile::item::Item;
use negsync_reconcile::{
    Difference, Initiator, InitiatorOptions, InitiatorStep, Responder, Rule, SortedItems,
};
use std::io::{BufRead, Write};

/// The state of this side.
enum Side {
    Filling(Vec<Item>),
    Responder(SortedItems, Responder<SortedItems>),
    Initiator(Initiator<SortedItems>),
}

struct Settings {
    frame_limit_bytes: usize,
    rule: Rule,
}

impl Settings {
    fn from_environment() -> Result<Self> {
        let frame_limit_bytes = match std::env::var("FRAMESIZELIMIT") {
            Ok(limit) => limit.parse().context("FRAMESIZELIMIT is no number of bytes")?,
            Err(_) => 0,
        };
        let rule = match std::env::var("RULE").as_deref() {
            Ok("adaptive") => Rule::Adaptive,
            Ok("exact") => Rule::Exact,
            Ok("reference") | Err(_) => Rule::Reference,
            Ok(other) => bail!("RULE is {other}, not adaptive, exact or reference"),
        };
        Ok(Self { frame_limit_bytes, rule })
    }
}

fn main() -> Result<()> {
    let settings = Settings::from_environment()?;
    let mut out = std::io::stdout().lock();
    let mut side = Side::Filling(Vec::new());
    for (number, line) in std::io::stdin().lock().lines().enumerate() {
        let line = line?;
        if line.is_empty() {
            continue;
        }
        side = step(side, &line, &settings, &mut out)
            .with_context(|| format!("line {}", number + 1))?;
        out.flush()?;
    }
    Ok(())
}

/// Performs one line.
fn step(side: Side, line: &str, settings: &Settings, out: &mut impl Write) -> Result<Side> {
    let (word, rest) = line.split_once(',').unwrap_or((line, ""));
    Ok(match (word, side) {
        ("item", Side::Filling(mut items)) => {
            items.push(item(rest)?);
            Side::Filling(items)
        }
        ("seal", Side::Filling(items)) => {
            let set = SortedItems::new(items);
            Side::Responder(set.clone(), Responder::new(set, settings.frame_limit_bytes)?)
        }
        ("initiate", Side::Responder(set, _)) => {
            let options = InitiatorOptions::default()
                .rule(settings.rule)
                .frame_limit_bytes(settings.frame_limit_bytes);
            let mut initiator = Initiator::new(set, options)?;
            writeln!(out, "msg,{}", faster_hex::hex_string(&initiator.open()))?;
            Side::Initiator(initiator)
        }
        ("msg", Side::Responder(set, mut responder)) => {
            let answer = responder.answer(&unhex(rest)?)?;
            writeln!(out, "msg,{}", faster_hex::hex_string(&answer))?;
            Side::Responder(set, responder)
        }
        ("msg", Side::Initiator(mut initiator)) => {
            let mut found = Difference::new();
            let next = initiator.receive(&unhex(rest)?, &mut found)?;
            for id in &found.have {
                writeln!(out, "have,{}", faster_hex::hex_string(id))?;
            }
            for id in &found.need {
                writeln!(out, "need,{}", faster_hex::hex_string(id))?;
            }
            match next {
                InitiatorStep::Send(message) => {
                    writeln!(out, "msg,{}", faster_hex::hex_string(&message))?
                }
                InitiatorStep::Done => writeln!(out, "done")?,
            }
            Side::Initiator(initiator)
        }
        (word, _) => bail!("{word:?} is not a command here"),
    })
}

fn item(fields: &str) -> Result<Item> {
    let (created_at, id) = fields.split_once(',').context("an item is created_at,id")?;
    let created_at = created_at.parse().context("created_at is no number of seconds")?;
    let id = unhex(id)?.try_into().ok().context("an id is 64 hex digits")?;
    Ok(Item::new(created_at, id))
}

fn unhex(hex: &str) -> Result<Vec<u8>> {
    let mut bytes = vec![0; hex.len() / 2];
    faster_hex::hex_decode(hex.as_bytes(), &mut bytes).context("not hex")?;
    Ok(bytes)
}

//! The fuzz targets: each is a function of bytes that panics when a rule is violated. libFuzzer
//! calls them (`fuzz/fuzz_targets`), `tests/fuzz_corpus.rs` replays the committed corpora, and
//! `examples/mutate.rs` feeds them millions of mutated inputs.

pub mod client_frames;
pub mod codec;
pub mod filters;
pub mod import;
pub mod initiator;
mod input;
pub mod responder;
pub mod sessions;
mod sets;

/// A target with its name, which is also the name of its corpus.
#[derive(Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// Whether its inputs are text.
    pub is_text: bool,
}

/// All targets.
pub const TARGETS: [Target; 7] = [
    Target { name: "codec", run: codec::target, is_text: false },
    Target { name: "responder", run: responder::target, is_text: false },
    Target { name: "initiator", run: initiator::target, is_text: false },
    Target { name: "sessions", run: sessions::target, is_text: false },
    Target { name: "client_frames", run: client_frames::target, is_text: true },
    Target { name: "filters", run: filters::target, is_text: true },
    Target { name: "import", run: import::target, is_text: true },
];

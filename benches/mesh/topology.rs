//! Topologies: which relay has which peers.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Number of configured peers of a relay in the random topologies.
const PEERS: usize = 3;

/// A shape of the network.
#[derive(Clone, Copy, Debug)]
pub enum Topology {
    /// Each relay has the one before it as its peer.
    Chain,
    /// Each relay has the first as its peer.
    Star,
    /// Each relay has three others as its peers, chosen at random.
    Random,
    /// Each relay has three others as its peers; popular relays are more likely.
    FollowGraph,
}

impl Topology {
    pub const ALL: [Self; 4] = [Self::Chain, Self::Star, Self::Random, Self::FollowGraph];

    pub fn name(self) -> &'static str {
        match self {
            Self::Chain => "chain",
            Self::Star => "star",
            Self::Random => "random",
            Self::FollowGraph => "follow graph",
        }
    }

    /// The links, each from the asking relay to the asked one.
    pub fn links(self, relays: usize, seed: u64) -> Vec<(usize, usize)> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut links: Vec<(usize, usize)> = Vec::new();
        for relay in 1..relays {
            match self {
                Self::Chain => links.push((relay, relay - 1)),
                Self::Star => links.push((relay, 0)),
                Self::Random | Self::FollowGraph => {
                    let mut peers: Vec<usize> = Vec::new();
                    while peers.len() < PEERS.min(relay) {
                        // An end of a random link is a relay with a probability in proportion to
                        // its links.
                        let popular = !links.is_empty() && matches!(self, Self::FollowGraph);
                        let peer = if popular && rng.random_bool(0.8) {
                            let (from, to) = links[rng.random_range(0..links.len())];
                            if rng.random() { from } else { to }
                        } else {
                            rng.random_range(0..relay)
                        };
                        if peer != relay && !peers.contains(&peer) {
                            peers.push(peer);
                        }
                    }
                    links.extend(peers.into_iter().map(|peer| (relay, peer)));
                }
            }
        }
        links
    }
}

//! Bounds the number of pages with updates: in total, and for each address.

use crate::server::limits::counted_as;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Maximum number of streams in total.
pub(super) const MOST_STREAMS: usize = 64;
/// Maximum number of streams of one address, such as a household.
pub(super) const MOST_OF_ADDRESS: usize = 8;

/// The open streams, by address.
#[derive(Default)]
pub(super) struct Streams(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// The slot of one stream; returned when this is dropped.
pub(super) struct StreamPermit {
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
    address: IpAddr,
}

impl Streams {
    /// Takes a slot for a stream to the address.
    ///
    /// # Errors
    /// The limit that is reached.
    pub(super) fn enter(&self, address: IpAddr) -> Result<StreamPermit, String> {
        let address = counted_as(address);
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if open.values().sum::<usize>() >= MOST_STREAMS {
            return Err(format!(
                "{MOST_STREAMS} pages are kept current already; reload this one.\n"
            ));
        }
        let of_address = open.entry(address).or_default();
        if *of_address >= MOST_OF_ADDRESS {
            return Err(format!(
                "{MOST_OF_ADDRESS} pages of your address are kept current already; close one.\n"
            ));
        }
        *of_address += 1;
        Ok(StreamPermit { open: Arc::clone(&self.0), address })
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_address) = open.get_mut(&self.address) {
            *of_address -= 1;
            if *of_address == 0 {
                open.remove(&self.address);
            }
        }
    }
}

//! How many pages are kept current: in all, and of each address.

use crate::server::limits::counted_as;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// The most pages that are kept current at a time.
pub(super) const MOST_STREAMS: usize = 64;
/// The most of one address: windows of one household.
pub(super) const MOST_OF_ADDRESS: usize = 8;

/// The streams of updates that are open, by address.
#[derive(Default)]
pub(super) struct Streams(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// A place for one stream, until it is dropped.
pub(super) struct StreamPermit {
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
    address: IpAddr,
}

impl Streams {
    /// A place for a stream to the address.
    ///
    /// # Errors
    /// Why there is none.
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

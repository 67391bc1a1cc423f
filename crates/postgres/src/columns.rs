//! Conversion of rows and parameters to the types of this crate.

use crate::batch::Bytes;
use std::collections::HashSet;
use tokio_postgres::{Error, Row};

/// A parameter with several ids, keys or addresses.
pub(crate) fn slices(list: &[Bytes]) -> Vec<&[u8]> {
    list.iter().map(Bytes::as_slice).collect()
}

/// The ids in the first column, without duplicates.
pub(crate) fn ids_of(rows: &[Row]) -> Result<Vec<Bytes>, Error> {
    let mut seen = HashSet::new();
    let ids = rows.iter().map(|row| bytes(row, 0)).collect::<Result<Vec<_>, _>>()?;
    Ok(ids.into_iter().filter(|id| seen.insert(*id)).collect())
}

/// A column of 32 bytes. A column of another length, which is never written, becomes a value that
/// matches no id.
pub(crate) fn bytes(row: &Row, column: usize) -> Result<Bytes, Error> {
    row.try_get::<_, &[u8]>(column).map(to_bytes)
}

pub(crate) fn to_bytes(bytes: &[u8]) -> Bytes {
    bytes.try_into().unwrap_or_default()
}

/// A column of seconds, or of a count.
pub(crate) fn second(row: &Row, column: usize) -> Result<u64, Error> {
    row.try_get::<_, i64>(column).map(|second| second as u64)
}

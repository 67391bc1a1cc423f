//! Content negotiation of HTTP requests.

use hyper::HeaderMap;
use hyper::header::ACCEPT;

/// NIP-11: the media type of the relay information document.
pub(crate) const NOSTR_JSON: &str = "application/nostr+json";

/// Whether the `Accept` headers name the media type (RFC 9110, section 12.5.1). A range such as
/// `*/*` does not count, nor does a quality of 0.
pub(crate) fn accepts(headers: &HeaderMap, media_type: &str) -> bool {
    let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let is_named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(media_type));
        let mut qualities = parts.filter_map(|part| part.split_once('='));
        let quality = qualities.find(|(name, _)| name.trim().eq_ignore_ascii_case("q"));
        is_named && quality.is_none_or(|(_, quality)| quality.trim().parse() != Ok(0.0))
    })
}

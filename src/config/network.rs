//! Networks and addresses in the notation of operators: `192.0.2.0/24`, `2001:db8::/32`, or a
//! single address.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;
use std::str::FromStr;

/// A network in CIDR notation (RFC 4632). An IPv4 address inside IPv6 (`::ffff:192.0.2.1`, as a
/// socket on `[::]` reports it) counts as the IPv4 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    // The bits after the prefix are zero.
    first: IpAddr,
    prefix_bits: u8,
}

/// Why a text is not a network.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum NetworkError {
    /// It is neither an address nor an address with a prefix length.
    #[error("{0:?} is not an address such as 192.0.2.1 or a network such as 192.0.2.0/24")]
    Malformed(String),
    /// Bits after the prefix are set: it is unclear whether one address is meant or its network.
    #[error("{0:?} has bits set after its prefix; write {1}, or the address without a prefix")]
    BitsAfterPrefix(String, Network),
}

impl Network {
    /// The network of `prefix_bits` that contains `address`; `None` if the address has fewer bits.
    pub fn of(address: IpAddr, prefix_bits: u8) -> Option<Self> {
        let first = match address {
            IpAddr::V4(v4) if prefix_bits <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix_bits)).unwrap_or(0);
                IpAddr::from((v4.to_bits() & mask).to_be_bytes())
            }
            IpAddr::V6(v6) if prefix_bits <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix_bits)).unwrap_or(0);
                IpAddr::from((v6.to_bits() & mask).to_be_bytes())
            }
            _ => return None,
        };
        Some(Self { first, prefix_bits })
    }

    /// The network of a single address.
    pub fn only(address: IpAddr) -> Self {
        Self { first: address, prefix_bits: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// Whether the network contains the address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.first.is_ipv4() == address.is_ipv4()
            && Self::of(address, self.prefix_bits).is_some_and(|network| network == *self)
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let malformed = || NetworkError::Malformed(text.to_owned());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| malformed())?;
        let prefix_bits = match prefix {
            Some(prefix) => prefix.parse().map_err(|_| malformed())?,
            None if address.is_ipv4() => 32,
            None => 128,
        };
        let network = Self::of(address, prefix_bits).ok_or_else(malformed)?;
        if network.first != address {
            return Err(NetworkError::BitsAfterPrefix(text.to_owned(), network));
        }
        Ok(network)
    }
}

impl Display for Network {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix_bits)
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_holds_the_addresses_that_begin_with_its_bits() {
        for (network, inside, outside) in [
            ("127.0.0.0/8", "127.255.0.1", "128.0.0.0"),
            ("192.0.2.0/24", "192.0.2.255", "192.0.3.0"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.6"),
            ("0.0.0.0/0", "255.255.255.255", "::1"),
            ("::/0", "2001:db8::1", "127.0.0.1"),
            ("2001:db8::/33", "2001:db8:7fff::", "2001:db8:8000::"),
            ("::1", "::1", "::2"),
            ("10.0.0.0/8", "::ffff:10.1.2.3", "::ffff:11.1.2.3"),
        ] {
            let network: Network = network.parse().unwrap();
            assert!(network.contains(inside.parse().unwrap()), "{network} {inside}");
            assert!(!network.contains(outside.parse().unwrap()), "{network} {outside}");
            assert_eq!(network.to_string().parse(), Ok(network));
        }
    }

    #[test]
    fn what_is_no_network_is_refused_and_a_slip_of_the_prefix_with_what_was_meant() {
        for text in ["", "here", "1.2.3.4/33", "::1/129", "1.2.3.4/", "1.2.3.4/8/8", "1.2.3.4/-1"] {
            let error = text.parse::<Network>().unwrap_err();
            assert_eq!(error, NetworkError::Malformed(text.to_owned()));
        }
        let error = "192.0.2.7/24".parse::<Network>().unwrap_err().to_string();
        assert!(error.contains("192.0.2.0/24"), "{error}");
    }
}

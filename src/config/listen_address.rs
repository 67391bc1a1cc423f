//! The address on which a server listens.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// An address to listen on: `ADDRESS:PORT`, `NAME:PORT` for every address of the name, or `:PORT`
/// for every address of the machine. Port 0 takes any free port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ListenAddress {
    host: ListenHost,
    port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum ListenHost {
    /// Every address of the machine.
    All,
    Ip(IpAddr),
    Name(String),
}

/// The text is not an address to listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be an address and a port: \"127.0.0.1:7777\", \"localhost:7777\" or \":7777\"")]
pub struct ListenAddressError;

impl ListenAddress {
    /// The port; 0 for any free one.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Sets another port for the same host.
    pub fn set_port(&mut self, port: u16) {
        self.port = port;
    }

    /// The name to resolve, if the host is a name.
    pub fn name(&self) -> Option<&str> {
        match &self.host {
            ListenHost::Name(name) => Some(name),
            ListenHost::All | ListenHost::Ip(_) => None,
        }
    }

    /// The addresses to try, in this order, if no name has to be resolved; one of them is enough.
    /// The IPv6 wildcard accepts IPv4 connections too.
    pub fn literal(&self) -> Option<Vec<SocketAddr>> {
        let hosts: Vec<IpAddr> = match &self.host {
            ListenHost::All => vec![Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()],
            ListenHost::Ip(ip) => vec![*ip],
            ListenHost::Name(_) => return None,
        };
        Some(hosts.into_iter().map(|ip| SocketAddr::new(ip, self.port)).collect())
    }

    /// `HOST:PORT` for a client on the same machine.
    pub fn reachable(&self) -> String {
        let host = match &self.host {
            ListenHost::All => Ipv4Addr::LOCALHOST.into(),
            ListenHost::Ip(IpAddr::V4(ip)) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            ListenHost::Ip(IpAddr::V6(ip)) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ListenHost::Ip(ip) => *ip,
            ListenHost::Name(name) => return format!("{name}:{}", self.port),
        };
        SocketAddr::new(host, self.port).to_string()
    }
}

impl From<SocketAddr> for ListenAddress {
    fn from(address: SocketAddr) -> Self {
        Self { host: ListenHost::Ip(address.ip()), port: address.port() }
    }
}

impl FromStr for ListenAddress {
    type Err = ListenAddressError;

    fn from_str(text: &str) -> Result<Self, ListenAddressError> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(address.into());
        }
        let (host, port) = text.rsplit_once(':').ok_or(ListenAddressError)?;
        let port = port.parse().map_err(|_| ListenAddressError)?;
        let host = match host {
            "" => ListenHost::All,
            name if is_name(name) => ListenHost::Name(name.to_owned()),
            _ => return Err(ListenAddressError),
        };
        Ok(Self { host, port })
    }
}

/// Whether the text is a host name. It needs at least one letter: `127.0.1` is a mistake.
fn is_name(text: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    text.len() <= 253
        && text.bytes().all(is_part)
        && text.bytes().any(|byte| byte.is_ascii_alphabetic())
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            ListenHost::All => write!(f, ":{}", self.port),
            ListenHost::Ip(ip) => SocketAddr::new(*ip, self.port).fmt(f),
            ListenHost::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl TryFrom<String> for ListenAddress {
    type Error = ListenAddressError;

    fn try_from(text: String) -> Result<Self, ListenAddressError> {
        text.parse()
    }
}

impl From<ListenAddress> for String {
    fn from(address: ListenAddress) -> Self {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_a_name_or_a_port_alone_says_where() {
        for text in ["127.0.0.1:7777", "[::1]:0", "[::]:7777", "localhost:7777", "a.b:1", ":7777"] {
            let address: ListenAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
        for text in
            ["", "7777", "localhost", "127.0.0.1", "127.0.1:7777", "a b:1", "a:70000", "::1:7"]
        {
            assert!(text.parse::<ListenAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_client_on_the_same_machine_reaches_it() {
        for (text, expected) in [
            (":7777", "127.0.0.1:7777"),
            ("0.0.0.0:7777", "127.0.0.1:7777"),
            ("[::]:7777", "[::1]:7777"),
            ("localhost:7777", "localhost:7777"),
            ("192.0.2.1:7777", "192.0.2.1:7777"),
        ] {
            assert_eq!(text.parse::<ListenAddress>().unwrap().reachable(), expected);
        }
    }
}

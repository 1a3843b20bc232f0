//! Where listeners listen, who clients are, and what networks are.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use super::super::problem::Problem;
use super::super::types::Address;
use crate::listener::path::LONGEST;
use crate::route::networks::canonical;

/// `127.0.0.1:80`, `[::]:80`, `*:80`, `unix:PATH`, `unix:@NAME`, `fd:NAME`.
pub(in crate::config) fn address(text: &str) -> Result<Address, Problem> {
    if let Some(name) = text.strip_prefix("fd:") {
        // What systemd allows (systemd.socket(5), FileDescriptorName=).
        let good = !name.is_empty()
            && name.len() <= 255
            && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':');
        return match good {
            true => Ok(Address::Inherited(name.to_owned())),
            false => Err(no_address(
                text,
                "`fd:NAME`, with the name of the socket unit's \
                                           `FileDescriptorName=`",
            )),
        };
    }
    if let Some(place) = text.strip_prefix("unix:") {
        return unix(text, place);
    }
    if text.starts_with('/') || text.starts_with("./") || text.starts_with('@') {
        return Err(no_address(text, &format!("`unix:{text}`")));
    }
    if let Some(port) = text.strip_prefix("*:") {
        return match port.parse() {
            Ok(port) => Ok(Address::Both(port)),
            Err(_) => Err(no_address(text, "a port from 0 to 65535, such as `*:80`")),
        };
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return match address {
            SocketAddr::V6(v6) if v6.scope_id() != 0 => {
                Err(no_address(text, "an address without a scope"))
            }
            address => Ok(Address::Inet(address)),
        };
    }
    Err(no_address(text, &like_address(text)))
}

/// `unix:PATH` or `unix:@NAME`. What else they have to be the system knows: `check` asks it.
fn unix(text: &str, place: &str) -> Result<Address, Problem> {
    if text.contains('\0') {
        return Err(Problem::Zero);
    }
    match place.strip_prefix('@') {
        Some("") => Err(no_address(text, "`unix:@NAME`, with a name")),
        Some(name) if name.len() > LONGEST => Err(Problem::LongSocket(name.len())),
        Some(name) => Ok(Address::Name(name.to_owned())),
        None if place.is_empty() || place.ends_with('/') => {
            Err(no_address(text, "`unix:PATH`, with the path of a socket"))
        }
        None => Ok(Address::Path(place.into())),
    }
}

/// The mode of a socket's path: three octal digits, a fourth in front of them would say nothing.
pub(in crate::config) fn mode(text: &str) -> Result<u32, Problem> {
    let digits = text.strip_prefix('0').filter(|rest| rest.len() == 3).unwrap_or(text);
    match u32::from_str_radix(digits, 8) {
        Ok(mode) if digits.len() == 3 && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Ok(mode)
        }
        _ => Err(no_mode(text)),
    }
}

pub(in crate::config) fn no_mode(text: &str) -> Problem {
    let write = "three octal digits in quotes, such as `\"660\"`".to_owned();
    Problem::Word { found: text.to_owned(), what: "mode", write }
}

/// What the writer of something like an address could have meant.
fn like_address(text: &str) -> String {
    let port = |port: &str| port.parse::<u16>().is_ok();
    let some = "such as `127.0.0.1:80`, `[::1]:80`, `*:80`, `unix:PATH` or `fd:NAME`";
    match text.rsplit_once(':') {
        None if port(text) => format!("`*:{text}`, or `127.0.0.1:{text}` for this machine only"),
        Some(("", right)) if port(right) => format!("`*:{right}`"),
        Some(("localhost", right)) if port(right) => {
            format!("`127.0.0.1:{right}` or `[::1]:{right}`: a name is no address")
        }
        Some((left, right)) if port(right) && left.parse::<Ipv6Addr>().is_ok() => {
            format!("`[{left}]:{right}`")
        }
        _ => match text.trim_matches(['[', ']']).parse() {
            Ok(IpAddr::V4(address)) => format!("its port too, such as `{address}:80`"),
            Ok(IpAddr::V6(address)) => format!("its port too, such as `[{address}]:80`"),
            Err(_) => format!("an address and a port, {some}"),
        },
    }
}

fn no_address(text: &str, write: &str) -> Problem {
    Problem::Word { found: text.to_owned(), what: "address", write: write.to_owned() }
}

/// `10.0.0.0/8`, `fd00::/8`, or a single address. Also what it means where bits after the prefix are
/// set.
pub(in crate::config) fn network(text: &str) -> Result<IpNet, Problem> {
    let single = text.parse::<IpAddr>().map(IpNet::from);
    match text.parse::<IpNet>().or(single) {
        Ok(network) => Ok(canonical(network)),
        Err(_) => Err(Problem::Word {
            found: text.to_owned(),
            what: "network",
            write: "an address, or one with the length of its prefix, such as `10.0.0.0/8` or \
                    `fd00::/8`"
                .to_owned(),
        }),
    }
}

/// A client's address, canonical.
pub(in crate::config) fn peer(text: &str) -> Result<IpAddr, Problem> {
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(address.to_canonical()),
        Err(_) => Err(Problem::Word {
            found: text.to_owned(),
            what: "address of a client",
            write: "a single one without prefix and port, such as `10.1.2.3` or `fd00::1`"
                .to_owned(),
        }),
    }
}

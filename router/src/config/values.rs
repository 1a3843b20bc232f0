//! Values from their texts: pure, one function a kind.

mod addresses;

use std::ops::RangeInclusive;
use std::time::Duration;

use rustix::process::Signal;

pub(super) use self::addresses::{address, mode, network, no_mode, peer};
use super::problem::Problem;
use super::types::{Account, Rate, RateUnit};
use super::words::{near, plain};
use crate::pool::{Balance, Otherwise};
use crate::route::Refusal;

/// Longest name: it travels with each connection and is a label of metrics.
const NAME: usize = 64;

/// `250ms`, `5s`, `2m`, `1h`.
pub(super) fn duration(text: &str, range: &RangeInclusive<Duration>) -> Result<Duration, Problem> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if unit.is_empty() && !number.is_empty() {
        return Err(Problem::NoUnit(text.to_owned()));
    }
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => 0,
    };
    if number.is_empty() || milliseconds == 0 {
        let write = "a whole number and `ms`, `s`, `m` or `h`, such as `250ms` or `5s`".to_owned();
        return Err(Problem::Word { found: text.to_owned(), what: "duration", write });
    }
    let parsed = number.parse::<u64>().ok().and_then(|number| number.checked_mul(milliseconds));
    match parsed.map(Duration::from_millis) {
        Some(duration) if range.contains(&duration) => Ok(duration),
        _ => Err(Problem::Range {
            found: text.to_owned(),
            least: show_duration(*range.start()),
            most: show_duration(*range.end()),
        }),
    }
}

/// `512B`, `64KiB`, `16MiB`, `1GiB`; in bytes.
pub(super) fn size(text: &str, range: &RangeInclusive<u64>) -> Result<u64, Problem> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "B" => Some(0),
        "KiB" => Some(10),
        "MiB" => Some(20),
        "GiB" => Some(30),
        _ => None,
    };
    let Some(shift) = shift.filter(|_| !number.is_empty()) else {
        let write = "a whole number and `B`, `KiB`, `MiB` or `GiB`, such as `16MiB`".to_owned();
        return Err(Problem::Word { found: text.to_owned(), what: "size", write });
    };
    let parsed = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    match parsed {
        Some(size) if range.contains(&size) => Ok(size),
        _ => Err(Problem::Range {
            found: text.to_owned(),
            least: show_size(*range.start()),
            most: show_size(*range.end()),
        }),
    }
}

/// A size in the largest unit that needs no fraction.
pub(super) fn show_size(size: u64) -> String {
    for (unit, shift) in [("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        if size >= 1 << shift && size.is_multiple_of(1 << shift) {
            return format!("{}{unit}", size >> shift);
        }
    }
    format!("{size}B")
}

/// A duration in the largest unit that needs no fraction.
pub(super) fn show_duration(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    for (unit, size) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
        // Two hours are `2h`, but 120 seconds stay what people write: up to two minutes in seconds.
        let few = unit != "s" && milliseconds <= 120_000;
        if milliseconds >= size && milliseconds.is_multiple_of(size) && !few {
            return format!("{}{unit}", milliseconds / size);
        }
    }
    format!("{milliseconds}ms")
}

/// `100/s`, `10/m`, `5/h`.
pub(super) fn rate(text: &str) -> Result<Rate, Problem> {
    let wrong = || Problem::Word {
        found: text.to_owned(),
        what: "rate",
        write: "a whole number from 1 to 1000000 and `/s`, `/m` or `/h`, such as `100/s`"
            .to_owned(),
    };
    let (number, unit) = text.split_once('/').ok_or_else(wrong)?;
    let unit = match unit {
        "s" => RateUnit::Second,
        "m" => RateUnit::Minute,
        "h" => RateUnit::Hour,
        _ => return Err(wrong()),
    };
    match number.parse::<u32>() {
        Ok(connections) if (1..=1_000_000).contains(&connections) && !number.starts_with('+') => {
            Ok(Rate { connections, unit })
        }
        _ => Err(wrong()),
    }
}

/// Our word for what others call otherwise.
pub(super) fn balance(text: &str) -> Result<Balance, Problem> {
    if let Ok(balance) = text.parse() {
        return Ok(balance);
    }
    let write = |word: &str| {
        let write = format!("`{word}`");
        Err(Problem::Word { found: text.to_owned(), what: "balance", write })
    };
    match plain(text).as_str() {
        "least-connections" | "leastconnections" | "leastconn" | "least-conn"
        | "least-requests" | "least-request" | "least-time" => write("least-connections"),
        "round-robin" | "roundrobin" | "rr" | "static-rr" => write("round-robin"),
        "hash:peer-ip" | "ip-hash" | "iphash" | "source" | "sourcehash" | "source-ip"
        | "remote-addr" | "hash-peer-ip" | "hash:ip" | "hash:source" => write("hash:peer-ip"),
        "sticky" | "sticky-cookie" | "cookie" | "session" | "ip-cookie" | "sticky:" => {
            write("sticky:NAME")
        }
        "hash:cookie" | "hash:cookie:" | "hdr-cookie" => write("hash:cookie:NAME"),
        "hash:header" | "hash:header:" | "hdr" | "hash-header" => write("hash:header:NAME"),
        "hash:query" | "hash:query:" | "url-param" | "hash:param" => write("hash:query:NAME"),
        "hash:tls" | "hash:server-name" | "ssl-fc-sni" | "hash:servername" => write("hash:sni"),
        "hash:context" | "hash:label" => write("hash:peer-context"),
        "hash:hostname" | "hash:domain" => write("hash:host"),
        other => match near(other, BALANCES.into_iter()) {
            Some(word) => write(word),
            None => Err(Problem::Word {
                found: text.to_owned(),
                what: "balance",
                write: format!(
                    "`{}`, `hash:query:NAME`, `hash:header:NAME`, `hash:cookie:NAME` or `sticky:NAME`",
                    BALANCES.join("`, `")
                ),
            }),
        },
    }
}

/// Balances whose words are whole.
const BALANCES: [&str; 6] = [
    "least-connections",
    "round-robin",
    "hash:peer-ip",
    "hash:peer-context",
    "hash:sni",
    "hash:host",
];

/// A name of a field or a cookie (RFC 9110 5.6.2, RFC 6265 4.1.1).
pub(super) fn token(text: &str) -> Result<(), Problem> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if !text.is_empty() && text.bytes().all(good) {
        return Ok(());
    }
    let write = "letters, digits, `-` and `_`, such as `x-tenant`".to_owned();
    Err(Problem::Word { found: text.to_owned(), what: "name of a header or a cookie", write })
}

/// A protocol that TLS clients offer (RFC 7301 3.1).
pub(super) fn protocol(text: &str) -> Result<(), Problem> {
    if (1..=255).contains(&text.len()) {
        return Ok(());
    }
    let write = "its name of 1 to 255 bytes, such as `h2` or `http/1.1`".to_owned();
    Err(Problem::Word { found: text.to_owned(), what: "protocol", write })
}

/// Where a route can redirect to.
pub(super) fn redirect(text: &str) -> Result<(), Problem> {
    if text == "https" {
        return Ok(());
    }
    let write = "`https`; other answers are the workers'".to_owned();
    Err(Problem::Word { found: text.to_owned(), what: "redirection", write })
}

/// What `otherwise` can be: what every connection has a key for.
pub(super) fn otherwise(text: &str) -> Result<Otherwise, Problem> {
    match balance(text) {
        Ok(Balance::LeastConnections) => Ok(Otherwise::LeastConnections),
        Ok(Balance::RoundRobin) => Ok(Otherwise::RoundRobin),
        Ok(Balance::HashPeerIp) => Ok(Otherwise::HashPeerIp),
        _ => Err(Problem::Word {
            found: text.to_owned(),
            what: "balance for connections without a key",
            write: "`least-connections`, `round-robin` or `hash:peer-ip`".to_owned(),
        }),
    }
}

/// The word for connections without a key.
pub(super) const fn show_otherwise(otherwise: Otherwise) -> &'static str {
    match otherwise {
        Otherwise::LeastConnections => "least-connections",
        Otherwise::RoundRobin => "round-robin",
        Otherwise::HashPeerIp => "hash:peer-ip",
    }
}

/// A name of a listener, pool or route. No dot: `sticky` finds a worker's name after the last one.
pub(super) fn name(text: &str) -> Result<(), Problem> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if first && text.len() <= NAME && text.bytes().all(good) {
        return Ok(());
    }
    let write = format!(
        "1 to {NAME} letters, digits, `-` and `_` (ASCII), the first one a letter or a digit"
    );
    Err(Problem::Word { found: text.to_owned(), what: "name", write })
}

/// A user or group: a name as `useradd` takes it, or a number in digits.
pub(super) fn account(text: &str) -> Result<Account, Problem> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty() {
        return match text.parse() {
            Ok(number) if number != u32::MAX => Ok(Account::Number(number)),
            _ => Err(Problem::Range {
                found: text.to_owned(),
                least: "0".to_owned(),
                most: (u32::MAX - 1).to_string(),
            }),
        };
    }
    let good = |c: char| !c.is_control() && !c.is_whitespace() && c != ':' && c != '/';
    if !text.is_empty() && text.chars().all(good) {
        return Ok(Account::Name(text.to_owned()));
    }
    let write = "one of the user database, or its number".to_owned();
    Err(Problem::Word { found: text.to_owned(), what: "name of a user or group", write })
}

/// `022` or `0022`, in octal.
pub(super) fn umask(text: &str) -> Result<u32, Problem> {
    let digits = (3..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    match u32::from_str_radix(text, 8) {
        Ok(mask) if digits && mask <= 0o777 => Ok(mask),
        _ => Err(no_umask(text)),
    }
}

pub(super) fn no_umask(text: &str) -> Problem {
    let write = "three octal digits as a text, such as `\"027\"`".to_owned();
    Problem::Word { found: text.to_owned(), what: "umask", write }
}

const SIGNALS: [(&str, Signal); 7] = [
    ("SIGTERM", Signal::TERM),
    ("SIGINT", Signal::INT),
    ("SIGQUIT", Signal::QUIT),
    ("SIGHUP", Signal::HUP),
    ("SIGUSR1", Signal::USR1),
    ("SIGUSR2", Signal::USR2),
    ("SIGWINCH", Signal::WINCH),
];

/// A signal that asks a program to end. SIGKILL comes by itself.
pub(super) fn signal(text: &str) -> Result<Signal, Problem> {
    if let Some((_, signal)) = SIGNALS.iter().find(|(name, _)| *name == text) {
        return Ok(*signal);
    }
    let upper = text.to_ascii_uppercase();
    let meant = SIGNALS.iter().find(|(name, _)| {
        *name == upper || name.strip_prefix("SIG").is_some_and(|short| short == upper)
    });
    let write = match meant {
        Some((name, _)) => format!("`{name}`"),
        None => "`SIGTERM`, `SIGINT`, `SIGQUIT`, `SIGHUP`, `SIGUSR1`, `SIGUSR2` or `SIGWINCH`"
            .to_owned(),
    };
    Err(Problem::Word { found: text.to_owned(), what: "signal to stop with", write })
}

/// The name of a signal.
pub(super) fn show_signal(signal: Signal) -> &'static str {
    SIGNALS.iter().find(|(_, known)| *known == signal).map_or("SIGTERM", |(name, _)| name)
}

/// A status from 400 to 599.
pub(super) fn status(number: i64) -> Result<Refusal, Problem> {
    match u16::try_from(number) {
        Ok(status) if (400..=599).contains(&status) => Ok(Refusal::Status(status)),
        _ => Err(no_refusal(&number.to_string())),
    }
}

/// `reset` or `close`.
pub(super) fn refusal(text: &str) -> Result<Refusal, Problem> {
    match text {
        "reset" => Ok(Refusal::Reset),
        "close" => Ok(Refusal::Close),
        _ => Err(no_refusal(text)),
    }
}

fn no_refusal(text: &str) -> Problem {
    let write = "a status from 400 to 599, `\"reset\"` or `\"close\"`".to_owned();
    Problem::Word { found: text.to_owned(), what: "way to reject", write }
}

#[cfg(test)]
mod tests {
    use super::super::types::Address;
    use super::*;
    use proptest::prelude::*;

    fn any() -> RangeInclusive<Duration> {
        Duration::ZERO..=Duration::from_secs(86_400)
    }

    fn said<T: std::fmt::Debug>(result: Result<T, Problem>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn durations_need_a_unit_and_no_fraction() {
        for (text, milliseconds) in
            [("0ms", 0), ("250ms", 250), ("5s", 5_000), ("2m", 120_000), ("24h", 86_400_000)]
        {
            assert_eq!(duration(text, &any()), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "s", "-5s", "1.5s", "5 s", "5S", "1m30s", "٥s", "5min"] {
            assert!(said(duration(text, &any())).contains("is no duration"), "{text}");
        }
        for text in ["25h", "99999999999999999999s", "18446744073709551615h"] {
            let expected = format!("`{text}` is out of range: write 0ms to 24h");
            assert_eq!(said(duration(text, &any())), expected);
        }
        assert_eq!(said(duration("5", &any())), "`5` has no unit: write `\"5s\"` or `\"5ms\"`");
    }

    #[test]
    fn addresses_are_what_the_interface_says() {
        let inet = |text: &str| Ok(Address::Inet(text.parse().unwrap()));
        assert_eq!(address("127.0.0.1:80"), inet("127.0.0.1:80"));
        assert_eq!(address("[::]:80"), inet("[::]:80"));
        assert_eq!(address("*:80"), Ok(Address::Both(80)));
        assert_eq!(address("fd:web"), Ok(Address::Inherited("web".to_owned())));
        assert_eq!(address("unix:/run/x"), Ok(Address::Path("/run/x".into())));
        assert_eq!(address("unix:x:80"), Ok(Address::Path("x:80".into())));
        assert_eq!(address("unix:@app"), Ok(Address::Name("app".to_owned())));
        assert_eq!(address("unix:a\0b"), Err(Problem::Zero));
        let long = format!("unix:@{}", "x".repeat(108));
        assert_eq!(address(&long), Err(Problem::LongSocket(108)));
        for (text, write) in [
            ("80", "`*:80`, or `127.0.0.1:80` for this machine only"),
            (":80", "`*:80`"),
            ("localhost:80", "`127.0.0.1:80` or `[::1]:80`: a name is no address"),
            ("::1:80", "`[::1]:80`"),
            ("10.0.0.1", "its port too, such as `10.0.0.1:80`"),
            ("::", "its port too, such as `[::]:80`"),
            ("*:http", "a port from 0 to 65535, such as `*:80`"),
            ("fd:a b", "`fd:NAME`, with the name of the socket unit's `FileDescriptorName=`"),
        ] {
            assert_eq!(said(address(text)), format!("`{text}` is no address: write {write}"));
        }
    }

    #[test]
    fn networks_are_networks_or_single_addresses() {
        for (text, meant) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("fd00::1", "fd00::1/128"),
            ("::ffff:10.1.2.3", "10.1.2.3/32"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ] {
            assert_eq!(network(text).map(|network| network.to_string()), Ok(meant.to_owned()));
        }
        for text in ["10.0.0.0/33", "10.0.0/8", "localhost", "10.0.0.0-10.0.0.9", "*", ""] {
            assert!(said(network(text)).contains("is no network"), "{text}");
        }
    }

    #[test]
    fn what_is_near_a_word_is_answered_with_it() {
        assert_eq!(
            said(balance("leastconn")),
            "`leastconn` is no balance: write `least-connections`"
        );
        assert_eq!(said(balance("ip_hash")), "`ip_hash` is no balance: write `hash:peer-ip`");
        assert_eq!(
            said(balance("round-robbin")),
            "`round-robbin` is no balance: write `round-robin`"
        );
        assert_eq!(balance("sticky:app"), Ok(Balance::Sticky("app".to_owned())));
        assert_eq!(said(balance("sticky")), "`sticky` is no balance: write `sticky:NAME`");
        assert_eq!(
            said(balance("url_param")),
            "`url_param` is no balance: write `hash:query:NAME`"
        );
        assert!(said(balance("sticky:a b")).contains("is no balance"));
        assert!(said(otherwise("hash:host")).contains("without a key"));
        assert_eq!(said(signal("term")), "`term` is no signal to stop with: write `SIGTERM`");
        assert!(said(signal("SIGKILL")).contains("`SIGWINCH`"));
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_again(milliseconds in 0..86_400_000u64, status in 400..600i64) {
            let whole = Duration::from_millis(milliseconds);
            prop_assert_eq!(duration(&show_duration(whole), &any()), Ok(whole));
            prop_assert_eq!(super::status(status), Ok(Refusal::Status(status as u16)));
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in "\\PC*|[0-9a-z:./*\\[\\]]{0,24}") {
            let _ = (duration(&text, &any()), address(&text), network(&text), peer(&text));
            let _ = (balance(&text), name(&text), account(&text), umask(&text), signal(&text));
        }
    }
}

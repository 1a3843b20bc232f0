//! A TLS hello: whatever bytes come first on a connection, the parser and rustls read the same name
//! and the same protocols, the answer is final, and what it says to be missing is.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use rustls::server::Acceptor;
use vestibule_fuzz::{prefixes, within};
use vestibule_router::inspect::client_hello::{Encrypted, parse};
use vestibule_router::inspect::facts::{Cause, ClientHello, Fact};
use vestibule_router::inspect::parsed::Parsed;

const MOST: usize = 16 * 1024;

fuzz_target!(|bytes: &[u8]| {
    let bytes = &bytes[..bytes.len().min(MOST)];
    // The message put together, the kinds of its extensions, and what is kept of it.
    let bound = 4 * bytes.len() + 16 * 1024;
    let outer = within(bound, || parse(bytes, MOST, Encrypted::Outer));
    let hidden = parse(bytes, MOST, Encrypted::Hidden);
    match (&outer, &hidden) {
        (Parsed::Done(_), Parsed::Done(hidden))
            if hidden.server_name == Fact::Unknown(Cause::Hidden) =>
        {
            assert_eq!(hidden.alpn, Fact::Unknown(Cause::Hidden));
        }
        _ => assert_eq!(outer, hidden),
    }
    agrees_with_rustls(bytes, &outer);
    is_final(bytes, &outer);
});

/// An answer about a beginning is the answer about the whole.
fn is_final(bytes: &[u8], whole: &Parsed<ClientHello>) {
    for length in prefixes(bytes.len()) {
        match parse(&bytes[..length], MOST, Encrypted::Outer) {
            Parsed::More(missing) => {
                assert!(missing > 0);
                if length + missing > bytes.len() {
                    assert!(!matches!(whole, Parsed::Done(_)), "{length} + {missing}");
                }
            }
            told => assert_eq!(&told, whole, "{length}"),
        }
    }
}

/// What rustls takes for a hello says there what it says here.
fn agrees_with_rustls(bytes: &[u8], ours: &Parsed<ClientHello>) {
    let mut acceptor = Acceptor::default();
    let mut input = Cursor::new(bytes);
    while (input.position() as usize) < bytes.len() {
        if acceptor.read_tls(&mut input).is_err() {
            return;
        }
        match acceptor.accept() {
            Ok(None) => {}
            Err(_) => return,
            Ok(Some(accepted)) => {
                let theirs = accepted.client_hello();
                let Parsed::Done(ours) = ours else {
                    // It takes a session's id of any length, and an odd list of suites.
                    assert!(matches!(ours, Parsed::Not(_)), "{ours:?}");
                    return;
                };
                match (theirs.server_name(), &ours.server_name) {
                    (Some(theirs), Fact::Known(ours)) => {
                        let theirs = theirs.strip_suffix('.').unwrap_or(theirs);
                        assert!(theirs.eq_ignore_ascii_case(ours), "{theirs} {ours}");
                    }
                    // An address is no name to rustls, and here it has to be told apart by rules.
                    (None, Fact::Known(ours)) => {
                        assert!(ours.parse::<std::net::IpAddr>().is_ok(), "{ours}");
                    }
                    (None, Fact::Absent) | (_, Fact::Unknown(_)) => {}
                    (theirs, ours) => panic!("{theirs:?} {ours:?}"),
                }
                let theirs =
                    theirs.alpn().map(|all| all.map(Box::from).collect::<Vec<Box<[u8]>>>());
                assert_eq!(Fact::from(theirs), ours.alpn);
                return;
            }
        }
    }
}

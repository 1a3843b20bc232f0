//! Every word that `balance` takes, through the program itself with four workers: what has one key comes
//! to one worker, whatever else it says, and what has none to whom `otherwise` chooses.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeSet;
use std::net::IpAddr;

use vestibule_tests::balancing::{Hall, Says, Visitor, WORDS, WORKERS, Word, rendezvous_order};
use vestibule_tests::world::{turn, until};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

/// So many keys lead to each of the workers, whatever the word.
const KEYS: usize = 16;

/// Clients of each key, which share nothing else.
const EACH: usize = 4;

#[test]
fn one_key_is_one_workers_whatever_else_a_client_says() {
    let _turn = turn();
    for word in WORDS {
        let hall = Hall::new(WORKER, "", &format!("balance = \"{}\"\n", word.balance));
        let mut all = BTreeSet::new();
        for key in 0..KEYS {
            let expected = &word.order(key)[0];
            for number in 0..EACH {
                let visitor = word.visitor(key, number);
                let (_, worker) = hall.visit(&visitor);
                assert_eq!(worker, *expected, "{}: {visitor:?}", word.balance);
            }
            all.insert(expected.clone());
        }
        assert_eq!(all.len(), WORKERS, "{}: {all:?}", word.balance);
        hall.stop();
    }
}

#[test]
fn the_address_of_who_is_behind_a_proxy_counts_and_of_ipv6_its_network() {
    let _turn = turn();
    let proxy = "proxy-protocol = \"127.0.8.0/24\"\n";
    let hall = Hall::new(WORKER, proxy, "balance = \"hash:peer-ip\"\n");
    let mut all = BTreeSet::new();
    for network in 0..KEYS {
        let key = [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, u8::try_from(network).unwrap()];
        let expected = &rendezvous_order(&key, WORKERS)[0];
        for number in 0..EACH {
            let named = format!("2001:db8:0:{network:x}:{number}::{number}").parse().unwrap();
            let visitor = Visitor { named: Some(named), ..Visitor::any(number) };
            assert_eq!(hall.visit(&visitor).1, *expected, "{named}");
        }
        all.insert(expected.clone());
        let named: IpAddr = format!("192.0.2.{network}").parse().unwrap();
        let visitor = Visitor { named: Some(named), ..Visitor::any(network) };
        let expected = &rendezvous_order(&[192, 0, 2, key[7]], WORKERS)[0];
        assert_eq!(hall.visit(&visitor).1, *expected, "{named}");
    }
    assert_eq!(all.len(), WORKERS, "{all:?}");
    hall.stop();
}

/// Clients without the key of a word, of all kinds: it is absent, hidden or not valid.
fn keyless(word: &Word) -> Vec<Visitor> {
    let any = Visitor::any;
    let tls = |number, name: Option<&str>| Visitor {
        says: Says::Tls(name.map(str::to_owned)),
        ..any(number)
    };
    let other = |number, bytes| Visitor { says: Says::Else(bytes), ..any(number) };
    let http2 = other(20, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    let nothing = other(21, b"\x01 / \r\n\r\n");
    let mut without = any(22);
    (without.user, without.host, without.tenant, without.cookies) = Default::default();
    let hidden = [tls(23, Some("any.example")), tls(24, None), http2, nothing, without];
    // Behind more than is looked at.
    let mut late = any(25);
    late.path = format!("/{}", "x".repeat(1024));
    let cookie = |number, cookie: &str| Visitor { cookies: vec![cookie.to_owned()], ..any(number) };
    let mut visitors = match word.balance {
        "hash:sni" => {
            return vec![any(26), hidden[1].clone(), hidden[2].clone(), hidden[3].clone()];
        }
        "hash:host" => {
            let two = vec!["one.example".to_owned(), "two.example".to_owned()];
            vec![late, Visitor { host: two, ..any(27) }]
        }
        "hash:query:user" => vec![late],
        "hash:header:x-tenant" => vec![late],
        "hash:cookie:id" => vec![late, cookie(28, "ID=1"), cookie(29, "idx=1")],
        "sticky:id" => vec![
            late,
            cookie(30, "id=app-2"),
            cookie(31, "id=any."),
            cookie(32, "id=any.app-5"),
            cookie(33, "id=any.other-1"),
            cookie(34, "id=app-2.any"),
        ],
        other => panic!("{other} has a key always"),
    };
    visitors.extend(hidden);
    visitors
}

/// These clients, one after the other and again from the first, are chosen for by this word.
fn assert_chosen(hall: &Hall, choice: &str, visitors: &[Visitor]) {
    let mut clients = visitors.iter().cycle();
    let mut visit = || {
        let visitor = clients.next().unwrap();
        let (client, worker) = hall.visit(visitor);
        (client, worker, visitor)
    };
    hall.until_empty();
    match choice {
        "hash:peer-ip" => {
            for (number, visitor) in visitors.iter().cycle().take(KEYS).enumerate() {
                let visitor = &Visitor { from: Visitor::any(number).from, ..visitor.clone() };
                let IpAddr::V4(address) = visitor.address() else { panic!("{visitor:?}") };
                let expected = &rendezvous_order(&address.octets(), WORKERS)[0];
                assert_eq!(hall.visit(visitor).1, *expected, "{visitor:?}");
            }
        }
        "round-robin" | "least-connections" => {
            let mut held: Vec<_> = (0..WORKERS).map(|_| visit()).collect();
            let all: BTreeSet<_> = held.iter().map(|(_, worker, _)| worker.clone()).collect();
            assert_eq!(all.len(), WORKERS, "each once: {held:?}");
            // The third one has the least now; the first one's turn is next.
            let (client, least, _) = held.remove(2);
            drop(client);
            hall.until("it has none", &least, |worker| worker["connections"] == 0);
            let turns = [&held[0].1, &held[1].1, &least, &held[2].1];
            let expected = if choice == "round-robin" {
                turns
            } else {
                [&least, turns[0], turns[1], turns[3]]
            };
            let next: Vec<_> = expected.map(|worker| (worker, visit())).into();
            for (expected, (_, worker, visitor)) in &next {
                assert_eq!(worker, *expected, "{choice}: {visitor:?}");
            }
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_balance_without_a_key_chooses_by_turn_or_by_load() {
    let _turn = turn();
    let visitors: Vec<Visitor> = (0..7).map(Visitor::any).collect();
    for balance in ["least-connections", "round-robin"] {
        let hall = Hall::new(WORKER, "", &format!("balance = \"{balance}\"\n"));
        assert_chosen(&hall, balance, &visitors);
        hall.stop();
    }
}

const OTHERWISE: [&str; 3] = ["round-robin", "hash:peer-ip", "least-connections"];

/// A pool with this balance, and each `otherwise` one after the other, in place.
fn assert_otherwise(listener: &str, balance: &str, visitors: &[Visitor]) {
    let pool = |otherwise| format!("balance = \"{balance}\"\notherwise = \"{otherwise}\"\n");
    let hall = Hall::new(WORKER, listener, &pool(OTHERWISE[0]));
    for otherwise in OTHERWISE {
        hall.reload(WORKER, listener, &pool(otherwise));
        assert_chosen(&hall, otherwise, visitors);
    }
    // What is left out is what the contract says.
    hall.reload(WORKER, listener, &format!("balance = \"{balance}\"\n"));
    assert_chosen(&hall, "least-connections", visitors);
    hall.stop();
}

#[test]
fn who_has_no_key_goes_to_whom_otherwise_chooses() {
    let _turn = turn();
    for word in WORDS.iter().filter(|word| word.balance != "hash:peer-ip") {
        assert_otherwise("", word.balance, &keyless(word));
    }
}

/// No client on loopback has a context; that of a client behind a proxy nobody knows.
#[test]
fn who_has_no_security_context_goes_to_whom_otherwise_chooses() {
    let _turn = turn();
    let mut visitors: Vec<Visitor> = (0..5).map(Visitor::any).collect();
    visitors[1].says = Says::Tls(None);
    assert_otherwise("", "hash:peer-context", &visitors);
    for (number, visitor) in visitors.iter_mut().enumerate() {
        visitor.named = Some(format!("192.0.2.{number}").parse().unwrap());
    }
    let proxies = "proxy-protocol = \"127.0.8.0/24\"\n";
    assert_otherwise(proxies, "hash:peer-context", &visitors);
}

/// Who shows nothing in time is handed over, and says the rest to its worker.
#[test]
fn who_shows_no_key_in_time_goes_to_whom_otherwise_chooses() {
    let _turn = turn();
    let router = "inspect-timeout = \"20ms\"\n";
    let pool = "balance = \"hash:header:x-tenant\"\notherwise = \"hash:peer-ip\"\n";
    let hall = Hall::with(WORKER, router, "", pool);
    for number in 0..KEYS {
        let visitor = Visitor::any(number);
        let expected = &rendezvous_order(&visitor.from.octets(), WORKERS)[0];
        let (_, before) = hall.master.accepted_and_acknowledged();
        let half = Visitor { says: Says::Else(b"GET / HTTP/1.1\r\nhost: a\r\n"), ..visitor };
        let mut client = hall.come(&half);
        until("it is handed over", || hall.master.accepted_and_acknowledged().1 == before + 1);
        // Too late.
        client.send(b"x-tenant: key\r\n\r\n");
        assert_eq!(client.answer().field("worker"), *expected, "{:?}", half.from);
    }
    hall.stop();
}

//! Pools of four workers with some balance, and clients that have its key.

use std::hash::Hasher;
use std::net::{IpAddr, Ipv4Addr};

use serde_json::Value;
use siphasher::sip::SipHasher24;

use crate::client::Client;
use crate::half::client_hello;
use crate::master::Master;
use crate::place::Place;
use crate::world::until;

/// How many workers the pool has: `app-1` to `app-4`.
pub const WORKERS: usize = 4;

/// The documented order of workers for a key: rendezvous hashing by SipHash-2-4 with key zero over the
/// key, a zero byte and the worker's name; the highest comes first.
pub fn rendezvous_order(key: &[u8], workers: usize) -> Vec<String> {
    let mut scored: Vec<(u64, String)> = (1..=workers)
        .map(|number| format!("app-{number}"))
        .map(|name| {
            let mut hasher = SipHasher24::new_with_keys(0, 0);
            hasher.write(key);
            hasher.write(&[0]);
            hasher.write(name.as_bytes());
            (hasher.finish(), name)
        })
        .collect();
    scored.sort_by(|one, two| two.cmp(one));
    scored.into_iter().map(|(_, name)| name).collect()
}

/// A client, by all that a balance can look at.
#[derive(Clone, Debug)]
pub struct Visitor {
    /// Where it connects from.
    pub from: Ipv4Addr,
    /// Whom a PROXY header names as the client, where it is a proxy that connects.
    pub named: Option<IpAddr>,
    /// What it speaks.
    pub says: Says,
    /// Path and, behind it, a parameter `user` of its request, as it is written.
    pub path: String,
    /// That parameter.
    pub user: Option<String>,
    /// Values of `Host` lines.
    pub host: Vec<String>,
    /// Values of `X-Tenant` lines.
    pub tenant: Vec<String>,
    /// Its cookies, as they are written.
    pub cookies: Vec<String>,
}

/// What a client speaks.
#[derive(Clone, Debug)]
pub enum Says {
    /// HTTP/1.
    Http,
    /// TLS, with a name or without one.
    Tls(Option<String>),
    /// Something else, which a worker of the tests answers nevertheless.
    Else(&'static [u8]),
}

impl Visitor {
    /// A client of HTTP/1 that shares nothing with one of another number.
    pub fn any(number: usize) -> Self {
        Self {
            from: Ipv4Addr::new(127, 0, 8, u8::try_from(number + 1).unwrap()),
            named: None,
            says: Says::Http,
            path: format!("/path-{number}"),
            user: Some(format!("any-{number}")),
            host: vec![format!("any-{number}.example")],
            tenant: vec![format!("any-{number}")],
            cookies: vec![format!("id=any-{number}")],
        }
    }

    /// Its address, as it counts.
    pub fn address(&self) -> IpAddr {
        self.named.unwrap_or(self.from.into())
    }

    fn bytes(&self) -> Vec<u8> {
        let before = self.named.map_or(String::new(), |address| match address {
            IpAddr::V4(address) => format!("PROXY TCP4 {address} 192.0.2.1 7 80\r\n"),
            IpAddr::V6(address) => format!("PROXY TCP6 {address} 2001:db8::1 7 80\r\n"),
        });
        let said = match &self.says {
            // As the test's worker reads it, a request for `/`.
            Says::Tls(name) => [&client_hello(name.as_deref())[..], b" / \r\n\r\n"].concat(),
            Says::Else(bytes) => bytes.to_vec(),
            Says::Http => self.request().into_bytes(),
        };
        [before.as_bytes(), &said].concat()
    }

    fn request(&self) -> String {
        let user = self.user.as_ref().map_or(String::new(), |user| format!("?a=b&user={user}"));
        let mut head = format!("GET {}{user} HTTP/1.1\r\n", self.path);
        let lines = [("Host", &self.host), ("X-Tenant", &self.tenant)];
        for (name, values) in lines {
            values.iter().for_each(|value| head += &format!("{name}: {value}\r\n"));
        }
        if !self.cookies.is_empty() {
            head += &format!("Cookie: a=b; {}\r\n", self.cookies.join("; "));
        }
        head + "\r\n"
    }
}

/// A balance with a key.
#[derive(Clone, Copy, Debug)]
pub struct Word {
    /// As it is configured.
    pub balance: &'static str,
    /// Gives a client the key of this number. Where one can be written in several ways, the second
    /// number says in which.
    pub give: fn(&mut Visitor, usize, usize),
    /// The bytes of that key; of a cookie that names a worker, that name.
    pub key: fn(usize) -> Vec<u8>,
}

/// All of them, but for the peer's security context: no client on loopback has one.
pub const WORDS: [Word; 7] = [
    Word {
        balance: "hash:peer-ip",
        give: |visitor, key, _| visitor.from = address(key),
        key: |key| address(key).octets().into(),
    },
    Word {
        balance: "hash:sni",
        give: |visitor, key, way| {
            visitor.says = Says::Tls(Some(spelled(&format!("key-{key}.example"), way)));
        },
        key: |key| format!("key-{key}.example").into(),
    },
    Word {
        balance: "hash:host",
        give: |visitor, key, way| {
            let host = spelled(&format!("key-{key}.example"), way);
            visitor.host = vec![if way % 2 == 0 { host } else { format!("{host}.:8080") }];
        },
        key: |key| format!("key-{key}.example").into(),
    },
    Word {
        balance: "hash:query:user",
        give: |visitor, key, way| {
            let first = if way % 2 == 0 { "key+" } else { "%6Bey%20" };
            visitor.user = Some(format!("{first}{key}&user=any-{way}"));
        },
        key: |key| format!("key {key}").into(),
    },
    Word {
        balance: "hash:header:x-tenant",
        give: |visitor, key, way| {
            visitor.tenant = vec![format!("key-{key}"), format!("any-{way}")];
        },
        key: |key| format!("key-{key}").into(),
    },
    Word {
        balance: "hash:cookie:id",
        give: |visitor, key, way| {
            visitor.cookies = vec![format!("id=key-{key}"), format!("id=any-{way}")];
        },
        key: |key| format!("key-{key}").into(),
    },
    Word {
        balance: "sticky:id",
        give: |visitor, key, way| {
            visitor.cookies = vec![format!("id=any.{way}.app-{}", key % WORKERS + 1)];
        },
        key: |key| format!("app-{}", key % WORKERS + 1).into(),
    },
];

fn address(key: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 9, u8::try_from(key + 1).unwrap())
}

/// A name in small letters or in large ones.
fn spelled(name: &str, way: usize) -> String {
    if way.is_multiple_of(2) { name.to_owned() } else { name.to_ascii_uppercase() }
}

impl Word {
    /// A client with the key of this number that shares nothing else with one of another number.
    pub fn visitor(&self, key: usize, number: usize) -> Visitor {
        let mut visitor = Visitor::any(number);
        (self.give)(&mut visitor, key, number);
        visitor
    }

    /// Whom the key leads to, and who follows where that one has no room: after a cookie's, anybody.
    pub fn order(&self, key: usize) -> Vec<String> {
        let bytes = (self.key)(key);
        if self.balance.starts_with("sticky:") {
            return vec![String::from_utf8(bytes).unwrap()];
        }
        rendezvous_order(&bytes, WORKERS)
    }

    /// The first key that leads to another worker than key 0.
    pub fn other_key(&self) -> usize {
        let first = &self.order(0)[0];
        (1..).find(|key| self.order(*key)[0] != *first).unwrap()
    }
}

/// The program with a pool of four.
#[derive(Debug)]
pub struct Hall {
    /// The program.
    pub master: Master,
    /// Its folder.
    pub place: Place,
}

/// Nobody is taken for late, and a head can be too long.
const PATIENT: &str = "inspect-timeout = \"60s\"\npeek-max = \"1KiB\"\n";

impl Hall {
    /// One whose workers are this program of the tests, with these lines for its listener and its pool.
    pub fn new(worker: &str, listener: &str, pool: &str) -> Self {
        Self::with(worker, PATIENT, listener, pool)
    }

    /// As [`new`](Self::new), with lines for its router.
    pub fn with(worker: &str, router: &str, listener: &str, pool: &str) -> Self {
        let place = Place::new();
        let mut command = place.vestibule(worker);
        command.arg(place.config(&config(&place, worker, router, listener, pool)));
        let master = Master::launch(command);
        place.until("all are ready", |status| status["pools"][0]["ready"] == WORKERS);
        Self { master, place }
    }

    /// Goes on with other lines.
    pub fn reload(&self, worker: &str, listener: &str, pool: &str) {
        self.place.reload(&config(&self.place, worker, PATIENT, listener, pool));
    }

    /// A client that has said everything, and is not answered yet.
    pub fn come(&self, visitor: &Visitor) -> Client {
        let mut client = Client::connect_from(visitor.from.into(), self.master.address());
        client.send(&visitor.bytes());
        client
    }

    /// A client that was answered, and by whom. Its worker has acknowledged it, so that nobody is taken
    /// for sluggish because the router is.
    pub fn visit(&self, visitor: &Visitor) -> (Client, String) {
        let (_, before) = self.master.accepted_and_acknowledged();
        let mut client = self.come(visitor);
        let worker = client.answer().field("worker");
        until("it is acknowledged", || self.master.accepted_and_acknowledged().1 > before);
        (client, worker)
    }

    /// What the status says of a worker.
    pub fn status(&self, worker: &str) -> Value {
        worker_in(&self.place.status(), worker)
    }

    /// Waits until the status says so of a worker.
    pub fn until(&self, what: &str, worker: &str, mut state: impl FnMut(&Value) -> bool) {
        self.place.until(what, |status| state(&worker_in(status, worker)));
    }

    /// Waits until so many clients wait.
    pub fn until_queued(&self, count: usize) {
        self.place.until("so many wait", |status| status["pools"][0]["queued"] == count);
    }

    /// Waits until no worker has a connection.
    pub fn until_empty(&self) {
        self.place.until("no worker has a connection", |status| {
            let workers = status["pools"][0]["workers"].as_array().unwrap();
            workers.iter().all(|worker| worker["connections"] == 0)
        });
    }

    /// While this is so, a process of the worker that starts does not become ready.
    pub fn keep_from_starting(&self, worker: &str, keep: bool) {
        let file = format!("closed-{worker}");
        match keep {
            true => drop(self.place.write(&file, "")),
            false => std::fs::remove_file(self.place.join(&file)).unwrap(),
        }
    }

    /// Ends it.
    pub fn stop(self) {
        self.master.stop();
    }
}

fn worker_in(status: &Value, name: &str) -> Value {
    let workers = status["pools"][0]["workers"].as_array().unwrap();
    let found = workers.iter().find(|worker| worker["name"] == name);
    found.unwrap_or_else(|| panic!("no {name}: {status}")).clone()
}

fn config(place: &Place, worker: &str, router: &str, listener: &str, pool: &str) -> String {
    let user = if rustix::process::geteuid().is_root() { "user = \"root\"\n" } else { "" };
    let closed = place.join("closed-");
    // Becomes the worker, at once unless the case wants it to wait.
    let script = format!(
        "while test -e {}$VESTIBULE_WORKER; do sleep 0.02; done; exec {worker} recv",
        closed.display()
    );
    format!(
        "[router]\n{router}[[listener]]\nname = \"web\"\naddress = \"127.0.0.1:0\"\n{listener}\
         [[pool]]\nname = \"app\"\ncommand = [\"/bin/sh\", \"-c\", \"{script}\"]\n\
         workers = {WORKERS}\n{user}{pool}"
    )
}

//! The program with a routing script.

use std::net::IpAddr;

use crate::master::Master;
use crate::place::Place;
use crate::{Client, Response};

/// Where the examples are.
pub const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/scripts");

/// A run of a configuration in a folder of its own, on a free port.
pub struct Run {
    /// The program.
    pub master: Master,
    /// Its folder.
    pub place: Place,
}

impl Run {
    /// One of `examples/scripts`.
    pub fn example(worker: &str, name: &str) -> Self {
        let read = |file: &str| std::fs::read_to_string(format!("{EXAMPLES}/{name}/{file}"));
        Self::of(worker, &read("vestibule.toml").unwrap(), &read("route.js").unwrap())
    }

    /// This configuration with this script, and a worker of the tests.
    pub fn of(worker: &str, config: &str, script: &str) -> Self {
        let place = Place::new();
        place.write("route.js", script);
        let mut command = place.vestibule(worker);
        command.arg(place.config(&config.replace("127.0.0.1:8080", "127.0.0.1:0")));
        Self { master: Master::launch(command), place }
    }

    /// Writes another script, which a reload reads.
    pub fn rewrite(&self, script: &str) {
        self.place.write("route.js", script);
    }

    /// A client of this address.
    pub fn client(&self, from: &str) -> Client {
        Client::connect_from(from.parse::<IpAddr>().unwrap(), self.master.address())
    }

    /// What such a client is answered.
    pub fn get(&self, from: &str) -> Response {
        self.client(from).get("/")
    }

    /// The worker that answers a client of this address.
    pub fn worker(&self, from: &str) -> String {
        field(&self.get(from), "worker")
    }

    /// Ends the program, which has to end well.
    pub fn stop(self) {
        self.master.stop();
    }
}

/// What a worker's answer says of this.
pub fn field(response: &Response, name: &str) -> String {
    let text = response.text();
    let found = text.split("; ").find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
    found.unwrap_or_else(|| panic!("no {name} in {text:?}")).trim().to_owned()
}

/// A pool behind a script.
pub const ONE_POOL: &str = r#"
[router]
script = "route.js"
[[listener]]
name = "web"
address = "127.0.0.1:8080"
[[pool]]
name = "app"
command = "demo"
workers = 2
"#;

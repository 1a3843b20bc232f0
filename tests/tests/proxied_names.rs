//! Behind a proxy that has ended TLS and says the name that its client asked for: rules by that name
//! hold for every request of the connection, also after a worker has handed it back.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use vestibule_tests::Client;
use vestibule_tests::master::Master;
use vestibule_tests::place::Place;
use vestibule_tests::world::turn;

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

fn hall() -> (Master, Place) {
    let user = if rustix::process::geteuid().is_root() { "user = \"root\"\n" } else { "" };
    let pool = |name: &str| {
        format!(
            "[[pool]]\nname = \"{name}\"\ncommand = [\"{WORKER}\", \"serve\"]\nworkers = 1\n{user}"
        )
    };
    let place = Place::new();
    let file = place.config(&format!(
        "[[listener]]\nname = \"web\"\naddress = \"127.0.0.1:0\"\nproxy-protocol = \"127.0.0.1\"\n\
         {}{}{}\
         [[route]]\nsni = \"secret.example\"\npath = \"/admin\"\nreject = 403\n\
         [[route]]\nsni = \"api.example\"\npath = \"/api/*\"\npool = \"api\"\n\
         [[route]]\nsni = \"*\"\npath = \"/api/*\"\npool = \"other\"\n\
         [[route]]\npool = \"home\"\n",
        pool("home"),
        pool("api"),
        pool("other"),
    ));
    let mut command = place.vestibule(WORKER);
    command.arg(file);
    (Master::launch(command), place)
}

/// A client whose proxy says this name, the protocol http/1.1 and an id.
fn client(master: &Master, name: &str) -> Client {
    let field = |kind: u8, value: &[u8]| {
        [&[kind, 0, u8::try_from(value.len()).unwrap()][..], value].concat()
    };
    let fields = [field(2, name.as_bytes()), field(1, b"http/1.1"), field(5, b"id-1")].concat();
    let length = u16::try_from(12 + fields.len()).unwrap().to_be_bytes();
    let addresses = [10, 1, 2, 3, 10, 0, 0, 1, 0x12, 0x34, 0, 80];
    let signature = b"\r\n\r\n\0\r\nQUIT\n";
    let mut client = Client::connect(master.address());
    client.send(&[&signature[..], &[0x21, 0x11], &length, &addresses, &fields].concat());
    client
}

#[test]
fn a_name_that_a_proxy_says_holds_for_later_requests_too() {
    let _turn = turn();
    let (master, _place) = hall();
    let mut api = client(&master, "api.example");
    for (path, worker) in
        [("/", "home-1"), ("/api/x", "api-1"), ("/", "home-1"), ("/admin", "home-1")]
    {
        assert_eq!(api.get(path).field("worker"), worker, "{path}");
    }
    let mut other = client(&master, "Other.Example.");
    for (path, worker) in [("/api/x", "other-1"), ("/", "home-1"), ("/api/x", "other-1")] {
        assert_eq!(other.get(path).field("worker"), worker, "{path}");
    }
    // Nobody slips past a rejection by asking for something else first, however often.
    for before in [&[][..], &["/"], &["/", "/api/x"], &["/api/x", "/", "/"]] {
        let mut secret = client(&master, "secret.example");
        for path in before {
            assert_eq!(secret.get(path).status, 200, "{path}");
        }
        let answer = secret.get("/admin");
        assert_eq!((answer.status, answer.header("vestibule-reason")), (403, Some("rejected")));
    }
    master.stop();
}

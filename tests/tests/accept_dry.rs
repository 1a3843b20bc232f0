//! A listener's last connections while its process may open nothing. Alone in its process: the limit is
//! everybody's.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::pin::pin;
use std::task::Poll;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vestibule_router::accept_dry;
use vestibule_tests::{Client, run, worker};

const CLIENTS: usize = 100;

#[test]
fn the_last_clients_of_a_listener_are_served_once_there_are_descriptors_again() {
    run(|world| {
        let pool = world.pool(1, &worker!("recv"));
        let mut listener = world.listener();
        let address = listener.local_addr().unwrap();
        let clients: Vec<_> = (0..CLIENTS).map(|_| Client::connect(address)).collect();
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..limit }).unwrap();
        world.wait("all are accepted", async {
            let mut all = pin!(accept_dry(&mut listener, &pool));
            let look = std::future::poll_fn(|context| Poll::Ready(all.as_mut().poll(context)));
            let looked = look.await;
            setrlimit(Resource::Nofile, limit).unwrap();
            assert!(looked.is_pending(), "it has given up");
            all.await;
        });
        drop(listener);
        for mut client in clients {
            assert_eq!(client.get("/").field("worker"), "app-1");
        }
    });
}

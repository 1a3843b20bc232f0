//! Handing back what was never given, and dying of what is handed on.

use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use vestibule_protocol::ConnectionInfo;
use vestibule_protocol::connection_info::{PeerCredentials, Ticket};
use vestibule_protocol::scope::Scope;

use crate::port::{Came, Port};

/// Hands something back instead of the first connection, with that one's facts and ticket.
pub(crate) async fn hands_back(port: Port, what: &str) {
    let mut port = port.ready().await;
    let (sequence, info, connection) = port.offered().await.remove(0);
    port.acknowledge(sequence, 1);
    let forged = |change: fn(&mut ConnectionInfo)| {
        let mut info = info.clone();
        change(&mut info);
        info
    };
    let (info, descriptor): (ConnectionInfo, OwnedFd) = match what {
        "a-fresh-socket" => (info, tcp().0),
        "a-listening-socket" => (info, TcpListener::bind("127.0.0.1:0").unwrap().into()),
        "a-unix-socket" => (info, UnixStream::pair().unwrap().0.into()),
        "a-unix-listener" => {
            let path = std::env::temp_dir().join(format!("listens-{}", std::process::id()));
            let listener = UnixListener::bind(&path).unwrap();
            std::fs::remove_file(path).unwrap();
            (info, listener.into())
        }
        "a-file" => (info, std::fs::File::open("/proc/self/exe").unwrap().into()),
        "a-pipe" => (info, std::io::pipe().unwrap().0.into()),
        "its-own-port" => (info, vestibule_protocol::sys::seqpacket_pair().unwrap().0),
        "without-a-ticket" => (forged(|info| info.ticket = None), connection),
        "another-peer" => (forged(|info| info.peer = Some(([10, 0, 0, 1], 1).into())), connection),
        "another-listener" => (forged(|info| info.listener = "internal".into()), connection),
        "another-number" => (forged(|info| info.id += 1), connection),
        "fewer-hops" => (forged(|info| info.ticket = info.ticket.map(fewer_hops)), connection),
        "a-proxied-name" => {
            let tls = |info: &mut ConnectionInfo| info.proxied.get_or_insert_default().tls = true;
            (forged(tls), connection)
        }
        "what-is-not-believed" => {
            let lie = forged(|info| {
                info.peer_credentials = Some(PeerCredentials { pid: 1, uid: 0, gid: 0 });
                info.peer_context = Some("staff_u:staff_r:staff_client_t:s0".into());
                info.handed_back_by = Some(Box::new("admin-1".into()));
                info.scope = Some(std::sync::Arc::new(Scope::decode(&[]).unwrap()));
            });
            (lie, connection)
        }
        "one-too-many" => {
            // It keeps a copy, so that it could go on for ever.
            port.hand_back(1, &info, &connection);
            (info, connection)
        }
        other => panic!("nothing is called {other}"),
    };
    port.hand_back(2, &info, &descriptor);
    drop(descriptor);
    port.wait_for_the_end().await;
}

fn fewer_hops(ticket: Ticket) -> Ticket {
    let (first, second) = ticket.halves();
    Ticket::new(first, second ^ 1 << 56)
}

/// A TCP connection that no router knows.
fn tcp() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (listener.accept().unwrap().0.into(), client)
}

/// Dies before it has taken a connection of which something was read.
pub(crate) async fn dies_of_what_was_read(port: Port) {
    let mut port = port.ready().await;
    loop {
        if let Came::Message(_) = port.next().await {
            std::process::abort();
        }
    }
}

//! How a worker takes connections: the handshake, the acknowledgement before the first read, what is
//! refused and in which order, the load.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::net::SendFlags;

use crate::support::{PATIENCE, Router, Said, connection, to_end};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;
use vestibule_protocol::codec::Codec;
use vestibule_protocol::handshake::Attach;
use vestibule_protocol::message::{ItemKind, kind};
use vestibule_worker::{Data, Event, MessageError, RefusalReason, Transferred, WorkerScope};

const DRAIN: Duration = Duration::from_secs(60);

fn acknowledged(up_to: u64, open: u32) -> Said {
    Said::Acknowledged { up_to, open }
}

/// The next event of a scope that another task waits for meanwhile.
async fn event(scope: &WorkerScope) -> Event {
    tokio::time::timeout(PATIENCE, scope.recv()).await.expect("no event").expect("no more events")
}

#[tokio::test]
async fn hello_goes_out_when_the_program_is_ready_and_not_before() {
    let (mut router, scope) = Router::and_worker();
    router.attach(Attach::default());
    assert!(router.hears_nothing());
    let program = tokio::spawn(async move { scope.recv().await });
    let Said::Hello(hello) = router.hears().await else { panic!("no Hello") };
    assert!(hello.ready);
    assert_eq!((hello.open, hello.received, hello.batch), (0, 0, 64));
    program.abort();
}

#[tokio::test]
async fn a_program_that_is_ready_first_says_hello_when_a_router_comes() {
    let (mut router, scope) = Router::and_worker();
    let program = tokio::spawn(async move { scope.recv().await });
    tokio::task::yield_now().await;
    assert!(router.attached(DRAIN).await.ready);
    program.abort();
}

#[tokio::test]
async fn a_batch_is_acknowledged_once_and_before_any_byte_is_read() {
    let (mut router, scope) = Router::and_worker();
    let mut clients = Vec::new();
    let mut servers = Vec::new();
    for _ in 0..3 {
        let (mut client, server) = connection().await;
        client.write_all(b"unread").await.unwrap();
        clients.push(client);
        servers.push(server);
    }
    let program = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Some(event) = scope.recv().await {
            held.push(event);
        }
    });
    router.attached(DRAIN).await;
    let none = Data::NONE;
    let offer: Vec<_> = servers.iter().map(|server| (server, &none)).collect();
    assert_eq!(router.offer(&offer), 3);
    assert_eq!(router.hears().await, acknowledged(3, 3));
    for server in &servers {
        assert_eq!(rustix::io::ioctl_fionread(server).unwrap(), 6, "a byte was consumed");
    }
    program.abort();
}

#[tokio::test]
async fn a_connection_brings_its_facts_and_its_message_and_can_be_read() {
    let (mut router, scope) = Router::and_worker();
    let (mut client, server) = connection().await;
    let peer = client.local_addr().unwrap();
    let program = tokio::spawn(async move {
        let Event::Connection { mut stream, info, message } = event(&scope).await else {
            panic!("no connection")
        };
        assert_eq!(stream.local_addr().unwrap().unwrap().ip(), peer.ip());
        let byte = stream.read_u8().await.unwrap();
        (byte, info, message.decode::<(u8, String)>().unwrap())
    });
    router.attached(DRAIN).await;
    router.offer(&[(&server, &Data::bincode(&(7u8, "seven")).unwrap())]);
    client.write_all(b"x").await.unwrap();
    let (byte, info, message) = program.await.unwrap();
    assert_eq!((byte, message), (b'x', (7, "seven".to_owned())));
    assert_eq!(
        (info.id, info.peer, &*info.listener, &*info.route),
        (1, Some(peer), "web", "default")
    );
    assert_eq!(info.message().codec(), Codec::Bincode);
}

#[tokio::test]
async fn a_dropped_connection_ends_for_the_client_though_the_router_holds_a_copy() {
    let (mut router, scope) = Router::and_worker();
    let (mut client, server) = connection().await;
    let program = tokio::spawn(async move {
        drop(event(&scope).await);
        scope.recv().await
    });
    router.attached(DRAIN).await;
    router.offer(&[(&server, &Data::NONE)]);
    assert_eq!(to_end(&mut client).await, "");
    program.abort();
}

#[tokio::test]
async fn a_refused_connection_is_closed_without_a_word_to_the_client() {
    let (mut router, scope) = Router::and_worker();
    let scope = scope.message::<u64>();
    let program = tokio::spawn(async move { event(&scope).await });
    router.attached(DRAIN).await;
    let (mut client, server) = connection().await;
    router.offer(&[(&server, &Data::json("no number").unwrap())]);
    assert_eq!(router.hears().await, Said::Refused(vec![(1, RefusalReason::Undecodable)]));
    assert!(matches!(
        program.await.unwrap(),
        Event::MessageError(MessageError::Undecodable { sequence: 1, .. })
    ));
    // The router's copy is as alive as ever: another worker could answer.
    let mut other = tokio::net::TcpStream::from_std(server.into()).unwrap();
    other.write_all(b"served elsewhere").await.unwrap();
    let mut answer = [0; 16];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"served elsewhere");
}

#[tokio::test]
async fn refusals_of_a_batch_are_said_before_the_acknowledgement_that_covers_them() {
    let (mut router, scope) = Router::and_worker();
    let scope = scope.message::<u64>();
    let program = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Some(event) = scope.recv().await {
            held.push(event);
        }
    });
    router.attached(DRAIN).await;
    let servers =
        [connection().await.1, connection().await.1, connection().await.1, connection().await.1];
    let (good, bad) = (Data::json(&1u64).unwrap(), Data::json(&"x").unwrap());
    router.offer(&[
        (&servers[0], &good),
        (&servers[1], &bad),
        (&servers[2], &good),
        (&servers[3], &bad),
    ]);
    let refused = vec![(2, RefusalReason::Undecodable), (4, RefusalReason::Undecodable)];
    assert_eq!(router.hears().await, Said::Refused(refused));
    assert_eq!(router.hears().await, acknowledged(4, 2));
    program.abort();
}

#[tokio::test]
async fn a_message_without_a_type_is_refused_for_its_format_in_the_typed_mode() {
    let (mut router, scope) = Router::and_worker();
    let scope = scope.message::<u64>();
    let program = tokio::spawn(async move { event(&scope).await });
    router.attached(DRAIN).await;
    router.offer(&[(&connection().await.1, &Data::bytes(*b"raw"))]);
    assert_eq!(router.hears().await, Said::Refused(vec![(1, RefusalReason::Format)]));
    assert!(matches!(program.await.unwrap(), Event::MessageError(_)));
}

#[tokio::test]
async fn a_worker_at_its_own_bound_refuses_more() {
    let (mut router, scope) = Router::and_worker();
    let scope = scope.max_connections(1);
    let program = tokio::spawn(async move {
        let held = event(&scope).await;
        scope.recv().await;
        drop(held);
    });
    assert_eq!(router.attached(DRAIN).await.max_connections, 1);
    let (one, two) = (connection().await.1, connection().await.1);
    router.offer(&[(&one, &Data::NONE), (&two, &Data::NONE)]);
    assert_eq!(router.hears().await, Said::Refused(vec![(2, RefusalReason::Full)]));
    assert_eq!(router.hears().await, acknowledged(2, 1));
    program.abort();
}

#[tokio::test]
async fn the_load_is_reported_after_a_connection_ended_and_only_once() {
    let (mut router, scope) = Router::and_worker();
    let (give, mut take) = tokio::sync::mpsc::unbounded_channel();
    let program = tokio::spawn(async move {
        while let Some(event) = scope.recv().await {
            give.send(event).unwrap();
        }
    });
    router.attached(DRAIN).await;
    let servers = [connection().await.1, connection().await.1, connection().await.1];
    let none = Data::NONE;
    router.offer(&servers.each_ref().map(|server| (server, &none)));
    assert_eq!(router.hears().await, acknowledged(3, 3));
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(take.recv().await.unwrap());
    }
    held.truncate(1);
    assert_eq!(router.hears().await, acknowledged(3, 1));
    drop(held);
    // The next packet would show a second report of the same number, were there one.
    assert_eq!(router.hears().await, acknowledged(3, 0));
    router.offer(&[(&servers[0], &none)]);
    assert_eq!(router.hears().await, acknowledged(4, 1));
    program.abort();
}

/// Somebody may wait for the place.
#[tokio::test]
async fn a_worker_that_was_full_says_at_once_that_it_is_not() {
    let (mut router, scope) = Router::and_worker();
    let (give, mut take) = tokio::sync::mpsc::unbounded_channel();
    let program = tokio::spawn(async move {
        while let Some(event) = scope.recv().await {
            give.send(event).unwrap();
        }
    });
    router.attach(Attach { max_connections: 2, ..Attach::default() });
    assert!(matches!(router.hears().await, Said::Hello(_)));
    let none = Data::NONE;
    let servers = [connection().await.1, connection().await.1];
    router.offer(&servers.each_ref().map(|server| (server, &none)));
    assert_eq!(router.hears().await, acknowledged(2, 2));
    let one = take.recv().await.unwrap();
    let other = take.recv().await.unwrap();
    tokio::time::pause();
    let before = Instant::now();
    drop(one);
    assert_eq!(router.hears_some_time().await, acknowledged(2, 1));
    assert_eq!(before.elapsed(), Duration::ZERO, "it was full");
    drop(other);
    assert_eq!(router.hears_some_time().await, acknowledged(2, 0));
    assert!(before.elapsed() > Duration::ZERO, "it was not");
    program.abort();
}

#[tokio::test]
async fn a_new_router_is_told_what_was_received_and_what_is_open() {
    let (mut router, scope) = Router::and_worker();
    let program = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Some(event) = scope.recv().await {
            held.push(event);
        }
    });
    router.attached(DRAIN).await;
    router.offer(&[(&connection().await.1, &Data::NONE), (&connection().await.1, &Data::NONE)]);
    assert_eq!(router.hears().await, acknowledged(2, 2));
    router.next_epoch();
    let hello = router.attached(DRAIN).await;
    assert_eq!((hello.received, hello.open), (2, 2));
    router.offer(&[(&connection().await.1, &Data::NONE)]);
    assert_eq!(router.hears().await, acknowledged(3, 3));
    program.abort();
}

#[tokio::test]
async fn what_one_router_sent_is_answered_before_the_next_one_is_greeted() {
    let (mut router, scope) = Router::and_worker();
    let scope = scope.max_connections(1);
    let program = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Some(event) = scope.recv().await {
            held.push(event);
        }
    });
    router.attached(DRAIN).await;
    let servers = [connection().await.1, connection().await.1];
    router.offer(&[(&servers[0], &Data::NONE)]);
    assert_eq!(router.hears().await, acknowledged(1, 1));
    // Both come in one turn.
    router.offer(&[(&servers[1], &Data::NONE)]);
    router.next_epoch();
    router.attach(Attach::default());
    router.last_epoch();
    assert_eq!(router.hears().await, Said::Refused(vec![(2, RefusalReason::Full)]));
    assert_eq!(router.hears().await, acknowledged(2, 1));
    router.next_epoch();
    let Said::Hello(hello) = router.hears().await else { panic!("no hello") };
    assert_eq!((hello.received, hello.open), (2, 1));
    program.abort();
}

#[tokio::test]
async fn a_gap_in_the_numbers_closes_the_port_and_ends_the_program_in_order() {
    let (mut router, scope) = Router::and_worker();
    let program = tokio::spawn(async move {
        let first = scope.recv().await;
        assert!(matches!(first, Some(Event::Draining { .. })), "{first:?}");
        scope.recv().await
    });
    router.attached(DRAIN).await;
    router.set_sequence(5);
    let (mut client, server) = connection().await;
    router.offer(&[(&server, &Data::NONE)]);
    assert_eq!(router.hears().await, Said::End);
    assert!(program.await.unwrap().is_none());
    // Not acknowledged, so it is not touched: the router may give it to another.
    client.write_all(b"x").await.unwrap();
    let mut other = tokio::net::TcpStream::from_std(server.into()).unwrap();
    assert_eq!(other.read_u8().await.unwrap(), b'x');
}

#[tokio::test]
async fn nothing_is_taken_before_a_router_attached() {
    let (mut router, scope) = Router::and_worker();
    let program = tokio::spawn(async move { while scope.recv().await.is_some() {} });
    router.offer(&[(&connection().await.1, &Data::NONE)]);
    assert_eq!(router.hears().await, Said::End);
    program.await.unwrap();
}

#[tokio::test]
async fn packets_of_a_router_that_is_gone_are_ignored() {
    let (mut router, scope) = Router::and_worker();
    let program = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Some(event) = scope.recv().await {
            held.push(event);
        }
    });
    router.attached(DRAIN).await;
    router.next_epoch();
    router.offer(&[(&connection().await.1, &Data::NONE)]);
    router.set_sequence(0);
    assert_eq!(router.attached(DRAIN).await.received, 0);
    router.offer(&[(&connection().await.1, &Data::NONE)]);
    assert_eq!(router.hears().await, acknowledged(1, 1));
    program.abort();
}

#[tokio::test]
async fn a_malformed_offer_is_refused_whole_and_the_port_goes_on() {
    let (mut router, scope) = Router::and_worker();
    let (give, mut take) = tokio::sync::mpsc::unbounded_channel();
    let program = tokio::spawn(async move {
        while let Some(event) = scope.recv().await {
            give.send(event).unwrap();
        }
    });
    router.attached(DRAIN).await;
    let (one, two) = (connection().await.1, connection().await.1);
    router.numbered(kind::OFFER, Codec::None, &[1, 0, 9], &[one.as_fd(), two.as_fd()], 2);
    let refused = vec![(1, RefusalReason::Undecodable), (2, RefusalReason::Undecodable)];
    assert_eq!(router.hears().await, Said::Refused(refused));
    assert_eq!(router.hears().await, acknowledged(2, 0));
    assert!(matches!(
        take.recv().await,
        Some(Event::MessageError(MessageError::Malformed { sequence: 1, .. }))
    ));
    router.offer(&[(&one, &Data::NONE)]);
    assert_eq!(router.hears().await, acknowledged(3, 1));
    program.abort();
}

#[tokio::test]
async fn a_plain_file_is_no_connection() {
    let (mut router, scope) = Router::and_worker();
    let program = tokio::spawn(async move { event(&scope).await });
    router.attached(DRAIN).await;
    let file = std::fs::File::open("/proc/self/exe").unwrap().into();
    let facts = router.facts(Some("127.0.0.1:1".parse().unwrap()));
    let mut body = Vec::new();
    vestibule_protocol::message::put_entry(&mut body, &facts, b"").unwrap();
    let file: std::os::fd::OwnedFd = file;
    rustix::io::ioctl_fionbio(&file, true).unwrap();
    router.numbered(kind::OFFER, Codec::None, &body, &[file.as_fd()], 1);
    assert_eq!(router.hears().await, Said::Refused(vec![(1, RefusalReason::Unsupported)]));
    assert!(matches!(
        program.await.unwrap(),
        Event::MessageError(MessageError::Descriptor { sequence: 1, .. })
    ));
}

#[tokio::test]
async fn a_message_brings_ports_listeners_and_descriptors_that_can_be_used() {
    let (mut router, scope) = Router::and_worker();
    let program = tokio::spawn(async move { event(&scope).await });
    router.attached(DRAIN).await;
    let (ours, theirs) = vestibule_protocol::sys::seqpacket_pair().unwrap();
    let ours = vestibule_worker::MessagePort::new(ours).unwrap();
    ours.post_message("queued before", ()).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut client, server) = connection().await;
    let facts = router.facts(client.local_addr().ok());
    router.post(
        &Data::json("all of it").unwrap(),
        &[
            (ItemKind::Port, theirs.as_fd()),
            (ItemKind::Listener, listener.as_fd()),
            (ItemKind::Connection(facts), server.as_fd()),
            (ItemKind::Descriptor, client.as_fd()),
        ],
    );
    assert_eq!(router.hears().await, acknowledged(1, 1));
    let Event::Message { data, transfer } = program.await.unwrap() else { panic!("no message") };
    assert_eq!(data.decode::<String>().unwrap(), "all of it");
    let mut transfer = transfer.into_iter();
    let Some(Transferred::Port(port)) = transfer.next() else { panic!("no port") };
    let Some(vestibule_protocol::port::PortEvent::Message { data, .. }) = port.recv().await else {
        panic!("nothing in the port")
    };
    assert_eq!(data.decode::<String>().unwrap(), "queued before");
    let Some(Transferred::Listener(received)) = transfer.next() else { panic!("no listener") };
    let received = std::net::TcpListener::from(received);
    assert_eq!(received.local_addr().unwrap(), listener.local_addr().unwrap());
    let Some(Transferred::Connection(mut connection)) = transfer.next() else {
        panic!("no connection")
    };
    client.write_all(b"y").await.unwrap();
    assert_eq!(connection.stream.read_u8().await.unwrap(), b'y');
    assert!(matches!(transfer.next(), Some(Transferred::Descriptor(_))));
    assert!(transfer.next().is_none());
}

#[tokio::test]
async fn a_single_connection_with_a_message_is_a_connection_however_it_is_sent() {
    let (mut router, scope) = Router::and_worker();
    let program = tokio::spawn(async move { event(&scope).await });
    router.attached(DRAIN).await;
    let (client, server) = connection().await;
    let facts = router.facts(client.local_addr().ok());
    router.post(&Data::json(&5).unwrap(), &[(ItemKind::Connection(facts), server.as_fd())]);
    let Event::Connection { info, message, .. } = program.await.unwrap() else {
        panic!("no connection")
    };
    assert_eq!((info.id, message.decode::<u8>().unwrap()), (1, 5));
}

#[tokio::test]
async fn a_unix_connection_is_adopted_too() {
    let (mut router, scope) = Router::and_worker();
    let program = tokio::spawn(async move {
        let Event::Connection { mut stream, info, .. } = event(&scope).await else {
            panic!("no connection")
        };
        assert!(matches!(stream.socket(), vestibule_worker::Socket::Unix(_)));
        assert_eq!((info.peer, stream.local_addr().unwrap()), (None, None));
        stream.write_all(b"hi").await.unwrap();
    });
    router.attached(DRAIN).await;
    let (mut client, server) = tokio::net::UnixStream::pair().unwrap();
    router.offer(&[(&server.into_std().unwrap().into(), &Data::NONE)]);
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "hi");
    program.await.unwrap();
}

#[tokio::test]
async fn a_scope_over_something_else_is_refused_with_its_reason() {
    let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let error = WorkerScope::from_descriptor(stream.into()).unwrap_err();
    assert!(error.to_string().contains("no Unix seqpacket socket"), "{error}");
}

/// A read stops at an urgent byte, whatever is there behind it; nothing more comes that could wake
/// whoever reads.
#[tokio::test]
async fn what_was_sent_behind_urgent_data_is_read() {
    let (mut router, scope) = Router::and_worker();
    let program = tokio::spawn(async move {
        let mut texts = Vec::new();
        for _ in 0..2 {
            let Event::Connection { mut stream, .. } = event(&scope).await else {
                panic!("no connection")
            };
            let mut text = [0; 10];
            let read = stream.read_exact(&mut text);
            tokio::time::timeout(PATIENCE, read).await.expect("not read").unwrap();
            texts.push(text);
        }
        texts
    });
    router.attached(DRAIN).await;
    let (tcp, server) = connection().await;
    let (unix, unix_server) = tokio::net::UnixStream::pair().unwrap();
    let servers = [server, unix_server.into_std().unwrap().into()];
    for client in [tcp.as_fd(), unix.as_fd()] {
        let send = |bytes: &[u8], flags| rustix::net::send(client, bytes, flags).unwrap();
        send(b"befor", SendFlags::empty());
        send(b"!", SendFlags::OOB);
        send(b"after", SendFlags::empty());
    }
    for server in &servers {
        router.offer(&[(server, &Data::NONE)]);
    }
    assert_eq!(program.await.unwrap(), [*b"beforafter"; 2]);
}

//! Transfer lists as the router's callers write them.

use vestibule_protocol::envelope::Transferable;

use crate::connection::Connection;
use crate::handoff::Cargo;

/// A transfer list on its way. Its content is the router's business.
#[derive(Debug)]
pub struct TransferList(pub(crate) Cargo);

/// What can be given to `post_message`: `()` for nothing, `[connection]` or a connection, and for
/// everything else (ports, listeners, descriptors, several of them) `[Transferable::from(port)]` or a
/// `Vec<Transferable>`. If the message is not posted, the list comes back as it was given.
pub trait Transfer: Sized + sealed::Sealed {
    /// How many things it holds.
    fn count(&self) -> usize;
    /// Whether all of it can be sent: a port with messages that wait on this side cannot.
    fn is_ready(&self) -> bool {
        true
    }
    /// The list, on its way.
    fn into_list(self) -> TransferList;
    /// The list, come back: exactly what [`into_list`](Self::into_list) made.
    fn from_list(list: TransferList) -> Self;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for () {}
    impl Sealed for super::Connection {}
    impl Sealed for [super::Connection; 1] {}
    impl Sealed for Vec<super::Transferable> {}
    impl<const N: usize> Sealed for [super::Transferable; N] {}
}

impl Transfer for () {
    fn count(&self) -> usize {
        0
    }

    fn into_list(self) -> TransferList {
        TransferList(Cargo::List(Vec::new()))
    }

    fn from_list(_: TransferList) {}
}

impl Transfer for Connection {
    fn count(&self) -> usize {
        1
    }

    fn into_list(self) -> TransferList {
        TransferList(Cargo::Connection(self))
    }

    fn from_list(list: TransferList) -> Self {
        match list.0 {
            Cargo::Connection(connection) => connection,
            Cargo::List(_) => returned_otherwise(),
        }
    }
}

impl Transfer for [Connection; 1] {
    fn count(&self) -> usize {
        1
    }

    fn into_list(self) -> TransferList {
        let [connection] = self;
        connection.into_list()
    }

    fn from_list(list: TransferList) -> Self {
        [Connection::from_list(list)]
    }
}

impl<const N: usize> Transfer for [Transferable; N] {
    fn count(&self) -> usize {
        N
    }

    fn is_ready(&self) -> bool {
        self.iter().all(is_idle)
    }

    fn into_list(self) -> TransferList {
        Vec::from(self).into_list()
    }

    fn from_list(list: TransferList) -> Self {
        Self::try_from(Vec::from_list(list)).unwrap_or_else(|_| returned_otherwise())
    }
}

impl Transfer for Vec<Transferable> {
    fn count(&self) -> usize {
        self.len()
    }

    fn is_ready(&self) -> bool {
        self.iter().all(is_idle)
    }

    fn into_list(self) -> TransferList {
        match <[Transferable; 1]>::try_from(self) {
            Ok([Transferable::Connection(connection)]) => {
                TransferList(Cargo::Connection(connection.into()))
            }
            Ok([other]) => TransferList(Cargo::List(vec![other])),
            Err(list) => TransferList(Cargo::List(list)),
        }
    }

    fn from_list(list: TransferList) -> Self {
        match list.0 {
            Cargo::Connection(connection) => vec![connection.into()],
            Cargo::List(list) => list,
        }
    }
}

fn is_idle(item: &Transferable) -> bool {
    match item {
        Transferable::Port(port) => port.is_idle(),
        _ => true,
    }
}

/// A list comes back as the type that made it: see `worker::post`, the only caller.
#[allow(clippy::unreachable, reason = "no peer has a part in it")]
fn returned_otherwise() -> ! {
    unreachable!("a transfer list came back as another type than it was given")
}

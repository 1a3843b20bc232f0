//! What the worker still has to say, in the order in which it must be said. No I/O of its own.
//!
//! `Hello` first; refusals before the acknowledgement that covers them; one acknowledgement, always
//! the newest; then the program's messages, errors and announcements as they were posted.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use vestibule_protocol::codec::Codec;
use vestibule_protocol::handshake::Hello;
use vestibule_protocol::header::{HEADER_LEN, Header};
use vestibule_protocol::limits::{INLINE_MESSAGE, QUEUE_BYTES, QUEUE_MESSAGES};
use vestibule_protocol::message::{self, ErrorReport, FromWorker, Refusal, kind};
use vestibule_protocol::socket::{SendError, Sent};
use vestibule_protocol::sys::sealed_memory;
use vestibule_protocol::{Data, tlv};

/// Bytes of one refusal on the wire.
const REFUSAL_LEN: usize = tlv::FIELD_HEAD + 8 + 2;

/// Bytes of an error's line and column on the wire.
const NUMBERS_LEN: usize = 2 * (tlv::FIELD_HEAD + 4);

/// Sends one packet now or not at all.
pub(crate) type Send<'a> =
    dyn FnMut(&Header, &[u8], &[BorrowedFd<'_>]) -> Result<Sent, SendError> + 'a;

/// One thing that the program said.
#[derive(Debug)]
pub(crate) struct Letter {
    kind: u8,
    /// 0 for what is not numbered.
    sequence: u64,
    /// Message or body.
    data: Data,
    /// The same, once it is clear that it does not fit a packet.
    memory: Option<OwnedFd>,
    /// The connection that is handed back.
    connection: Option<OwnedFd>,
}

impl Letter {
    /// A message of the program's, to be numbered.
    ///
    /// # Errors
    /// It needs sealed memory and there is none; it comes back.
    pub(crate) fn message(data: Data) -> Result<Self, (SendError, Data)> {
        let memory = if data.len() > INLINE_MESSAGE {
            match sealed_memory(data.as_bytes()) {
                Ok(memory) => Some(memory),
                Err(error) => return Err((SendError::System(error), data)),
            }
        } else {
            None
        };
        Ok(Self { kind: kind::WORKER_MESSAGE, sequence: 0, data, memory, connection: None })
    }

    /// A connection that is handed back, with the body that says so, to be numbered.
    ///
    /// # Errors
    /// It needs sealed memory and there is none.
    pub(crate) fn hand_back(body: Data, connection: OwnedFd) -> Result<Self, SendError> {
        let letter = Self::message(body).map_err(|(error, _)| error)?;
        Ok(Self { kind: kind::HAND_BACK, connection: Some(connection), ..letter })
    }

    /// An error in the program.
    pub(crate) fn error(report: &ErrorReport) -> Self {
        let mut body = Vec::new();
        message::put_error(&mut body, report);
        Self::unnumbered(kind::ERROR, Data::from_parts(Codec::None, body))
    }

    /// The worker drains by itself.
    pub(crate) fn draining() -> Self {
        Self::unnumbered(kind::DRAINING, Data::NONE)
    }

    /// The program called `close()`.
    pub(crate) fn closing() -> Self {
        Self::unnumbered(kind::CLOSING, Data::NONE)
    }

    fn unnumbered(kind: u8, data: Data) -> Self {
        Self { kind, sequence: 0, data, memory: None, connection: None }
    }

    fn weight(&self) -> usize {
        HEADER_LEN + self.data.len()
    }

    /// Its number; 0 for what is no message.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    pub(crate) fn into_data(self) -> Data {
        self.data
    }
}

/// The router that speaks.
#[derive(Clone, Copy, Debug)]
struct Router {
    epoch: u16,
    max_packet: usize,
}

/// What waits to be sent.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    router: Option<Router>,
    hello: Option<Hello>,
    refusals: VecDeque<Refusal>,
    acknowledge: bool,
    up_to: u64,
    reported: u32,
    letters: VecDeque<Letter>,
    bytes: usize,
    refused: VecDeque<(Letter, SendError)>,
    sequence: u64,
    /// Used again for every body.
    body: Vec<u8>,
    /// A task waits for room in the socket and will send what waits.
    pub(crate) flushing: bool,
    /// Nothing more can be sent.
    closed: bool,
}

/// What the next packet is.
enum Next {
    Hello,
    /// So many refusals.
    Refusals(usize),
    Acknowledge,
    Letter,
}

impl Outbox {
    /// A router began: `hello` is its answer, and what was owed to the one before is void.
    pub(crate) fn attached(&mut self, epoch: u16, max_packet: u32, hello: Hello) {
        let max_packet = usize::try_from(max_packet).unwrap_or(usize::MAX);
        self.router = Some(Router { epoch, max_packet });
        self.refusals.clear();
        self.acknowledge = false;
        self.up_to = hello.received;
        self.hello = Some(hello);
    }

    /// Everything up to `up_to` is taken but what is refused.
    pub(crate) fn settle(&mut self, up_to: u64, refusals: impl Iterator<Item = Refusal>) {
        self.refusals.extend(refusals);
        self.up_to = up_to;
        self.acknowledge = true;
    }

    /// The load may have changed: it is said again unless the router knows.
    pub(crate) fn load(&mut self, open: u32) {
        self.acknowledge |= self.router.is_some() && open != self.reported;
    }

    /// Whether a message finds no room.
    pub(crate) fn is_full(&self, data: &Data) -> bool {
        let weight = HEADER_LEN + data.len();
        !self.letters.is_empty()
            && (self.letters.len() >= QUEUE_MESSAGES || self.bytes + weight > QUEUE_BYTES)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.hello.is_none()
            && self.refusals.is_empty()
            && !self.acknowledge
            && self.letters.is_empty()
    }

    /// Queues a message and returns its number.
    pub(crate) fn push_message(&mut self, mut letter: Letter) -> u64 {
        self.sequence += 1;
        letter.sequence = self.sequence;
        self.push(letter);
        self.sequence
    }

    pub(crate) fn push(&mut self, letter: Letter) {
        self.bytes += letter.weight();
        self.letters.push_back(letter);
    }

    /// Nothing more can be sent; what waits can be asked for.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.refused.extend(self.letters.drain(..).map(|letter| (letter, SendError::Closed)));
        self.hello = None;
        self.refusals.clear();
        self.acknowledge = false;
        self.bytes = 0;
    }

    fn next(&self, router: Router) -> Option<Next> {
        if self.hello.is_some() {
            Some(Next::Hello)
        } else if !self.refusals.is_empty() {
            let fit = (router.max_packet - HEADER_LEN) / REFUSAL_LEN;
            Some(Next::Refusals(self.refusals.len().min(fit)))
        } else if self.acknowledge {
            Some(Next::Acknowledge)
        } else if !self.letters.is_empty() {
            Some(Next::Letter)
        } else {
            None
        }
    }

    /// Sends what waits, until the socket is full. `open` is the load at this moment.
    ///
    /// # Errors
    /// The port takes nothing more. Everything is dropped then.
    pub(crate) fn flush(
        &mut self,
        open: impl Fn() -> u32,
        send: &mut Send<'_>,
    ) -> Result<Sent, SendError> {
        let Some(router) = self.router else { return Ok(Sent::Whole) };
        while let Some(next) = self.next(router) {
            let open = open();
            let sent = match &next {
                Next::Letter => match self.send_letter(router, send) {
                    // This packet alone: a router may forbid descriptors (EPERM), and then it takes
                    // no large messages.
                    Err(error @ SendError::System(_)) => {
                        self.put_aside(error);
                        continue;
                    }
                    sent => sent?,
                },
                next => self.send_answer(next, router, open, send)?,
            };
            if sent != Sent::Whole {
                return Ok(sent);
            }
            match next {
                Next::Hello => {
                    self.hello = None;
                    self.reported = open;
                }
                Next::Refusals(count) => drop(self.refusals.drain(..count)),
                Next::Acknowledge => {
                    self.acknowledge = false;
                    self.reported = open;
                }
                Next::Letter => {
                    if let Some(letter) = self.letters.pop_front() {
                        self.bytes -= letter.weight();
                    }
                }
            }
        }
        Ok(Sent::Whole)
    }

    fn put_aside(&mut self, error: SendError) {
        if let Some(letter) = self.letters.pop_front() {
            self.bytes -= letter.weight();
            self.refused.push_back((letter, error));
        }
    }

    /// The next letter that the system refused to send.
    pub(crate) fn take_refused(&mut self) -> Option<(Letter, SendError)> {
        self.refused.pop_front()
    }

    fn send_answer(
        &mut self,
        next: &Next,
        router: Router,
        open: u32,
        send: &mut Send<'_>,
    ) -> Result<Sent, SendError> {
        self.body.clear();
        let kind = match (next, self.hello) {
            (Next::Hello, Some(hello)) => {
                Hello { open, ..hello }.encode(&mut self.body);
                kind::HELLO
            }
            (Next::Refusals(count), _) => {
                let refusals = self.refusals.iter().take(*count);
                refusals.for_each(|refusal| message::put_refusal(&mut self.body, *refusal));
                kind::REFUSE
            }
            _ => {
                message::put_acknowledge(&mut self.body, self.up_to, open);
                kind::ACKNOWLEDGE
            }
        };
        send(&Header::new(kind, router.epoch), &self.body, &[])
    }

    fn send_letter(&mut self, router: Router, send: &mut Send<'_>) -> Result<Sent, SendError> {
        let Some(letter) = self.letters.front_mut() else { return Ok(Sent::Whole) };
        let room = router.max_packet - HEADER_LEN;
        if letter.memory.is_none() && letter.data.len() > room {
            // This router takes smaller packets than most.
            if letter.kind == kind::ERROR {
                letter.data = shortened(&letter.data, room);
            } else {
                match sealed_memory(letter.data.as_bytes()) {
                    Ok(memory) => letter.memory = Some(memory),
                    Err(_) => return Ok(Sent::Later),
                }
            }
        }
        let large = letter.memory.is_some();
        // The memory first: what it holds says what the others are.
        let memory = letter.memory.as_ref().map(AsFd::as_fd);
        let connection = letter.connection.as_ref().map(AsFd::as_fd);
        let both;
        let descriptors = match (&memory, &connection) {
            (Some(memory), Some(connection)) => {
                both = [*memory, *connection];
                both.as_slice()
            }
            (memory, connection) => {
                memory.as_ref().or(connection.as_ref()).map_or(&[][..], std::slice::from_ref)
            }
        };
        let header = Header {
            codec: letter.data.codec(),
            large,
            // Two at most.
            descriptors: descriptors.len() as u8,
            sequence: letter.sequence,
            ..Header::new(letter.kind, router.epoch)
        };
        let body = if large { &[] } else { letter.data.as_bytes() };
        send(&header, body, descriptors)
    }
}

/// The body of an `ERROR` cut to what its packet holds: only messages may leave theirs.
fn shortened(body: &Data, room: usize) -> Data {
    let header = Header::new(kind::ERROR, 0);
    let Ok(FromWorker::Error(mut report)) = FromWorker::decode(&header, body.as_bytes()) else {
        return Data::NONE;
    };
    // Both texts may be as long as any text: each gets half of what the numbers leave.
    let most = room.saturating_sub(NUMBERS_LEN) / 2 - tlv::FIELD_HEAD;
    for text in [&mut report.message, &mut report.file] {
        while text.len() > most {
            text.pop();
        }
    }
    let mut body = Vec::new();
    message::put_error(&mut body, &report);
    Data::from_parts(Codec::None, body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vestibule_protocol::message::RefusalReason;

    /// Plays the socket: takes `room` packets, then is full.
    fn flush(outbox: &mut Outbox, open: u32, room: usize) -> (Vec<(Header, Vec<u8>)>, Sent) {
        let mut packets = Vec::new();
        let sent = outbox
            .flush(|| open, &mut |header, body, _| {
                if packets.len() == room {
                    return Ok(Sent::Blocked);
                }
                packets.push((*header, body.to_vec()));
                Ok(Sent::Whole)
            })
            .unwrap();
        (packets, sent)
    }

    fn kinds(packets: &[(Header, Vec<u8>)]) -> Vec<u8> {
        packets.iter().map(|(header, _)| header.kind).collect()
    }

    fn refuse(sequence: u64) -> Refusal {
        Refusal { sequence, reason: RefusalReason::Full }
    }

    fn attached(max_packet: u32) -> Outbox {
        let mut outbox = Outbox::default();
        outbox.attached(7, max_packet, Hello::default());
        assert_eq!(flush(&mut outbox, 0, 1).1, Sent::Whole);
        outbox
    }

    #[test]
    fn nothing_is_said_before_a_router_speaks() {
        let mut outbox = Outbox::default();
        outbox.push(Letter::closing());
        assert_eq!(flush(&mut outbox, 0, 9), (vec![], Sent::Whole));
        outbox.attached(3, 32_768, Hello::default());
        let (packets, _) = flush(&mut outbox, 5, 9);
        assert_eq!(kinds(&packets), [kind::HELLO, kind::CLOSING]);
        assert!(packets.iter().all(|(header, _)| header.epoch == 3 && header.sequence == 0));
        assert_eq!(Hello::decode(&packets[0].1).unwrap().open, 5);
    }

    #[test]
    fn refusals_go_before_the_acknowledgement_that_covers_them() {
        let mut outbox = attached(32_768);
        outbox.push(Letter::draining());
        outbox.settle(4, [refuse(2), refuse(3)].into_iter());
        let (packets, _) = flush(&mut outbox, 2, 9);
        assert_eq!(kinds(&packets), [kind::REFUSE, kind::ACKNOWLEDGE, kind::DRAINING]);
    }

    #[test]
    fn a_full_socket_keeps_the_newest_acknowledgement_only() {
        let mut outbox = attached(32_768);
        for up_to in 1..=100 {
            outbox.settle(up_to, std::iter::empty());
            assert_eq!(flush(&mut outbox, 1, 0).1, Sent::Blocked);
        }
        let (packets, sent) = flush(&mut outbox, 64, 9);
        assert_eq!((kinds(&packets), sent), (vec![kind::ACKNOWLEDGE], Sent::Whole));
        let mut expected = Vec::new();
        message::put_acknowledge(&mut expected, 100, 64);
        assert_eq!(packets[0].1, expected);
        assert!(outbox.is_empty());
    }

    #[test]
    fn the_load_is_said_again_only_if_the_router_does_not_know() {
        let mut outbox = attached(32_768);
        outbox.settle(1, std::iter::empty());
        assert_eq!(flush(&mut outbox, 1, 9).1, Sent::Whole);
        outbox.load(1);
        assert!(outbox.is_empty());
        outbox.load(0);
        assert_eq!(kinds(&flush(&mut outbox, 0, 9).0), [kind::ACKNOWLEDGE]);
    }

    #[test]
    fn many_refusals_are_split_over_the_packets_that_the_router_takes() {
        let mut outbox = attached(1024);
        outbox.settle(200, (1..=200).map(refuse));
        let (packets, _) = flush(&mut outbox, 0, 99);
        let last = packets.len() - 1;
        assert!(packets[..last].iter().all(|(header, body)| {
            header.kind == kind::REFUSE && HEADER_LEN + body.len() <= 1024
        }));
        let refused: usize = packets[..last].iter().map(|(_, body)| body.len() / REFUSAL_LEN).sum();
        assert_eq!((refused, packets[last].0.kind), (200, kind::ACKNOWLEDGE));
    }

    #[test]
    fn a_message_that_does_not_fit_the_routers_packets_goes_by_memory() {
        let mut outbox = attached(1024);
        let letter = Letter::message(Data::bytes("x".repeat(2000))).unwrap();
        assert_eq!(outbox.push_message(letter), 1);
        let (packets, _) = flush(&mut outbox, 0, 9);
        let (header, body) = &packets[0];
        assert!(header.large && header.descriptors == 1 && body.is_empty());
        assert_eq!(header.sequence, 1);
    }

    #[test]
    fn an_error_is_cut_to_the_routers_packets() {
        let mut outbox = attached(1024);
        let report =
            ErrorReport { message: "ä".repeat(2000), file: "f".repeat(4000), line: 3, column: 4 };
        outbox.push(Letter::error(&report));
        let (packets, _) = flush(&mut outbox, 0, 9);
        let (header, body) = &packets[0];
        assert!(HEADER_LEN + body.len() <= 1024);
        let FromWorker::Error(said) = FromWorker::decode(header, body).unwrap() else {
            panic!("no error")
        };
        assert!(report.message.starts_with(&said.message) && said.message.len() > 400);
        assert_eq!((said.line, said.column), (3, 4));
    }

    #[test]
    fn a_letter_that_the_system_refuses_comes_out_and_the_rest_goes_on() {
        let mut outbox = attached(32_768);
        outbox.push_message(Letter::message(Data::bytes("refused")).unwrap());
        outbox.push(Letter::draining());
        let mut kinds = Vec::new();
        let sent = outbox.flush(|| 0, &mut |header, body, _| {
            if body == b"refused" {
                return Err(SendError::System(rustix::io::Errno::PERM));
            }
            kinds.push(header.kind);
            Ok(Sent::Whole)
        });
        assert_eq!((sent, kinds), (Ok(Sent::Whole), vec![kind::DRAINING]));
        let refused = outbox.take_refused();
        assert_eq!(refused.map(|(letter, _)| letter.into_data()), Some(Data::bytes("refused")));
    }

    #[test]
    fn a_new_router_is_told_nothing_that_was_owed_to_the_old_one() {
        let mut outbox = attached(32_768);
        outbox.settle(9, [refuse(9)].into_iter());
        outbox.attached(8, 32_768, Hello { received: 9, ..Hello::default() });
        let (packets, _) = flush(&mut outbox, 3, 9);
        assert_eq!(kinds(&packets), [kind::HELLO]);
        assert_eq!(Hello::decode(&packets[0].1).unwrap().received, 9);
    }
}

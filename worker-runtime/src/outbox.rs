//! What the worker still has to say, in the order in which it must be said. No I/O of its own.
//!
//! `Hello` first, but for what an earlier router is still to be refused; refusals before the
//! acknowledgement that covers them; one acknowledgement, always the newest; then the program's messages,
//! errors and announcements as they were posted.

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
    /// With the epoch of what is refused.
    refusals: VecDeque<(u16, Refusal)>,
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
    /// So many refusals, in this epoch.
    Refusals(u16, usize),
    Acknowledge,
    Letter,
}

impl Outbox {
    /// A router began: `hello` is its answer, and covers what the one before was not told yet, less what
    /// is refused.
    pub(crate) fn attached(&mut self, epoch: u16, max_packet: u32, hello: Hello) {
        let max_packet = usize::try_from(max_packet).unwrap_or(usize::MAX);
        self.router = Some(Router { epoch, max_packet });
        self.acknowledge = false;
        self.up_to = hello.received;
        self.hello = Some(hello);
    }

    /// Everything up to `up_to` is taken but what is refused.
    pub(crate) fn settle(&mut self, up_to: u64, refusals: impl Iterator<Item = Refusal>) {
        let epoch = self.router.map_or(0, |router| router.epoch);
        self.refusals.extend(refusals.map(|refusal| (epoch, refusal)));
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
        let refused_in = self.refusals.front().map(|(epoch, _)| *epoch);
        if self.hello.is_some() && refused_in.is_none_or(|epoch| epoch == router.epoch) {
            Some(Next::Hello)
        } else if let Some(epoch) = refused_in {
            let fit = (router.max_packet - HEADER_LEN) / REFUSAL_LEN;
            let same = self.refusals.iter().take_while(|(of, _)| *of == epoch).count();
            Some(Next::Refusals(epoch, same.min(fit)))
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
                Next::Refusals(_, count) => drop(self.refusals.drain(..count)),
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
        let mut epoch = router.epoch;
        let kind = match (next, self.hello) {
            (Next::Hello, Some(hello)) => {
                Hello { open, ..hello }.encode(&mut self.body);
                kind::HELLO
            }
            (Next::Refusals(of, count), _) => {
                epoch = *of;
                let refusals = self.refusals.iter().take(*count);
                refusals.for_each(|(_, refusal)| message::put_refusal(&mut self.body, *refusal));
                kind::REFUSE
            }
            _ => {
                message::put_acknowledge(&mut self.body, self.up_to, open);
                kind::ACKNOWLEDGE
            }
        };
        send(&Header::new(kind, epoch), &self.body, &[])
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
mod tests;

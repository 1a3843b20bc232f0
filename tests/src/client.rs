//! An HTTP/1.1 client on a plain socket: what it sends and what comes back is known to the byte.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::world::DEADLINE;

/// One client with one connection.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    unread: Vec<u8>,
}

/// How a connection ended for its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Regularly (FIN).
    Closed,
    /// With a reset.
    Reset,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Its status.
    pub status: u16,
    /// Its head, without the status line.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Vec<u8>,
}

impl Client {
    /// Connects from 127.0.0.1.
    pub fn connect(to: SocketAddr) -> Self {
        Self::new(TcpStream::connect(to).unwrap())
    }

    /// Connects from another address of this host: all of 127.0.0.0/8 is.
    pub fn connect_from(source: IpAddr, to: SocketAddr) -> Self {
        let flags = SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
        rustix::net::bind(&socket, &SocketAddr::new(source, 0)).unwrap();
        rustix::net::connect(&socket, &to).unwrap();
        Self::new(socket.into())
    }

    fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Self { stream, unread: Vec::new() }
    }

    /// Its address, as the server sees it.
    pub fn address(&self) -> SocketAddr {
        self.stream.local_addr().unwrap()
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends bytes to whoever may have closed already: whether they could be sent.
    pub fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Sends an urgent byte.
    pub fn send_urgent(&mut self, byte: u8) {
        rustix::net::send(&self.stream, &[byte], rustix::net::SendFlags::OOB).unwrap();
    }

    /// Says that nothing more will be sent, to whoever may have closed already: whether it could be said.
    pub fn try_finish(&self) -> bool {
        self.stream.shutdown(Shutdown::Write).is_ok()
    }

    /// Says that nothing more will be sent.
    pub fn finish(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Asks for a path and returns the answer.
    pub fn get(&mut self, path: &str) -> Response {
        self.ask(path);
        self.answer()
    }

    /// Asks for a path.
    pub fn ask(&mut self, path: &str) {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes());
    }

    /// The next answer.
    ///
    /// # Panics
    /// The connection ended without one, or nothing came in time.
    pub fn answer(&mut self) -> Response {
        self.try_answer().unwrap_or_else(|ended| panic!("{ended:?} without an answer"))
    }

    /// The next answer.
    ///
    /// # Errors
    /// The connection ended before it was whole.
    pub fn try_answer(&mut self) -> Result<Response, Ended> {
        let head = loop {
            if let Some(end) = self.unread.windows(4).position(|four| four == b"\r\n\r\n") {
                break self.unread.drain(..end + 4).collect::<Vec<u8>>();
            }
            self.read_more()?;
        };
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: Vec<(String, String)> = lines
            .map(|line| line.split_once(':').unwrap())
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let length = headers.iter().find(|(name, _)| name == "content-length");
        let length: usize = length.expect("an answer with a length").1.parse().unwrap();
        while self.unread.len() < length {
            self.read_more()?;
        }
        let body = self.unread.drain(..length).collect();
        Ok(Response { status, headers, body })
    }

    /// The next bytes, so many.
    ///
    /// # Panics
    /// The connection ended before, or they did not come in time.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        while self.unread.len() < count {
            self.read_more().unwrap_or_else(|ended| panic!("{ended:?} before {count} bytes"));
        }
        self.unread.drain(..count).collect()
    }

    /// Reads to the end of the connection: what came, and how it ended.
    pub fn end(&mut self) -> (Vec<u8>, Ended) {
        loop {
            if let Err(ended) = self.read_more() {
                return (std::mem::take(&mut self.unread), ended);
            }
        }
    }

    fn read_more(&mut self) -> Result<(), Ended> {
        let mut bytes = [0; 16 * 1024];
        match self.stream.read(&mut bytes) {
            Ok(0) => Err(Ended::Closed),
            Ok(count) => {
                self.unread.extend_from_slice(&bytes[..count]);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Err(Ended::Reset),
            Err(error) => panic!("the client waited in vain: {error}"),
        }
    }
}

impl Response {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The value of `name=value` in the body.
    pub fn field(&self, name: &str) -> String {
        let text = self.text();
        text.split_whitespace()
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
            .unwrap_or_else(|| panic!("no {name} in {text:?}"))
            .to_owned()
    }
}

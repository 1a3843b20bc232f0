//! Talking on the admin socket: who may, for how long, and how much.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::wire::{Answer, MAX_QUESTION, Refusal, parse};
use super::{Reply, Request};

/// Conversations at once. A person has one, a monitor one more.
const CONVERSATIONS: usize = 32;
/// How long a question may take to arrive, and an answer to be taken.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the router may take to say its loads: its turns are milliseconds. One that hangs must
/// not hold up who wants to know that.
const LOADS: Duration = Duration::from_secs(1);
/// How long to leave the listener alone that cannot accept: no descriptor may be left.
const PAUSE: Duration = Duration::from_secs(1);

/// Accepts for ever. Dropping it ends every conversation.
pub(super) async fn accept(listener: UnixListener, ask: mpsc::Sender<Request>) {
    let mut conversations = JoinSet::new();
    loop {
        // An ended one makes room for the next.
        while conversations.try_join_next().is_some() {}
        if conversations.len() >= CONVERSATIONS {
            conversations.join_next().await;
        }
        match listener.accept().await {
            Ok((stream, _)) => match allowed(&stream) {
                Ok(()) => drop(conversations.spawn(talk(stream, ask.clone()))),
                Err(refusal) => refuse_unread(&stream, refusal),
            },
            Err(error) => {
                tracing::warn!(%error, "the admin socket cannot accept");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Whether the peer may ask anything: root, and who runs this.
fn allowed(stream: &UnixStream) -> Result<(), Answer> {
    let refused = |text: String| Err(Answer::refused(Refusal::NotAllowed, text));
    match stream.peer_cred() {
        Ok(peer) => {
            let own = rustix::process::geteuid().as_raw();
            if peer.uid() == 0 || peer.uid() == own {
                return Ok(());
            }
            tracing::warn!(uid = peer.uid(), pid = peer.pid(), "somebody else asked to administer");
            refused(format!("only root and the user {own}, who runs this, may ask"))
        }
        Err(error) => refused(format!("the kernel does not say who asks: {error}")),
    }
}

/// Says no to who may not ask, without reading or waiting. A new socket has room for it.
fn refuse_unread(stream: &UnixStream, refusal: Answer) {
    if let Ok(line) = line_of(&refusal) {
        // Whoever does not hear it sees the end of the connection.
        let _ = rustix::net::send(stream, &line, rustix::net::SendFlags::NOSIGNAL);
    }
}

async fn talk(mut stream: UnixStream, ask: mpsc::Sender<Request>) {
    let misunderstood = |text| Answer::refused(Refusal::NotUnderstood, text);
    let answer = match timeout(PATIENCE, read_line(&mut stream)).await {
        Ok(Ok(Line::Whole(line))) => match parse(&line) {
            Ok(question) => match answer(question, ask).await {
                Some(answer) => answer,
                // The supervisor ends.
                None => return,
            },
            Err(refusal) => refusal,
        },
        Ok(Ok(Line::TooLong)) => misunderstood("the question is longer than 4096 bytes"),
        Err(_) => misunderstood("the question was not whole within 5 s"),
        Ok(Ok(Line::Ended) | Err(_)) => return,
    };
    let Ok(line) = line_of(&answer) else { return };
    // A peer that does not read has to ask again.
    let _ = timeout(PATIENCE, stream.write_all(&line)).await;
}

/// What a peer sent.
enum Line {
    /// A line, without its newline.
    Whole(Vec<u8>),
    /// More than a line may have.
    TooLong,
    /// It went away in the middle of a line, or before it.
    Ended,
}

async fn read_line(stream: &mut UnixStream) -> std::io::Result<Line> {
    let mut line = Vec::with_capacity(256);
    let mut stream = stream.take(MAX_QUESTION as u64);
    loop {
        let seen = line.len();
        let count = stream.read_buf(&mut line).await?;
        if let Some(end) = line.iter().skip(seen).position(|byte| *byte == b'\n') {
            line.truncate(seen + end);
            return Ok(Line::Whole(line));
        }
        if count == 0 {
            return Ok(if line.len() < MAX_QUESTION { Line::Ended } else { Line::TooLong });
        }
    }
}

async fn answer(question: super::wire::Question, ask: mpsc::Sender<Request>) -> Option<Answer> {
    let (reply, replied) = oneshot::channel();
    ask.send(Request { question, reply }).await.ok()?;
    match replied.await.ok()? {
        Reply::Now(answer) => Some(answer),
        Reply::WithLoads(mut status, loads) => {
            match timeout(LOADS, loads).await {
                Ok(Ok(loads)) => status.add_loads(&loads),
                Ok(Err(_)) | Err(_) => status.without_loads(),
            }
            Some(Answer::Status { status })
        }
        Reply::WithTrace(entries) => Some(match timeout(LOADS, entries).await {
            Ok(Ok(entries)) => Answer::Trace { entries },
            Ok(Err(_)) | Err(_) => {
                Answer::refused(Refusal::State, "the router does not answer".to_owned())
            }
        }),
    }
}

fn line_of(answer: &Answer) -> Result<Vec<u8>, serde_json::Error> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    Ok(line)
}

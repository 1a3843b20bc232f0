//! A worker with its own loop: `scope.recv`, and an HTTP server of a few lines that knows the
//! socket it speaks on.

use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::LocalSet;
use vestibule_tests::ledger::Pen;
use vestibule_tests::{Order, Said};
use vestibule_worker::{ConnectionInfo, Event, Stream, WorkerScope};

use crate::handing;

pub(crate) async fn run(scope: WorkerScope) {
    if std::env::var_os("TEST_WITHOUT_INPUT").is_some() {
        crate::system::close_standard_input();
    }
    let pen = Rc::new(Pen::from_env());
    let tasks = LocalSet::new();
    tasks
        .run_until(async {
            let mut limit = std::env::var("TEST_DESCRIPTORS").ok();
            while let Some(event) = scope.recv().await {
                match event {
                    Event::Connection { stream, info, message } => {
                        if let Some(more) = limit.take() {
                            crate::obey::limit_descriptors(more.parse().unwrap());
                        }
                        if let Ok(Order::Echo(text)) = message.decode() {
                            crate::obey::say(&scope, &Said::Echo(text, 1));
                        }
                        let scope = scope.clone();
                        let pen = Rc::clone(&pen);
                        tokio::task::spawn_local(converse(scope, stream, info, pen));
                    }
                    other => crate::obey::obey(&scope, other),
                }
            }
        })
        .await;
    tasks.await;
}

/// Answers requests until the client ends.
async fn converse(scope: WorkerScope, mut stream: Stream, info: ConnectionInfo, pen: Rc<Pen>) {
    let mut unread = Vec::new();
    let mut served = false;
    while let Some(path) = request(&mut stream, &mut unread).await {
        if !std::mem::replace(&mut served, true) {
            pen.note(&stream, "served");
        }
        if handing::is_another_workers(&scope, &info, &path) {
            let read = std::mem::take(&mut unread);
            match handing::hand_back(&scope, stream, &info, &path, read).await {
                Ok(()) => return,
                Err((mut stream, why)) => {
                    let length = why.len();
                    let answer = format!("HTTP/1.1 500 x\r\ncontent-length: {length}\r\n\r\n{why}");
                    let _ = stream.write_all(answer.as_bytes()).await;
                    return;
                }
            }
        }
        let body = match path.as_str() {
            "/panic" => panic!("asked for by a client"),
            "/exit" => std::process::exit(9),
            "/bytes" => {
                stream.read_to_end(&mut unread).await.unwrap();
                std::mem::take(&mut unread)
            }
            path => match handing::sum(&mut stream, path, &mut unread).await {
                Some(sum) => sum.into_bytes(),
                None => {
                    crate::obey::obey_path(&scope, path);
                    unread.drain(..head_end(&unread));
                    facts(&stream, &info).into_bytes()
                }
            },
        };
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        if stream.write_all(&[head.as_bytes(), &body].concat()).await.is_err() {
            return;
        }
    }
}

/// The path of the next request, once its head is whole in `unread`.
pub(crate) async fn request(stream: &mut Stream, unread: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(end) = unread.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&unread[..end]).into_owned();
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            return Some(path);
        }
        if stream.read_buf(unread).await.ok()? == 0 {
            return None;
        }
    }
}

/// Where the head that is whole in `unread` ends.
fn head_end(unread: &[u8]) -> usize {
    unread.windows(4).position(|four| four == b"\r\n\r\n").map_or(0, |end| end + 4)
}

fn facts(stream: &Stream, info: &ConnectionInfo) -> String {
    let flags = rustix::fs::fcntl_getfl(stream).unwrap();
    let proxied = info.proxied.as_deref();
    fn bytes(it: Option<&[u8]>) -> std::borrow::Cow<'_, str> {
        it.map_or("none".into(), String::from_utf8_lossy)
    }
    format!(
        "worker={} pid={} reqno={} id={} peer={} listener={} route={} descriptor={} \
         nonblocking={} lost={} by={} name={} alpn={} unique={} message={}\n",
        std::env::var("VESTIBULE_WORKER").unwrap(),
        std::process::id(),
        info.message().decode::<u64>().map_or("none".to_owned(), |reqno| reqno.to_string()),
        info.id,
        info.peer.map_or("none".to_owned(), |peer| peer.to_string()),
        info.listener,
        info.route,
        stream.as_fd().as_raw_fd(),
        flags.contains(rustix::fs::OFlags::NONBLOCK),
        crate::obey::LOST.load(std::sync::atomic::Ordering::Relaxed),
        info.handed_back_by.as_deref().map_or("nobody", |by| &**by),
        proxied.and_then(|it| it.server_name.as_deref()).unwrap_or("none"),
        bytes(proxied.and_then(|it| it.alpn.as_deref())),
        bytes(proxied.and_then(|it| it.unique_id.as_deref())),
        String::from_utf8_lossy(info.message().as_bytes()).replace(' ', ""),
    )
}

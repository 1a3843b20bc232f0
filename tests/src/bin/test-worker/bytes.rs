//! A worker that says back every byte of a connection when its client has ended, whatever the bytes are.
//! A connection that begins with a request to hand it back goes to another worker first.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::LocalSet;
use vestibule_worker::{ConnectionInfo, Event, Stream, WorkerScope};

use crate::{handing, own};

pub(crate) async fn run(scope: WorkerScope) {
    let tasks = LocalSet::new();
    tasks
        .run_until(async {
            while let Some(event) = scope.recv().await {
                match event {
                    Event::Connection { stream, info, .. } => {
                        tokio::task::spawn_local(say_back(scope.clone(), stream, info));
                    }
                    other => crate::obey::obey(&scope, other),
                }
            }
        })
        .await;
    tasks.await;
}

async fn say_back(scope: WorkerScope, mut stream: Stream, info: ConnectionInfo) {
    let mut read = Vec::new();
    if info.handed_back_by.is_none()
        && let Some(path) = own::request(&mut stream, &mut read).await
        && handing::is_another_workers(&scope, &info, &path)
    {
        handing::hand_back(&scope, stream, &info, &path, read).await.unwrap();
        return;
    }
    stream.read_to_end(&mut read).await.unwrap();
    let head = format!(
        "HTTP/1.1 200 OK\r\nroute: {}\r\npeer: {}\r\nby: {}\r\nworker: {}\r\ncontent-length: {}\r\n\r\n",
        info.route,
        info.peer.map_or("none".to_owned(), |peer| peer.to_string()),
        info.handed_back_by.as_deref().map_or("nobody", |by| &**by),
        scope.name(),
        read.len(),
    );
    // A client that is gone has nobody who compares.
    let _ = stream.write_all(&[head.as_bytes(), &read].concat()).await;
}

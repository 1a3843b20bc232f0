//! A socket.io server, one of several. Its cookie has the router send a client's next connections here,
//! where the client's session is.

use std::error::Error;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::HeaderValue;
use axum::http::header::{COOKIE, SET_COOKIE};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use socketioxide::SocketIo;
use socketioxide::extract::{AckSender, Data, SocketRef};
use vestibule_worker::WorkerScope;

fn main() -> Result<(), Box<dyn Error>> {
    let scope = WorkerScope::from_env()?;
    let me = Arc::new(Me::new(scope.name())?);
    let (socket_io, io) = SocketIo::new_layer();
    let name = scope.name().to_owned();
    io.ns("/", async move |socket: SocketRef| {
        // Answers with what was said and by whom it was heard.
        socket.on("say", async move |Data(words): Data<String>, answer: AckSender| {
            // The client may be gone.
            let _ = answer.send(&vec![words, name.clone()]);
        });
    });
    let sign = from_fn(move |request: Request, next: Next| sign(Arc::clone(&me), request, next));
    let app = Router::new().layer(socket_io).layer(sign);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(scope.serve(app))?;
    Ok(())
}

/// What a worker says of itself in each answer.
struct Me {
    name: HeaderValue,
    /// `worker=1.NAME`: what stands before the dot is the program's own.
    cookie: String,
    set_cookie: HeaderValue,
}

impl Me {
    fn new(name: &str) -> Result<Self, Box<dyn Error>> {
        let cookie = format!("worker=1.{name}");
        let set_cookie = format!("{cookie}; Path=/; HttpOnly; SameSite=Lax").parse()?;
        Ok(Self { name: name.parse()?, cookie, set_cookie })
    }

    fn is_named_by(&self, request: &Request) -> bool {
        let fields =
            request.headers().get_all(COOKIE).iter().filter_map(|field| field.to_str().ok());
        fields.flat_map(|field| field.split(';')).any(|cookie| cookie.trim() == self.cookie)
    }
}

async fn sign(me: Arc<Me>, request: Request, next: Next) -> Response {
    let is_known = me.is_named_by(&request);
    let mut response = next.run(request).await;
    response.headers_mut().insert("x-worker", me.name.clone());
    if !is_known {
        response.headers_mut().append(SET_COOKIE, me.set_cookie.clone());
    }
    response
}

//! One customer's worker: it knows who comes from what the login worker posted with the connection.

use std::error::Error;

use axum::Router;
use vestibule_worker::{ConnectInfo, ConnectionInfo, Extension, Message, WorkerScope};

fn main() -> Result<(), Box<dyn Error>> {
    let scope = WorkerScope::from_env()?.message::<String>();
    let name = scope.name().to_owned();
    let app = Router::new().fallback(
        move |ConnectInfo(info): ConnectInfo<ConnectionInfo>,
              Extension(Message(customer)): Extension<Message<String>>| {
            let by = info.handed_back_by.as_deref().map_or("nobody", |by| by).to_owned();
            let line = format!("customer={customer} worker={name} by={by}\n");
            async move { line }
        },
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(scope.serve(app))?;
    Ok(())
}

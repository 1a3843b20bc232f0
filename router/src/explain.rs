//! `vestibule explain`: what becomes of a client that somebody describes.

use std::io::{self, Write};
use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use vestibule_router::config::{Config, Overrides};
use vestibule_router::inspect::label::{Label, NONE};
use vestibule_router::inspect::normal;
use vestibule_router::route::imagine::Imagined;

/// The options of `explain`: what is not said the client does not have.
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// The file.
    #[arg(value_name = "CONFIG")]
    pub(crate) config: PathBuf,
    /// The client's address; without one it is a client of a Unix-domain socket.
    #[arg(long, value_name = "ADDRESS", env = "VESTIBULE_PEER")]
    peer: Option<IpAddr>,
    /// Name of the listener where it comes in. Default: the first one.
    #[arg(long, value_name = "NAME", env = "VESTIBULE_LISTENER")]
    listener: Option<String>,
    /// The client's user, by name or number, on a Unix-domain socket.
    #[arg(long, value_name = "USER", env = "VESTIBULE_PEER_USER")]
    peer_user: Option<String>,
    /// Its security context, or `none`.
    #[arg(long, value_name = "CONTEXT", env = "VESTIBULE_PEER_CONTEXT")]
    peer_context: Option<String>,
    /// The name that it asks for with TLS.
    #[arg(long, value_name = "NAME", env = "VESTIBULE_SNI", value_parser = name)]
    sni: Option<String>,
    /// A protocol that it offers with TLS; can be there several times.
    #[arg(long, value_name = "PROTOCOL", env = "VESTIBULE_ALPN")]
    alpn: Vec<String>,
    /// It begins with HTTP/2 in clear.
    #[arg(long, env = "VESTIBULE_HTTP2")]
    http2: bool,
    /// The host that its first request is for.
    #[arg(long, value_name = "NAME", env = "VESTIBULE_HOST", value_parser = name)]
    host: Option<String>,
    /// The path of it, perhaps with a query. Default: /
    #[arg(long, value_name = "PATH", env = "VESTIBULE_PATH", value_parser = path)]
    path: Option<String>,
    /// A header field of it; can be there several times.
    #[arg(long = "header", value_name = "NAME: VALUE", env = "VESTIBULE_HEADER", value_parser = header)]
    headers: Vec<(String, String)>,
}

fn name(text: &str) -> Result<String, String> {
    match normal::host(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err("write a name, such as `app.example.org`".to_owned()),
    }
}

fn path(text: &str) -> Result<String, String> {
    match normal::path(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err("write a path that begins with `/`, such as `/api/v1?v=2`".to_owned()),
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once(':') {
        Some((name, value)) if !name.is_empty() && !name.contains(char::is_whitespace) => {
            Ok((name.to_owned(), value.trim().to_owned()))
        }
        _ => Err("write a name, a colon and a value, such as `X-Tenant: acme`".to_owned()),
    }
}

/// Why there is nothing to explain.
#[derive(Debug)]
pub(crate) enum NotExplained {
    /// The configuration is wrong; what is has been said.
    Configuration,
    /// What was asked makes no sense.
    Usage(String),
}

/// Reads a configuration and prints what becomes of the client.
pub(crate) fn run(explain: &Explain, overrides: &Overrides) -> Result<(), NotExplained> {
    let (config, _) = Config::load(&explain.config, overrides).map_err(|mistakes| {
        crate::check::show(&explain.config, &[], &mistakes);
        NotExplained::Configuration
    })?;
    let usage = |text: String| NotExplained::Usage(text);
    let listener = match &explain.listener {
        None => 0,
        Some(name) => {
            let found = config.listeners.iter().position(|listener| *listener.name == *name);
            let names: Vec<_> =
                config.listeners.iter().map(|it| format!("`{}`", *it.name)).collect();
            found.ok_or_else(|| {
                usage(format!("there is no listener `{name}`; there is {}", names.join(", ")))
            })?
        }
    };
    let context = match explain.peer_context.as_deref() {
        None | Some(NONE) => None,
        Some(text) => {
            Some(Label::parse(text).map_err(|error| usage(format!("`{text}`: {error}")))?)
        }
    };
    let client = Imagined {
        peer: explain.peer.map(|peer| peer.to_canonical()),
        user: explain.peer_user.clone(),
        context,
        server_name: explain.sni.clone(),
        alpn: explain.alpn.clone(),
        http2: explain.http2,
        host: explain.host.clone(),
        path: explain.path.clone(),
        query: Vec::new(),
        headers: explain.headers.clone(),
        cookies: Vec::new(),
    };
    let page = page(explain, &config, &client, listener)?;
    // Nobody reads it any more: then there is nobody to tell either.
    let _ = io::stdout().write_all(page.as_bytes());
    Ok(())
}

/// The page: of the script, where there is one, and the routes.
#[cfg(feature = "script")]
fn page(
    explain: &Explain,
    config: &Config,
    client: &Imagined,
    listener: usize,
) -> Result<String, NotExplained> {
    let page = match config.try_script() {
        None => config.explain(client, listener),
        Some(Ok(mut script)) => config.explain_scripted(client, listener, &mut script),
        Some(Err(mistake)) => {
            crate::check::show(&explain.config, &[], &[mistake]);
            return Err(NotExplained::Configuration);
        }
    };
    page.map_err(|error| NotExplained::Usage(error.to_string()))
}

/// The page of the routes.
#[cfg(not(feature = "script"))]
fn page(
    _: &Explain,
    config: &Config,
    client: &Imagined,
    listener: usize,
) -> Result<String, NotExplained> {
    config.explain(client, listener).map_err(|error| NotExplained::Usage(error.to_string()))
}

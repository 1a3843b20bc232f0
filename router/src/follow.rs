//! `vestibule trace`: decisions as they are made, or the last rejections, with what each rule said.

use std::time::Duration;

use clap::{Args, ValueEnum};
use ipnet::IpNet;
use vestibule_protocol::supervision::TraceEntry;
use vestibule_router::route::pattern;
use vestibule_router::supervisor::admin::wire::{Question, Refusal};

use crate::ask::{AskError, Socket};

/// How often a running vestibule is asked for more.
const AGAIN: Duration = Duration::from_millis(500);

/// The options of `trace`.
#[derive(Debug, Args)]
pub(crate) struct Trace {
    #[command(flatten)]
    socket: Socket,
    /// Only clients of this network.
    #[arg(long, value_name = "NET", env = "VESTIBULE_PEER", value_parser = network)]
    peer: Option<IpNet>,
    /// What happened already, instead of what happens from now on.
    #[arg(long, value_name = "WHAT", env = "VESTIBULE_LAST")]
    last: Option<Last>,
}

/// What happened already.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Last {
    /// The last rejections, at most 64 and one each 10 ms.
    Rejected,
}

fn network(text: &str) -> Result<IpNet, String> {
    pattern::network(text).map_err(|_| "write a network, such as `10.0.0.0/8`".to_owned())
}

/// Prints what is noted; without `--last` until it is interrupted or nobody answers any more.
pub(crate) fn run(trace: &Trace) -> Result<(), AskError> {
    let mut since = 0;
    loop {
        let rejected = trace.last.is_some();
        let peer = trace.peer.map(|peer| peer.to_string());
        let question = Question::Trace { rejected, since, peer };
        let entries = match crate::ask::trace(&trace.socket, &question) {
            // Another router comes: it goes on from there.
            Err(AskError::Refused { reason: Refusal::State, .. }) if !rejected => Vec::new(),
            entries => entries?,
        };
        for entry in entries {
            since = since.max(entry.number);
            if is_about(trace.peer, entry.peer.as_deref()) && !crate::ask::say(&text(&entry)) {
                // Nobody reads it any more.
                return Ok(());
            }
        }
        if rejected {
            return Ok(());
        }
        std::thread::sleep(AGAIN);
    }
}

fn is_about(peers: Option<IpNet>, peer: Option<&str>) -> bool {
    let Some(peers) = peers else { return true };
    let peer = peer.and_then(|peer| peer.parse::<std::net::SocketAddr>().ok());
    peer.is_some_and(|peer| peers.contains(&peer.ip().to_canonical()))
}

fn text(entry: &TraceEntry) -> String {
    let (seconds, millis) = (entry.time / 1000, entry.time % 1000);
    let peer = entry.peer.as_deref().unwrap_or("a Unix client");
    let mut text = format!(
        "{seconds}.{millis:03} #{} {peer} on {}: route {}, {}",
        entry.id, entry.listener, entry.route, entry.outcome
    );
    for (rule, said) in &entry.rules {
        text.push_str(&format!("\n    {rule}: {said}"));
    }
    text
}

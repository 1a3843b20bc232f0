//! `node-cluster`: Node's own way to share a port, its primary handing connections to workers one by one.

use std::process::Stdio;

use super::{Contender, Folder, Kind, Router, StartError, Started, free_port};
use crate::processes::{Server, Stop, find_program, tied};

const PROGRAM: &str = include_str!("node-cluster.js");

pub(super) fn start(workers: usize, timed: bool) -> Result<Started, StartError> {
    let Some(program) = find_program("node") else {
        return Ok(Started::Skipped("no program node".into()));
    };
    let folder = Folder::new("node")?;
    let port = free_port()?;
    let script = folder.write("cluster.js", PROGRAM)?;
    let mut command = tied(program.as_os_str(), ["--expose-internals"])?;
    command.arg(script).arg(port.to_string()).arg(workers.to_string());
    if timed {
        command.arg("timed");
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let server = Server::spawn(command, Stop::Terminate)?;
    Ok(Started::Running(Contender {
        kind: Kind::NodeCluster,
        port,
        servers: vec![(server, Router::First)],
        _folder: Some(folder),
    }))
}

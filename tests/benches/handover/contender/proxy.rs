//! `nginx` and `haproxy`: what moves bytes instead of descriptors, in front of workers of its own that are as the direct ones.

use std::path::Path;
use std::process::Stdio;

use super::{Contender, Folder, Kind, Router, StartError, Started, direct, free_port};
use crate::processes::{Server, Stop, find_program, tied};

/// Where distributions put nginx's stream module when it is not built in.
const STREAM_MODULES: [&str; 2] = [
    "/usr/lib/nginx/modules/ngx_stream_module.so",
    "/usr/lib64/nginx/modules/ngx_stream_module.so",
];

pub(super) fn start_nginx(workers: usize) -> Result<Started, StartError> {
    let Some(program) = find_program("nginx") else {
        return Ok(Started::Skipped("no program nginx".into()));
    };
    let Some(module) = STREAM_MODULES.into_iter().find(|module| Path::new(module).is_file()) else {
        return Ok(Started::Skipped("nginx has no stream module".into()));
    };
    let folder = Folder::new("nginx")?;
    let port = free_port()?;
    let (upstream, upstream_port) = direct::spawn(workers, false)?;
    let path = folder.path().display();
    // reuseport: without it both of nginx's processes are woken for each connection.
    let configuration = folder.write(
        "nginx.conf",
        &format!(
            "daemon off;
worker_processes {workers};
load_module {module};
pid {path}/nginx.pid;
error_log stderr error;
events {{ worker_connections 8192; }}
stream {{
    server {{
        listen 0.0.0.0:{port} reuseport backlog=4096;
        proxy_pass 127.0.0.1:{upstream_port};
    }}
}}
"
        ),
    )?;
    let mut command = tied(
        program.as_os_str(),
        ["-e".as_ref(), "stderr".as_ref(), "-c".as_ref(), configuration.as_os_str()],
    )?;
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let server = Server::spawn(command, Stop::Terminate)?;
    Ok(Started::Running(in_front(Kind::Nginx, port, server, upstream, folder)))
}

pub(super) fn start_haproxy(workers: usize) -> Result<Started, StartError> {
    let Some(program) = find_program("haproxy") else {
        return Ok(Started::Skipped("no program haproxy".into()));
    };
    let folder = Folder::new("haproxy")?;
    let port = free_port()?;
    let (upstream, upstream_port) = direct::spawn(workers, false)?;
    let configuration = folder.write(
        "haproxy.cfg",
        &format!(
            "global
    maxconn 4096
    nbthread {workers}
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen bench
    bind 0.0.0.0:{port} backlog 4096
    server workers 127.0.0.1:{upstream_port}
"
        ),
    )?;
    let mut command =
        tied(program.as_os_str(), ["-db".as_ref(), "-f".as_ref(), configuration.as_os_str()])?;
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let server = Server::spawn(command, Stop::Terminate)?;
    Ok(Started::Running(in_front(Kind::Haproxy, port, server, upstream, folder)))
}

fn in_front(
    kind: Kind,
    port: u16,
    proxy: Server,
    upstream: Vec<Server>,
    folder: Folder,
) -> Contender {
    let mut servers = vec![(proxy, Router::All)];
    servers.extend(upstream.into_iter().map(|server| (server, Router::None)));
    Contender { kind, port, servers, _folder: Some(folder) }
}

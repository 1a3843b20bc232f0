//! `program…`: `vestibule run` as it is installed, supervisor and router and workers, with different routes. What differs between
//! these is what rules cost.

use std::path::PathBuf;
use std::process::Stdio;
use std::{env, fmt::Write};

use rustix::process::geteuid;

use super::{Contender, Folder, Kind, Router, StartError, Started, free_port};
use crate::load::{Asking, host, network};
use crate::processes::{ProcessError, Server, Stop, tied};

/// Rules before the one that matches.
const BEFORE: usize = 9;

pub(super) fn start(kind: Kind, workers: usize) -> Result<Started, StartError> {
    let own = env::current_exe().map_err(|source| ProcessError::Spawn {
        program: "the benchmark's own executable".into(),
        source,
    })?;
    // Cargo puts this executable into a folder beside the program.
    let program: PathBuf =
        own.parent().and_then(|folder| folder.parent()).unwrap_or(&own).join("vestibule");
    if !program.is_file() {
        let path = program.display();
        return Ok(Started::Skipped(format!(
            "no program {path}: cargo build -p vestibule-router, with --release for cargo bench"
        )));
    }
    let folder = Folder::new(kind.name())?;
    let port = free_port()?;
    // The build's folder may be one that only root can enter.
    let user = if geteuid().is_root() { "user = \"root\"\n" } else { "" };
    let mut text = format!(
        "[[listener]]\nname = \"web\"\naddress = \"0.0.0.0:{port}\"\n\
         [[pool]]\nname = \"app\"\ncommand = [{own:?}, \"serve\", \"vestibule-worker\"]\n\
         workers = {workers}\n{user}"
    );
    for number in 0..BEFORE {
        // Writing to a text does not fail.
        let _ = match kind {
            Kind::ProgramNetwork => {
                write!(text, "[[route]]\npeer = \"192.0.2.{number}\"\nreject = 403\n")
            }
            Kind::ProgramHost => {
                write!(text, "[[route]]\nhost = \"{number}.example\"\nreject = 403\n")
            }
            _ => Ok(()),
        };
    }
    let asking = kind.asking();
    for number in 0..asking.kinds() {
        let _ = match asking {
            Asking::Alike => Ok(()),
            Asking::Networks(_) => {
                let network = network(number);
                write!(text, "[[route]]\npeer = \"{network}/24\"\npool = \"app\"\n")
            }
            Asking::Hosts(_) => {
                let host = host(number);
                write!(text, "[[route]]\nhost = \"{host}\"\npool = \"app\"\n")
            }
        };
    }
    // The last one is of who asks whether the program is ready, too.
    text.push_str(match kind {
        Kind::ProgramFewNetworks | Kind::ProgramManyNetworks => {
            "[[route]]\npeer = \"127.0.0.0/24\"\npool = \"app\"\n"
        }
        Kind::ProgramFewHosts | Kind::ProgramManyHosts => {
            "[[route]]\nhost = \"bench.example\"\npool = \"app\"\n"
        }
        Kind::ProgramNetwork => "[[route]]\npeer = \"127.0.0.0/8\"\npool = \"app\"\n",
        Kind::ProgramHost => "[[route]]\nhost = \"bench.example\"\npool = \"app\"\n",
        _ => "[[route]]\npool = \"app\"\n",
    });
    let file = folder.write("vestibule.toml", &text)?;
    let mut command = tied(program.as_os_str(), ["run".as_ref(), file.as_os_str()])?;
    command.arg("--log").arg("error").arg("--admin").arg(folder.path().join("admin.sock"));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let server = Server::spawn(command, Stop::Terminate)?;
    let servers = vec![(server, Router::Below)];
    Ok(Started::Running(Contender { kind, port, servers, _folder: Some(folder) }))
}

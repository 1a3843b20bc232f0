//! The `vestibule` program: the command line, wired to the library.

mod ask;
mod check;
mod cli;
mod demo;
mod explain;
mod follow;
mod log;
mod report;
mod startup;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}

//! The `vestibule` program: the command line, wired to the library.

mod check;
mod cli;
mod demo;
mod startup;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}

//! Where a run of the program has its configuration and its admin socket, and what it says on
//! standard error.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use crate::files::Folder;
use crate::master::vestibule;
use crate::world::{DEADLINE, until};

/// One run's folder.
#[derive(Debug, Default)]
pub struct Place {
    folder: Folder,
}

impl Place {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// The path of something in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes the configuration; its admin socket is here.
    pub fn config(&self, text: &str) -> PathBuf {
        let admin = self.join("admin.sock");
        let text = format!("[admin]\nsocket = \"{}\"\n{text}", admin.display());
        self.folder.write("vestibule.toml", &text, 0o644)
    }

    /// Writes another file.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        self.folder.write(name, text, 0o644)
    }

    /// `vestibule run`, of the program beside this worker.
    pub fn vestibule(&self, worker: &str) -> Command {
        let mut command = self.command(vestibule(worker));
        command.arg("run");
        command
    }

    /// A program that starts `vestibule run`. What it says on standard error is kept here.
    pub fn command(&self, program: impl Into<PathBuf>) -> Command {
        let mut command = Command::new(program.into());
        let log = OpenOptions::new().create(true).append(true).open(self.join("log")).unwrap();
        command.stdin(Stdio::null()).stderr(log).env("VESTIBULE_ADMIN", self.join("admin.sock"));
        command
    }

    /// Asks over the admin socket; the answer.
    pub fn ask(&self, question: &Value) -> Value {
        let mut stream = UnixStream::connect(self.join("admin.sock")).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        writeln!(stream, "{question}").unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// Asks for something that is done.
    pub fn order(&self, question: &Value) -> String {
        let answer = self.ask(question);
        assert_eq!(answer["answer"], "done", "{question}: {answer}");
        answer["text"].as_str().unwrap().to_owned()
    }

    /// Writes another configuration and has it read; what is said to be different. The router has become
    /// it: it is told and asked over one channel. Another one may still be to take over.
    pub fn reload(&self, text: &str) -> String {
        let said = self.order_reload(text);
        self.status();
        said
    }

    /// As [`reload`](Self::reload), where the router may not answer.
    pub fn order_reload(&self, text: &str) -> String {
        self.config(text);
        self.order(&json!({"command": "reload"}))
    }

    /// How it goes.
    pub fn status(&self) -> Value {
        self.ask(&json!({"command": "status"}))["status"].take()
    }

    /// Waits until it says so of itself.
    pub fn until(&self, what: &str, mut state: impl FnMut(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        until(what, || {
            last = self.status();
            state(&last)
        });
        last
    }

    /// Everything that was said on standard error.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.join("log")).unwrap_or_default()
    }

    /// The lines of the log, each a JSON object; other lines are for people.
    pub fn records(&self) -> Vec<Value> {
        let said = self.said();
        // The last line may be under way.
        said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The fields of the records with this message.
    pub fn told(&self, message: &str) -> Vec<Value> {
        let told = |record: &Value| record["fields"]["message"] == message;
        self.records().into_iter().filter(told).collect()
    }

    /// Waits until something is said.
    pub fn says(&self, text: &str) {
        until(&format!("it says {text:?}"), || self.said().contains(text));
    }

    /// Runs a command to its end: its exit code.
    ///
    /// # Panics
    /// It does not end.
    pub fn code(&self, command: &mut Command) -> Option<i32> {
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        let begin = Instant::now();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code();
            }
            if begin.elapsed() > DEADLINE {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("it does not end: {}", self.said());
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

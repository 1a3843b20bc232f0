//! `status --json` is what `docs/status.md` says, to the name and the type.

use std::collections::BTreeSet;

use serde_json::Value;
use vestibule_router::reject::Reason;

use crate::running::{Folder, Running, Who};

/// Every name with its type, as it is documented in the same words.
const SCHEMA: &str = "
version: number
health: text
problems: list
supervisor.pid: number
supervisor.program: text
supervisor.since: number
supervisor.stopping: boolean
router.state: text
router.pid: number
router.epoch: number
router.restarts: number
router.since: number
router.last-exit: null
router.unburied: number
listeners[].name: text
listeners[].address: text
connections.accepted: number
connections.rejected.REASON: number
pools[].name: text
pools[].wanted: number
pools[].ready: number
pools[].queued: number
pools[].delivered: number
pools[].moved: number
pools[].touched: number
pools[].client-gone: number
pools[].undelivered: number
pools[].faults: number
pools[].handed-back: number
pools[].roll: null
pools[].workers[].name: text
pools[].workers[].state: text
pools[].workers[].held: boolean
pools[].workers[].pid: number
pools[].workers[].connections: number
pools[].workers[].restarts: number
pools[].workers[].since: number
pools[].workers[].last-exit: null
pools[].workers[].last-error: null
pools[].workers[].last-lines: list
";

fn flatten(path: &str, value: &Value, into: &mut BTreeSet<String>) {
    let kind = match value {
        Value::Object(members) => {
            for (name, member) in members {
                let name = if path == "connections.rejected" { "REASON" } else { name };
                let dot = if path.is_empty() { "" } else { "." };
                flatten(&format!("{path}{dot}{name}"), member, into);
            }
            return;
        }
        Value::Array(members) if members.iter().any(Value::is_object) => {
            members.iter().for_each(|member| flatten(&format!("{path}[]"), member, into));
            return;
        }
        Value::Array(_) => "list",
        Value::String(_) => "text",
        Value::Number(_) => "number",
        Value::Bool(_) => "boolean",
        Value::Null => "null",
    };
    into.insert(format!("{path}: {kind}"));
}

#[test]
fn the_json_has_the_documented_names_and_types() {
    let folder = Folder::new(Who::Same);
    let running = Running::start(Who::Same, &folder.join("s"), 2);
    running.until_healthy(2);
    running.served_by();
    // The router reads the acknowledgement when it can, the client its answer before that.
    running.until("it is counted", |status| status["pools"][0]["delivered"] == 1);
    let status: Value = serde_json::from_str(&running.succeed(&["status", "--json"])).unwrap();
    let mut found = BTreeSet::new();
    flatten("", &status, &mut found);
    let expected: BTreeSet<String> = SCHEMA.trim().lines().map(str::to_owned).collect();
    assert_eq!(found, expected);

    assert_eq!(status["version"], 1);
    assert_eq!(status["connections"]["accepted"], 1);
    assert_eq!(status["pools"][0]["delivered"], 1);
    assert_eq!(status["supervisor"]["pid"], running.pid());
    let rejected = status["connections"]["rejected"].as_object().unwrap();
    let known = Reason::ALL.map(Reason::as_str);
    assert_eq!(rejected.keys().map(String::as_str).collect::<BTreeSet<_>>(), known.into());
}

#[test]
fn every_name_and_every_reason_is_documented() {
    let page = include_str!("../../../docs/status.md");
    for line in SCHEMA.trim().lines() {
        let (name, _) = line.split_once(':').unwrap();
        assert!(page.contains(&format!("| `{name}` |")), "{name} is not documented");
    }
    for reason in Reason::ALL.map(Reason::as_str) {
        assert!(page.contains(&format!("`{reason}`")), "{reason} is not documented");
    }
}

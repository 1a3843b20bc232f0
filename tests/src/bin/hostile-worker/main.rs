//! A worker that breaks the rules, written against the protocol alone. Its first argument says how;
//! see `main` for all of them. With `TEST_HOSTILE` only so many workers of the pool do, and the others
//! are `test-worker`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::exit,
    reason = "a test's worker fails by panicking, and ends when it is told to"
)]

mod changes;
mod connections;
mod faults;
mod handing;
mod packets;
mod port;
mod strangers;
mod system;

use std::os::unix::process::CommandExt;

use vestibule_protocol::message::RefusalReason;

use self::port::Port;

fn main() {
    let mut good =
        std::process::Command::new(std::env::var_os("TEST_GOOD_WORKER").unwrap_or_default());
    good.arg("recv");
    if is_to_behave() {
        panic!("{}", good.exec());
    }
    if std::env::args().nth(1).is_some_and(|behaviour| behaviour == "short-of-descriptors") {
        panic!("{}", good.env("TEST_DESCRIPTORS", "0").exec());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let port = Port::inherited();
        let behaviour = std::env::args().nth(1).unwrap_or_default();
        match behaviour.as_str() {
            // Before hello.
            "never-greets" => port.wait_for_the_end().await,
            "acknowledges-before-hello" => packets::acknowledges_before_hello(port).await,
            "speaks-before-attach" => packets::speaks_before_attach(port).await,
            // With connections.
            "holds" => connections::holds(port).await,
            "dies" => connections::dies(port).await,
            "refuses-full" => connections::refuses(port, RefusalReason::Full).await,
            "refuses-unsupported" => connections::refuses(port, RefusalReason::Unsupported).await,
            "refuses-blocking" => connections::refuses_blocking(port).await,
            "reads-and-refuses" => connections::reads_and_refuses(port).await,
            "reads-and-dies" => connections::reads_and_dies(port).await,
            "writes-and-dies" => connections::writes_and_dies(port).await,
            "refuses-and-reads-on" => connections::refuses_and_reads_on(port).await,
            "lingers" => connections::lingers(port).await,
            "hangs-up" => connections::hangs_up(port).await,
            "leaves-a-child" => connections::leaves_a_child(port).await,
            "child" => connections::child(port).await,
            "refuses-behind-missing" => {
                connections::refuses(port, RefusalReason::BehindMissing).await;
            }
            // With what an earlier router sent, once another one attaches.
            "settles-again" => changes::settles_again(port).await,
            "refuses-what-it-took" => changes::refuses_what_it_took(port).await,
            "claims-less" => changes::claims(port, |last| last - 1).await,
            "claims-more" => changes::claims(port, |last| last + 1).await,
            "takes-as-another" => changes::takes_as_another(port).await,
            "hangs-up-later" => changes::hangs_up(port).await,
            "leaves-a-child-later" => changes::leaves_a_child(port).await,
            "reads-and-refuses-later" => changes::reads_and_refuses(port).await,
            "reads-and-dies-later" => changes::reads_and_dies(port).await,
            // With what it hands back.
            "hands-back" => handing::hands_back(port, &std::env::args().nth(2).unwrap()).await,
            "dies-of-what-was-read" => handing::dies_of_what_was_read(port).await,
            // With its port.
            "deaf" => faults::deaf(port).await,
            "greets-draining" => faults::greets_draining(port).await,
            "floods" => faults::floods(port).await,
            "half-a-hello" => faults::half_a_hello(port).await,
            "hoards-descriptors" => faults::hoards_descriptors(port).await,
            // With packets, at the first offer or message.
            "acknowledges-more" => packets::acknowledges_more(port).await,
            "settles-twice" => packets::settles_twice(port).await,
            "garbage" => packets::sends(port, b"garbage").await,
            "short" => packets::sends(port, b"v").await,
            "oversized" => packets::oversized(port).await,
            "unknown-kind" => packets::unknown_kind(port).await,
            "greets-twice" => packets::greets_twice(port).await,
            "unasked-descriptor" => packets::unasked_descriptor(port).await,
            "unannounced-descriptor" => packets::unannounced_descriptor(port).await,
            "sends-files" => strangers::sends_files(port).await,
            "holds-file" => strangers::holds_file(port).await,
            "child-with-files" => strangers::child_with_files(port),
            "sends-lingering" => strangers::sends_lingering(port).await,
            "leaves-lingering" => strangers::leaves_lingering(port).await,
            "four-gigabytes" => strangers::four_gigabytes(port).await,
            "sends-a-port" => packets::sends_a_port(port).await,
            "unsealed-memory" => packets::unsealed_memory(port).await,
            "missing-memory" => packets::missing_memory(port).await,
            "unknown-format" => packets::unknown_format(port).await,
            other => panic!("no behaviour {other:?}"),
        }
    });
}

fn is_to_behave() -> bool {
    let Some(hostile) = std::env::var_os("TEST_HOSTILE") else { return false };
    let hostile: u32 = hostile.to_str().unwrap().parse().unwrap();
    let name = std::env::var("VESTIBULE_WORKER").unwrap();
    let number: u32 = name.rsplit('-').next().unwrap().parse().unwrap();
    number > hostile || is_a_later_one()
}

/// Whether another process was hostile before: `TEST_HOSTILE_ONCE` names a file that the first one makes.
fn is_a_later_one() -> bool {
    std::env::var_os("TEST_HOSTILE_ONCE")
        .is_some_and(|path| std::fs::File::create_new(path).is_err())
}

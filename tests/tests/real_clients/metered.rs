//! Every client, every way to the meter, streaming and not: its own answer is right, and the ledger has the bill.
use std::process::Command;
use std::time::Instant;

use support::process;
use support::provider::{Asked, Billed, Record, Reply, Script};
use support::stage::Bottle;

use crate::client::{Api, Client, Reader};
use crate::scene::{ANSWERED, Scene};

/// An answer whose bill has something of every class that this client's provider tells.
pub fn priced(client: Client) -> Reply {
    let reasoning = if client.provider() == "claude" { 0 } else { 16 };
    Reply { cache_write: 7, cache_read: 11, reasoning, ..Reply::default() }
}

/// Asks on every way, in a bottle each.
fn assert_metered(client: Client) {
    assert_metered_by(client, priced(client));
}

/// The same of a provider with a script of its own.
fn assert_metered_by(client: Client, script: impl Into<Script> + Send) {
    Scene::with(script, "", |scene| {
        for (way, stream) in client.rows() {
            let bottle = scene.stage.bottle(&format!("{way:?}-{stream}").to_lowercase(), &[]);
            let mut command = scene.ask(client, way, stream, Reader::Program, &bottle);
            let row = format!("{client:?} by {way:?}{}", if stream { ", streamed" } else { "" });
            assert_right_and_billed(scene, client, &bottle, &mut command, &row);
        }
    });
}

/// Runs a client that asks in this bottle. Its answer is the provider's, and the ledger has the provider's bill.
pub fn assert_right_and_billed(
    scene: &Scene,
    client: Client,
    bottle: &Bottle,
    command: &mut Command,
    row: &str,
) {
    let before = scene.stage.provider.billing_records().len();
    let began = Instant::now();
    let output = process::run(command, ANSWERED);
    assert_eq!(output.code, Some(0), "{row}: {output:?}\n{}", scene.stage.daemon.logs());
    let asked = scene.stage.provider.billing_records().split_off(before);
    let right = match client {
        Client::Curl(_) => String::from_utf8(asked.last().expect(row).response_body.clone()).unwrap(),
        _ => priced(client).text(),
    };
    assert_eq!(client.answer(&output.stdout), right, "{row}: {output:?}");
    let bill = assert_billed(scene, bottle, &asked, row);
    println!("{row}: {} tokens in {} requests, {:?}", bill.total(), asked.len(), began.elapsed());
}

/// The ledger has of this bottle what these requests were billed, class by class, and all of it reported.
fn assert_billed(scene: &Scene, bottle: &Bottle, asked: &[Record], row: &str) -> Billed {
    let flows = scene.stage.flows(&bottle.name);
    assert!(flows.iter().all(|flow| flow["provenance"] == "reported"), "{row}: {flows:#?}");
    let told = ["input", "cache_write", "cache_read", "output", "reasoning"]
        .map(|class| flows.iter().map(|flow| flow[class].as_u64().unwrap()).sum::<u64>());
    let bill = asked.iter().fold(Billed::default(), |all, record| all.plus(record.billed));
    let Billed { input, cache_write, cache_read, output, reasoning } = bill;
    assert_eq!(told, [input, cache_write, cache_read, output, reasoning], "{row}: {flows:#?}");
    bill
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_metered_claude_code() {
    assert_metered(Client::ClaudeCode);
}

/// It asks for whole answers where a stream is not to be had.
#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_metered_claude_code_without_streams() {
    let client = Client::ClaudeCode;
    let streamless = move |asked: &Asked| if asked.stream { Reply::error(404) } else { priced(client) };
    assert_metered_by(client, Script::by(streamless));
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_metered_codex() {
    assert_metered(Client::Codex);
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_metered_codex_logged_in() {
    assert_metered(Client::CodexLogin);
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_metered_python() {
    for api in Api::ALL {
        assert_metered(Client::Python(api));
    }
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_metered_node() {
    for api in Api::ALL {
        assert_metered(Client::Node(api));
    }
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_metered_curl() {
    for api in Api::ALL {
        assert_metered(Client::Curl(api));
    }
}

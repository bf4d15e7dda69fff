//! Every client, every way to the meter, streaming and not: its own answer is right, and the ledger has the bill.
use std::collections::BTreeSet;
use std::process::Command;
use std::time::Instant;

use support::process::{self, Output};
use support::provider::{Asked, Billed, Record, Reply, Script};
use support::stage::Bottle;

use crate::client::{Api, Client, Reader, Way};
use crate::scene::{ANSWERED, Scene};

/// In each chunk of a stream of Chat Completions.
const CHUNK: &str = "chat.completion.chunk";
/// In each but the one with the usage, where usage was asked for.
const NO_USAGE: &str = ",\"usage\":null";

/// An answer whose bill has something of every class that this client's provider tells.
pub fn priced(client: Client) -> Reply {
    let (cache_write, reasoning) = match client.provider() {
        "claude" | "bedrock" => (7, 0),
        "gemini" => (0, 16),
        _ => (7, 16),
    };
    Reply { cache_write, cache_read: 11, reasoning, ..Reply::default() }
}

/// Asks on every way, in a bottle each.
fn assert_metered(client: Client) {
    Scene::with(priced(client), "", |scene| assert_metered_in(scene, client));
}

/// The same in a scene whose provider has a script of its own.
fn assert_metered_in(scene: &Scene, client: Client) {
    for (way, stream) in client.rows() {
        let bottle = scene.stage.bottle(&format!("{way:?}-{stream}").to_lowercase(), &[]);
        let mut command = scene.ask(client, way, stream, Reader::Program, &bottle);
        let row = format!("{client:?} by {way:?}{}", if stream { ", streamed" } else { "" });
        let told = assert_right_and_billed(scene, client, &bottle, &mut command, &row);
        if let Some(words) = client.says_http2(way) {
            assert!(told.stderr.contains(words), "{row}: not by HTTP/2: {}", told.stderr);
            println!("{row}: by HTTP/2");
        }
    }
}

/// Runs a client that asks in this bottle to its end: what it printed. Its answer is the provider's, and the ledger has
/// the provider's bill.
pub fn assert_right_and_billed(
    scene: &Scene,
    client: Client,
    bottle: &Bottle,
    command: &mut Command,
    row: &str,
) -> Output {
    let before = scene.stage.provider.billing_records().len();
    let began = Instant::now();
    let output = process::run(command, ANSWERED);
    assert_eq!(output.code, Some(0), "{row}: {output:?}\n{}", scene.stage.daemon.logs());
    let asked = scene.stage.provider.billing_records().split_off(before);
    let last = asked.last().expect(row);
    assert_eq!(last.status, client.status(), "{row}: {last:#?}");
    let right = match client {
        Client::Curl(_) => as_asked_for(&String::from_utf8(last.response_body.clone()).unwrap()),
        _ => priced(client).text(),
    };
    assert_eq!(client.answer(&output.stdout), right, "{row}: {output:?}");
    let bill = assert_billed(scene, bottle, &asked, row);
    println!("{row}: {} tokens in {} requests, {:?}", bill.total(), asked.len(), began.elapsed());
    output
}

/// An answer of the provider's as a client hears it: chunks without the usage for which the meter asked.
fn as_asked_for(answer: &str) -> String {
    let events = answer.split_inclusive("\n\n");
    let asked_for = events.filter(|event| !(event.contains(CHUNK) && event.contains("\"choices\":[]")));
    asked_for
        .map(|event| if event.contains(CHUNK) { event.replace(NO_USAGE, "") } else { event.into() })
        .collect()
}

/// The ledger has of this bottle what these requests were billed, class by class, and all of it reported.
pub fn assert_billed(scene: &Scene, bottle: &Bottle, asked: &[Record], row: &str) -> Billed {
    let flows = scene.stage.flows(&bottle.name);
    assert!(flows.iter().all(|flow| flow["provenance"] == "reported"), "{row}: {flows:#?}");
    let told = ["input", "cache_write", "cache_read", "output", "reasoning"]
        .map(|class| flows.iter().map(|flow| flow[class].as_u64().unwrap()).sum::<u64>());
    let bill = asked.iter().fold(Billed::default(), |all, record| all.plus(record.billed));
    let Billed { input, cache_write, cache_read, output, reasoning } = bill;
    assert_eq!(told, [input, cache_write, cache_read, output, reasoning], "{row}: {flows:#?}");
    bill
}

/// Which protocol clients choose that do not say so themselves, of those that the meter offers: asked of the provider
/// itself, which offers the same.
#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_metered_protocols() {
    let clients = [
        (Client::ClaudeCode, "HTTP/1.1"),
        (Client::GeminiCli, "HTTP/1.1"),
        (Client::Python(Api::Messages), "HTTP/1.1"),
        (Client::Node(Api::Messages), "HTTP/1.1"),
        (Client::ClaudeCodeBedrock, "HTTP/1.1"),
        (Client::Python(Api::Bedrock), "HTTP/1.1"),
        (Client::Python(Api::Converse), "HTTP/1.1"),
        (Client::Node(Api::Bedrock), "HTTP/1.1"),
        (Client::Node(Api::Converse), "HTTP/2"),
    ];
    for (client, chosen) in clients {
        Scene::with(priced(client), "", |scene| {
            let provider = &scene.stage.provider;
            let bottle = scene.stage.bottle("nobody", &[]);
            let mut command = scene.bare(client, Way::Gateway, true, Reader::Program, &bottle);
            for variable in [
                "ANTHROPIC_BASE_URL",
                "GOOGLE_GEMINI_BASE_URL",
                "ANTHROPIC_BEDROCK_BASE_URL",
                "AWS_ENDPOINT_URL_BEDROCK_RUNTIME",
            ] {
                command.env(variable, provider.https_url());
            }
            for variable in ["NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE", "AWS_CA_BUNDLE"] {
                command.env(variable, provider.ca_file());
            }
            let told = process::run(&mut command, ANSWERED);
            assert_eq!(told.code, Some(0), "{told:?}");
            let protocols: BTreeSet<&str> = provider.billing_records().iter().map(protocol).collect();
            println!("{client:?} asks by {protocols:?} where both are offered");
            assert_eq!(protocols, BTreeSet::from([chosen]), "{client:?}");
        });
    }
}

fn protocol(record: &Record) -> &'static str {
    if record.http2 { "HTTP/2" } else { "HTTP/1.1" }
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
    for client in [Client::ClaudeCode, Client::ClaudeCodeBedrock] {
        let streamless = move |asked: &Asked| if asked.stream { Reply::error(404) } else { priced(client) };
        Scene::with(Script::by(streamless), "", |scene| assert_metered_in(scene, client));
    }
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_metered_codex() {
    assert_metered(Client::Codex);
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_metered_codex_compressed() {
    for client in [Client::Codex, Client::CodexLogin] {
        Scene::with(Script::from(priced(client)).compressing_messages(), "", |scene| {
            assert_metered_in(scene, client);
            assert!(scene.stage.provider.billing_records().iter().all(|record| record.deflated));
        });
    }
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_metered_codex_by_post() {
    assert_metered(Client::CodexPost);
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_metered_codex_logged_in() {
    assert_metered(Client::CodexLogin);
}

/// The bodies of its requests are compressed.
#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_metered_codex_logged_in_by_post() {
    Scene::with(priced(Client::CodexLoginPost), "", |scene| {
        assert_metered_in(scene, Client::CodexLoginPost);
        for record in scene.stage.provider.billing_records() {
            assert_eq!((record.method.as_str(), record.header("content-encoding")), ("POST", Some("zstd")));
        }
    });
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_metered_claude_code_on_bedrock() {
    assert_metered(Client::ClaudeCodeBedrock);
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_metered_python_on_bedrock() {
    for api in Api::OF_BEDROCK {
        assert_metered(Client::Python(api));
    }
}

/// AWS's SDKs find other names for the same where they are told so.
#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_metered_python_by_bedrock_s_other_names() {
    const NAMES: [(&str, &[&str]); 5] = [
        ("us-east-1", &["AWS_USE_DUALSTACK_ENDPOINT"]),
        ("us-east-1", &["AWS_USE_FIPS_ENDPOINT"]),
        ("us-east-1", &["AWS_USE_DUALSTACK_ENDPOINT", "AWS_USE_FIPS_ENDPOINT"]),
        ("eusc-de-east-1", &[]),
        ("cn-north-1", &["AWS_USE_DUALSTACK_ENDPOINT"]),
    ];
    let client = Client::Python(Api::Converse);
    Scene::with(priced(client), "", |scene| {
        for (order, (region, variables)) in NAMES.into_iter().enumerate() {
            let bottle = scene.stage.bottle(&format!("names-{order}"), &[]);
            let mut command = scene.ask(client, Way::Connect, true, Reader::Program, &bottle);
            command.env("AWS_DEFAULT_REGION", region).envs(variables.iter().map(|name| (name, "true")));
            let row = format!("{client:?} of {region} with {variables:?}");
            assert_right_and_billed(scene, client, &bottle, &mut command, &row);
        }
    });
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_metered_node_on_bedrock() {
    for api in Api::OF_BEDROCK {
        assert_metered(Client::Node(api));
    }
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_metered_gemini_cli() {
    assert_metered(Client::GeminiCli);
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_metered_python() {
    for api in Api::BY_CURL {
        assert_metered(Client::Python(api));
    }
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_metered_node() {
    for api in Api::BY_CURL {
        assert_metered(Client::Node(api));
    }
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_metered_curl() {
    for api in Api::BY_CURL {
        assert_metered(Client::Curl(api));
    }
}

//! Requests that AWS's clients sign, which the provider must find as they were signed: by AWS's Signature Version 4,
//! over method, path, host, some of the headers and the body.
use ring::hmac;
use support::provider::{Record, sha256_hex};

use crate::client::{Api, Client, Reader, Way};
use crate::keys;
use crate::metered::{assert_right_and_billed, priced};
use crate::scene::Scene;

/// Of an `Authorization` header.
const ALGORITHM: &str = "AWS4-HMAC-SHA256";

const CLIENTS: [Client; 7] = [
    Client::ClaudeCodeBedrock,
    Client::Python(Api::Bedrock),
    Client::Python(Api::Invoke),
    Client::Python(Api::Converse),
    Client::Node(Api::Bedrock),
    Client::Node(Api::Invoke),
    Client::Node(Api::Converse),
];

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_signed_as_sent() {
    Scene::by_its_names(priced(Client::ClaudeCodeBedrock), |scene| {
        for client in CLIENTS {
            for (way, stream) in client.rows().filter(|(way, _)| *way != Way::Gateway) {
                assert_holds(scene, client, way, stream);
            }
        }
    });
}

/// Asks on a way on which the provider is asked by its own name.
fn assert_holds(scene: &Scene, client: Client, way: Way, stream: bool) {
    let row = format!("{client:?} by {way:?}{}, signed", if stream { ", streamed" } else { "" });
    let name = row.to_lowercase().replace(|char: char| !char.is_ascii_alphanumeric(), "-");
    let bottle = scene.stage.bottle(&name, &[]);
    let before = scene.stage.provider.billing_records().len();
    let mut command = scene.ask(client, way, stream, Reader::Program, &bottle);
    assert_right_and_billed(scene, client, &bottle, &mut command, &row);
    for record in &scene.stage.provider.billing_records()[before..] {
        assert!(is_genuine(record), "{row}: {record:#?}");
    }
}

/// What is signed is for the host that was asked, and at the gateway that is not the provider's: it would say no.
#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_signed_for_another_host() {
    let client = Client::Node(Api::Converse);
    Scene::with(priced(client), "", |scene| {
        let bottle = scene.stage.bottle("gateway", &[]);
        let mut command = scene.ask(client, Way::Gateway, false, Reader::Program, &bottle);
        command.env_remove("AWS_BEARER_TOKEN_BEDROCK").envs(keys::signing());
        assert_right_and_billed(scene, client, &bottle, &mut command, "signed, at the gateway");
        let records = scene.stage.provider.billing_records();
        assert!(records.iter().all(|record| !is_genuine(record)), "{records:#?}");
    });
}

/// Whether a request is the one that its signature, made with the tests' key, is of. Panics when it has none.
fn is_genuine(record: &Record) -> bool {
    let header = record.header("authorization").unwrap();
    let words = header.strip_prefix(ALGORITHM).unwrap_or_else(|| panic!("{header}"));
    let word = |name: &str| words.split(',').find_map(|word| word.trim().strip_prefix(name)).unwrap();
    let (_, scope) = word("Credential=").split_once('/').unwrap();
    let day = scope.split('/').next().unwrap();
    assert!(scope.starts_with(&format!("{day}/us-east-1/bedrock/")), "{scope}");

    let request = canonical(record, word("SignedHeaders="));
    let date = record.header("x-amz-date").unwrap();
    let text = format!("{ALGORITHM}\n{date}\n{scope}\n{}", sha256_hex(request.as_bytes()));
    let secret = format!("AWS4{}", keys::AWS_SECRET).into_bytes();
    let key = scope.split('/').fold(secret, |key, part| authenticate(&key, part));
    let signature = authenticate(&key, &text);
    signature.iter().map(|byte| format!("{byte:02x}")).collect::<String>() == word("Signature=")
}

/// The text of a request that is signed; its queries, of which Bedrock's runtime has none, are left out.
fn canonical(record: &Record, names: &str) -> String {
    let header = |name: &str| match name {
        "host" => record.host.as_deref(),
        // of HTTP/2 alone
        ":authority" => record.host.as_deref().filter(|_| record.http2),
        _ => record.header(name),
    };
    let line = |name| format!("{name}:{}\n", header(name).unwrap_or_default().trim());
    let headers: String = names.split(';').map(line).collect();
    let path = encoded(&record.path);
    format!("{}\n{path}\n\n{headers}\n{names}\n{}", record.method, record.request_sha256)
}

/// A path as it is signed: encoded once more than it is sent.
fn encoded(path: &str) -> String {
    let plain = |char: char| char.is_ascii_alphanumeric() || "-._~/".contains(char);
    path.chars()
        .map(|char| if plain(char) { char.to_string() } else { format!("%{:02X}", u32::from(char)) })
        .collect()
}

/// HMAC with SHA-256.
fn authenticate(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}

//! An open bottle whose budget is used up: each client asks once, is refused at the gate, and says why.
use std::time::Duration;

use serde_json::Value;
use support::clock::wait_until;
use support::provider::Reply;
use support::stage::Bottle;

use crate::client::{Api, Client, Reader, Way};
use crate::scene::{ANSWERED, Scene};
use crate::screen::Screen;

/// Longer than the span in which the audit has one row for all refusals of a bottle.
const ROWS_SPAN: Duration = Duration::from_secs(11);

/// Asks on every way, in a bottle each whose budget is used up.
fn assert_refused(clients: &[Client]) {
    Scene::with(Reply { input: 5_000, ..Reply::default() }, "", |scene| {
        let mut bottles = Vec::new();
        for client in clients {
            for (way, stream) in client.rows() {
                let bottle = used_up(scene, *client, &format!("row-{}", bottles.len()));
                assert_told(scene, *client, way, stream, &bottle);
                bottles.push((*client, bottle));
            }
        }
        std::thread::sleep(ROWS_SPAN);
        bottles.iter().for_each(|(client, bottle)| assert_one_refusal(scene, *client, bottle));
    });
}

/// A bottle that is open though its budget is used up: requests reach the gate.
fn used_up(scene: &Scene, client: Client, name: &str) -> Bottle {
    let provider = client.provider();
    let bottle = scene.stage.bottle(name, &["--budget", &format!("{provider}=3000")]);
    let crossing = scene.stage.start_asking(&bottle, &["--provider", provider]);
    let settled = |bottle: &Value| bottle["usage"][provider]["flows"] == 1 && bottle["state"] == "cut";
    scene.stage.daemon.wait_bottle(name, settled, ANSWERED);
    crossing.hang_up();
    scene.stage.daemon.ok(&["restore", name, "--force"]);
    bottle
}

/// Runs a client to its end: it prints the reason, and its provider is not asked.
fn assert_told(scene: &Scene, client: Client, way: Way, stream: bool, bottle: &Bottle) {
    let before = scene.stage.provider.billing_records().len();
    let mut screen = Screen::of(&mut scene.ask(client, way, stream, Reader::Person, bottle));
    let code = screen.ended(ANSWERED);
    let (name, provider) = (&bottle.name, client.provider());
    let budget = format!(
        "of 3000 {provider} tokens (budget of scope launch, owner {name}, window total, scope rule nearest)"
    );
    let said = screen.line_with(&format!("bottle {name} has used 5040 {budget}"));
    let row = format!("{client:?} by {way:?}{}", if stream { ", streamed" } else { "" });
    println!("{row}: exit {code:?}, {}", said.unwrap_or_else(|| panic!("{row}: {}", screen.text())));
    assert_ne!(code, Some(0), "{row}: {}", screen.text());
    assert_eq!(scene.stage.provider.billing_records().len(), before, "{row} reached the provider");
}

/// The audit tells with the next refusal how many came before it that have no row of their own.
fn assert_one_refusal(scene: &Scene, client: Client, bottle: &Bottle) {
    let next = scene.stage.ask(bottle, &["--provider", client.provider()]);
    assert_eq!(next.code, Some(3), "{next:?}");
    let details = || {
        let rows = scene.stage.audit(&bottle.name, "refuse").into_iter();
        let details = rows.map(|row| row["detail"].as_str().unwrap().to_owned());
        details.filter(|detail| detail.contains("of 3000")).collect::<Vec<_>>()
    };
    let details = wait_until(ROWS_SPAN, || Some(details()).filter(|details| details.len() > 1)).unwrap();
    assert_eq!(details.len(), 2, "the client's and this one: {details:#?}");
    assert!(!details[1].contains("more refusals"), "{client:?} asked again: {details:#?}");
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_refused_agents() {
    assert_refused(&[Client::ClaudeCode, Client::Codex, Client::CodexPost, Client::CodexLogin]);
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_refused_sdks_and_curl() {
    let clients = Api::ALL.map(|api| [Client::Python(api), Client::Node(api), Client::Curl(api)]);
    assert_refused(&clients.concat());
}

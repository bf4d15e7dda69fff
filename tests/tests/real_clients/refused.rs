//! An open bottle whose budget is used up: each client asks once, is refused at the gate, and says why.
use serde_json::Value;
use support::provider::Reply;
use support::stage::Bottle;

use crate::client::{Api, Client, Reader, Way};
use crate::refusals;
use crate::scene::{ANSWERED, Scene};
use crate::screen::Screen;

/// The budget of each bottle, in tokens: less than one answer takes.
const BUDGET: u64 = 3_000;

/// An answer that uses it up.
pub fn large() -> Reply {
    Reply { input: 5_000, ..Reply::default() }
}

/// Asks on every way, in a bottle each whose budget is used up.
fn assert_refused(clients: &[Client]) {
    Scene::with(large(), "", |scene| {
        let mut rows = Vec::new();
        for client in clients {
            for (way, stream) in client.rows() {
                let bottle = used_up(scene, *client, &format!("row-{}", rows.len()));
                let row = assert_told(scene, *client, way, stream, &bottle);
                rows.push((*client, bottle, row));
            }
        }
        std::thread::sleep(refusals::SPAN);
        for (client, bottle, row) in &rows {
            let refused = refusals::of(scene, *client, bottle);
            println!("{row}; refused {refused} times");
            assert_eq!(refused, client.refusals(), "{row}");
        }
    });
}

/// A bottle that is open though its budget is used up: requests reach the gate.
pub fn used_up(scene: &Scene, client: Client, name: &str) -> Bottle {
    let provider = client.provider();
    let bottle = scene.stage.bottle(name, &["--budget", &format!("{provider}={BUDGET}")]);
    let crossing = scene.stage.start_asking(&bottle, &["--provider", provider]);
    let settled = |bottle: &Value| bottle["usage"][provider]["flows"] == 1 && bottle["state"] == "cut";
    scene.stage.daemon.wait_bottle(name, settled, ANSWERED);
    crossing.hang_up();
    scene.stage.daemon.ok(&["restore", name, "--force"]);
    bottle
}

/// What a client in such a bottle is told: bottle, used, limit, scope, owner, window and rule.
pub fn reason(client: Client, bottle: &Bottle) -> String {
    let (name, provider) = (&bottle.name, client.provider());
    let used = large().bill().total();
    format!(
        "bottle {name} has used {used} of {BUDGET} {provider} tokens (budget of scope launch, owner {name}, window \
         total, scope rule nearest)"
    )
}

/// Runs a client to its end: it prints the reason, and its provider is not asked. What was seen of it.
fn assert_told(scene: &Scene, client: Client, way: Way, stream: bool, bottle: &Bottle) -> String {
    let before = scene.stage.provider.billing_records().len();
    let row = format!("{client:?} by {way:?}{}", if stream { ", streamed" } else { "" });
    let mut screen = Screen::of(&mut scene.ask(client, way, stream, Reader::Person, bottle));
    let reason = reason(client, bottle);
    let told = screen.shown(&reason, ANSWERED);
    let code = screen.ended(ANSWERED);
    assert_ne!(code, Some(0), "{row}: {}", screen.text());
    assert_eq!(scene.stage.provider.billing_records().len(), before, "{row} reached the provider");
    let said = screen.line_with(&reason).unwrap_or(reason);
    format!("{row}: told {told:?} after its start, exit {code:?}, {said}")
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_refused_agents() {
    assert_refused(&[
        Client::ClaudeCode,
        Client::Codex,
        Client::CodexPost,
        Client::CodexLogin,
        Client::CodexLoginPost,
        Client::GeminiCli,
    ]);
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_refused_sdks_and_curl() {
    let clients = Api::BY_CURL.map(|api| [Client::Python(api), Client::Node(api), Client::Curl(api)]);
    assert_refused(&clients.concat());
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_refused_on_bedrock() {
    let sdks = Api::OF_BEDROCK.map(|api| [Client::Python(api), Client::Node(api)]);
    assert_refused(&sdks.concat());
    assert_refused(&[Client::ClaudeCodeBedrock]);
}

/// Bedrock has a host in each region: who comes by the gateway is told what the settings have to name.
#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_refused_on_bedrock_where_no_upstream_is_named() {
    Scene::by_its_names(large(), |scene| {
        let bottle = scene.stage.bottle("b", &[]);
        for client in [Client::Python(Api::Bedrock), Client::Node(Api::Bedrock), Client::Node(Api::Converse)]
        {
            let asks = &mut scene.ask(client, Way::Gateway, true, Reader::Person, &bottle);
            let mut screen = Screen::of(asks);
            screen.shown("no single host; name an upstream in the settings", ANSWERED);
            assert_ne!(screen.ended(ANSWERED), Some(0), "{}", screen.text());
            println!("{client:?}: {}", screen.line_with("no single host").unwrap_or_default());
        }
        assert!(scene.stage.provider.records().is_empty());
    });
}

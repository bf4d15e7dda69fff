//! Agents whose model has them call a tool again and again: the answer that crosses the budget is the last that they get,
//! and they make one more request at most, which tells them why.
use support::books::charged;
use support::capture::{Capture, TCP};
use support::network::Namespace;
use support::provider::{Billed, End, Reply};
use support::stage::Bottle;

use crate::answered::streamed;
use crate::client::{Client, Reader, Way};
use crate::refusals;
use crate::scene::{ANSWERED, Scene};
use crate::screen::Screen;

/// Answers of the loop that are within the budget or cross it.
const ANSWERS: usize = 4;
/// In tokens: less than [`ANSWERS`] answers take, and more than one less does.
const BUDGET: u64 = 1_200;

/// What is crossed in the middle of an answer is another matter.
const WHOLE_ANSWERS: &str = "midstream: false\n";

/// An answer that calls for more. No agent has such a tool, and tells its model so.
fn again() -> Reply {
    Reply { input: 300, call: Some("again"), ..Reply::default() }
}

/// In a bottle, which is cut: what is asked after that, the refusal lane answers.
fn assert_cut(client: Client) {
    for way in client.ways() {
        Scene::with(streamed(again()), WHOLE_ANSWERS, |scene| {
            let budget = format!("{}={BUDGET}", client.provider());
            let bottle = scene.stage.bottle("agent", &["--budget", &budget]);
            let screen = Screen::of(&mut scene.ask(client, *way, true, Reader::Person, &bottle));
            assert_last(scene, client, *way, "agent", screen);
            assert_eq!(scene.stage.daemon.bottle("agent")["face"], "answered");
        });
    }
}

/// As the host, which is not cut: its gate refuses, on the WebSocket that is open where there is one.
fn assert_refused(client: Client) {
    let provider = client.provider();
    let settings = format!("{WHOLE_ANSWERS}unattached: meter\nbudget: {{ {provider}: {BUDGET} }}\n");
    Scene::with(streamed(again()), &settings, |scene| {
        let told = scene.stage.bottle("told", &[]);
        let wire = Capture::of(&Namespace::current());
        let screen = Screen::of(&mut scene.told(client, Way::Gateway, true, Reader::Person, &told));
        assert_last(scene, client, Way::Gateway, "host", screen);
        if client.status() == 101 {
            assert_eq!(connections(scene, &wire), 1, "{client:?} is refused on the socket that is open");
        }
        assert_one_refusal(scene, client, &told);
    });
}

fn assert_one_refusal(scene: &Scene, client: Client, told: &Bottle) {
    std::thread::sleep(refusals::SPAN);
    let refused = refusals::of_host(scene, client, told);
    println!("{client:?} as the host: refused {refused} times");
    assert_eq!(refused, 1);
}

/// The agent says why it ends; no answer but those of the budget was billed, and the books agree.
fn assert_last(scene: &Scene, client: Client, way: Way, bottle: &str, mut screen: Screen) {
    let told = screen.shown(&format!("of {BUDGET} {} tokens (budget of scope ", client.provider()), ANSWERED);
    let code = screen.ended(ANSWERED);
    assert!(screen.text().contains(&format!("bottle {bottle} has used ")), "{}", screen.text());
    let asked = scene.stage.provider.billing_records();
    assert_eq!(asked.len(), client.checks() + ANSWERS, "{client:?} by {way:?}: {}", screen.text());
    assert!(asked.iter().all(|record| record.end == Some(End::Completed)), "{asked:#?}");
    let flows = scene.stage.flows(bottle);
    let billed = asked.iter().fold(Billed::default(), |all, record| all.plus(record.billed));
    assert_eq!(flows.iter().map(charged).fold(Billed::default(), Billed::plus), billed, "{flows:#?}");
    let said = screen.line_with(" has used ").unwrap_or_default();
    println!(
        "{client:?} by {way:?} as {bottle}: {} answers of {} tokens, told {told:?} after its start, exit {code:?}, {said}",
        asked.len(),
        billed.total()
    );
}

/// Connections to the meter.
fn connections(scene: &Scene, wire: &Capture) -> usize {
    let meter = scene.stage.daemon.listen_addr().parse::<std::net::SocketAddr>().unwrap().port();
    let packets = wire.settled().into_iter();
    packets.filter(|packet| packet.protocol == TCP && packet.opens && packet.port == meter).count()
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_looping_claude_code() {
    assert_cut(Client::ClaudeCode);
    assert_refused(Client::ClaudeCode);
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_looping_claude_code_on_bedrock() {
    assert_cut(Client::ClaudeCodeBedrock);
    assert_refused(Client::ClaudeCodeBedrock);
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_looping_codex() {
    assert_cut(Client::Codex);
    assert_refused(Client::Codex);
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_looping_codex_by_post() {
    assert_cut(Client::CodexPost);
    assert_refused(Client::CodexPost);
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_looping_codex_logged_in() {
    assert_cut(Client::CodexLogin);
    assert_cut(Client::CodexLoginPost);
}

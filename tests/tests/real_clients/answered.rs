//! A budget that is crossed in the middle of a client's stream: it asks no provider again, and says why in time. A
//! client that finds its provider by name finds the refusal lane there, and no resolver hears of it.
use std::net::SocketAddr;
use std::time::Duration;

use support::capture::{Capture, Packet, TCP, UDP};
use support::clock::mono_ns;
use support::network::Namespace;
use support::provider::{End, Reply, Script};
use support::stage::mono_of;

use crate::client::{Api, Client, Reader, Way};
use crate::scene::{ANSWERED, Scene};
use crate::screen::Screen;

/// The reason is on the screen within this time of the cut.
const TOLD: Duration = Duration::from_secs(10);

/// A stream that goes on for longer than any test.
pub fn endless() -> Script {
    streamed(Reply::paced(20_000, 8, Duration::from_millis(2))).compressing_messages()
}

/// Streams are answered so; whole answers cost next to nothing: who asks for one looks whether there is such a model.
pub fn streamed(reply: Reply) -> Script {
    let short = Reply { input: 1, deltas: 1, tokens_per_delta: 1, ..Reply::default() };
    Script::by(move |asked| if asked.stream { reply.clone() } else { short.clone() })
}

/// Cuts a client in its stream on each way, and holds it to one further request and to saying why.
fn assert_told(client: Client) {
    for way in client.ways() {
        Scene::with(endless(), "", |scene| assert_told_by(scene, client, *way));
    }
}

fn assert_told_by(scene: &Scene, client: Client, way: Way) {
    let budget = format!("{}=1000", client.provider());
    let bottle = scene.stage.bottle("agent", &["--budget", &budget]);
    let wire = Capture::of(&Namespace::current());
    let mut screen = Screen::of(&mut scene.ask(client, way, true, Reader::Person, &bottle));
    let cut = scene.stage.daemon.wait_bottle("agent", |bottle| bottle["face"] == "answered", ANSWERED);
    let heard = scene.dns.asked();
    let reason = format!("of 1000 {} tokens (budget of scope launch, owner agent", client.provider());
    screen.shown(&reason, TOLD);
    let took = Duration::from_nanos(mono_ns().saturating_sub(mono_of(&cut["cause"]["at"])));
    assert!(took < TOLD, "{client:?} by {way:?} says it after {took:?}");
    assert!(
        screen.text().contains(&format!("bottle agent has used {} of", cut["cause"]["used"])),
        "{}",
        screen.text()
    );
    let code = screen.ended(ANSWERED);

    let asked = scene.stage.provider.billing_records();
    assert_eq!(asked.len(), client.checks() + 1, "{client:?} by {way:?} asked again: {asked:#?}");
    let record = asked.last().unwrap();
    assert_eq!((record.end, record.status), (Some(End::ClientGone), client.status()), "{record:#?}");
    assert_eq!(record.deflated, client.status() == 101, "{record:#?}");
    assert_eq!(scene.dns.asked(), heard, "{client:?} by {way:?}: a resolver heard of it");
    let packets = wire.settled();
    let lane = connections_to_others(scene, &packets);
    let names = names_at_the_lane(&packets);
    let said = screen.line_with(&reason).unwrap_or_default();
    println!(
        "{client:?} by {way:?}: told after {took:?}, {names} packets of names and {lane} requests at the lane, exit \
         {code:?}, {said}"
    );
    assert_eq!(lane, 1, "{client:?} by {way:?} asks the lane once");
}

/// A client that starts in a bottle that is cut already is told why, too. (Codex with a login asks where its account is
/// at home before anything else, so it prints the reason but ends in words of its own for that failure.)
fn assert_told_from_the_start(client: Client) {
    Scene::with(Reply::default(), "", |scene| {
        for way in client.ways() {
            let bottle = scene.stage.bottle(&format!("{way:?}").to_lowercase(), &[]);
            scene.stage.daemon.ok(&["cut", &bottle.name, "--answered", "--reason", "tea time"]);
            let heard = scene.dns.asked();
            let wire = Capture::of(&Namespace::current());
            let mut screen = Screen::of(&mut scene.ask(client, *way, true, Reader::Person, &bottle));
            let told = screen.shown("by uid:0: tea time", TOLD);
            let code = screen.ended(ANSWERED);
            let names = names_at_the_lane(&wire.settled());
            assert_eq!(scene.dns.asked(), heard, "{client:?} by {way:?}: a resolver heard of it");
            assert!(names > 0 || *way != Way::Redirect, "{client:?} has found its provider without asking");
            let said = screen.line_with("tea time").unwrap_or_default();
            println!(
                "{client:?} by {way:?}: told after {told:?}, {names} packets of names, exit {code:?}, {said}"
            );
        }
        assert!(scene.stage.provider.records().is_empty());
    });
}

/// Connections to neither the meter nor the provider: the lane's, each of which carries one request.
fn connections_to_others(scene: &Scene, packets: &[Packet]) -> usize {
    let meter = scene.stage.daemon.listen_addr().parse::<SocketAddr>().unwrap().port();
    let known = [meter, scene.stage.provider.addresses().https.port()];
    let opening = packets.iter().filter(|packet| packet.protocol == TCP && packet.opens);
    opening.filter(|packet| !known.contains(&packet.port)).count()
}

/// Questions for names that the lane was asked, and its answers: nobody else speaks UDP at this address.
fn names_at_the_lane(packets: &[Packet]) -> usize {
    packets.iter().filter(|packet| packet.protocol == UDP && packet.destination.is_loopback()).count()
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_answered_claude_code() {
    assert_told(Client::ClaudeCode);
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_answered_claude_code_on_bedrock() {
    assert_told(Client::ClaudeCodeBedrock);
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_answered_codex() {
    assert_told(Client::Codex);
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_answered_codex_by_post() {
    assert_told(Client::CodexPost);
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_answered_codex_logged_in() {
    assert_told(Client::CodexLogin);
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_answered_codex_logged_in_by_post() {
    assert_told(Client::CodexLoginPost);
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_answered_gemini_cli() {
    assert_told(Client::GeminiCli);
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_answered_from_the_start() {
    for client in [
        Client::ClaudeCode,
        Client::Codex,
        Client::CodexPost,
        Client::CodexLogin,
        Client::ClaudeCodeBedrock,
        Client::Python(Api::Converse),
        Client::Node(Api::Converse),
    ] {
        assert_told_from_the_start(client);
    }
}

//! Agents in their own interface, at a terminal: what they answer and why they are refused is on its screen.
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use support::stage::Bottle;

use crate::answered::endless;
use crate::client::{Client, Reader, Way};
use crate::metered::{assert_billed, priced};
use crate::refusals;
use crate::refused::{large, reason, used_up};
use crate::scene::{ANSWERED, Scene};
use crate::screen::Screen;

/// In this time what an agent asks besides has been answered.
const QUIET: Duration = Duration::from_secs(2);
/// What becomes the client at a terminal whose lines are longer than what it says.
const AT_A_TERMINAL: &str = "stty columns 250 rows 50 && exec \"$0\" \"$@\"";

/// A client at a terminal in a bottle, with its question as if it had been typed there.
fn open(scene: &Scene, client: Client, way: Way, bottle: &Bottle) -> Screen {
    let bare = scene.told(client, way, true, Reader::Terminal, bottle);
    let words: Vec<String> = std::iter::once(bare.get_program())
        .chain(bare.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command"]);
    command.arg(format!("sh -c '{AT_A_TERMINAL}' {}", words.join(" "))).arg("/dev/null");
    command.env_clear().envs(bare.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.env("TERM", "xterm-256color").current_dir(bare.get_current_dir().unwrap());
    bottle.cgroup.enter_before_exec(&mut command);
    Screen::attended(&mut command)
}

/// It shows its provider's answer, and the ledger has the provider's bill.
fn assert_answers(client: Client) {
    Scene::with(priced(client), "", |scene| {
        for way in client.ways() {
            let bottle = scene.stage.bottle(&format!("{way:?}").to_lowercase(), &[]);
            let before = scene.stage.provider.billing_records().len();
            let screen = open(scene, client, *way, &bottle);
            let shown = screen.shown(&priced(client).text(), ANSWERED);
            let row = format!("{client:?} at a terminal by {way:?}");
            std::thread::sleep(QUIET);
            let asked = scene.stage.provider.billing_records().split_off(before);
            let bill = assert_billed(scene, &bottle, &asked, &row);
            println!(
                "{row}: answered {shown:?} after its start, {} tokens in {} requests",
                bill.total(),
                asked.len()
            );
        }
    });
}

/// It shows why its request is refused, and asks for nothing more.
fn assert_refused(client: Client) {
    Scene::with(large(), "", |scene| {
        for way in client.ways() {
            let bottle = used_up(scene, client, &format!("{way:?}").to_lowercase());
            let before = scene.stage.provider.billing_records().len();
            let screen = open(scene, client, *way, &bottle);
            let reason = reason(client, &bottle);
            let told = screen.shown(&reason, ANSWERED);
            // it stays, and could ask again
            std::thread::sleep(refusals::SPAN);
            let refused = refusals::of(scene, client, &bottle);
            println!(
                "{client:?} at a terminal by {way:?}: told {told:?} after its start, {reason}; refused {refused} times"
            );
            assert_eq!(scene.stage.provider.billing_records().len(), before);
            // Codex asks in a second conversation, at the same time, what to call the first
            let conversations = if client == Client::Codex { 2 } else { 1 };
            assert_eq!(refused, conversations * client.refusals());
        }
    });
}

/// It shows why its answer breaks off, and asks its provider for nothing more.
fn assert_cut(client: Client) {
    Scene::with(endless(), "", |scene| {
        for way in client.ways() {
            let budget = format!("{}=1000", client.provider());
            let bottle = scene.stage.bottle(&format!("{way:?}").to_lowercase(), &["--budget", &budget]);
            let screen = open(scene, client, *way, &bottle);
            let cut = |bottle: &Value| bottle["face"] == "answered";
            scene.stage.daemon.wait_bottle(&bottle.name, cut, ANSWERED);
            let before = scene.stage.provider.billing_records().len();
            let reason = format!(
                "of 1000 {} tokens (budget of scope launch, owner {}",
                client.provider(),
                bottle.name
            );
            let told = screen.shown(&reason, ANSWERED);
            std::thread::sleep(QUIET);
            let asked = scene.stage.provider.billing_records();
            println!("{client:?} at a terminal by {way:?}: cut, and told {told:?} after its start");
            assert_eq!(asked.len(), before);
            assert!(asked.iter().all(|record| record.end.is_some()), "{asked:#?}");
        }
    });
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_terminal_claude_code() {
    assert_answers(Client::ClaudeCode);
    assert_cut(Client::ClaudeCode);
    assert_refused(Client::ClaudeCode);
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_terminal_codex() {
    assert_answers(Client::Codex);
    assert_cut(Client::Codex);
    assert_refused(Client::Codex);
}

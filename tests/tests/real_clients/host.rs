//! Agents in no bottle, metered as the host's, which nobody can cut: an answer under way is stopped where the budget is
//! used up. Codex is told so in the answer itself; others see it break, ask once more, and are told then.
use support::provider::End;

use crate::answered::endless;
use crate::client::{Client, Reader, Way};
use crate::refusals;
use crate::scene::{ANSWERED, Scene};
use crate::screen::Screen;

/// The budget, in tokens.
const BUDGET: u64 = 1_000;

/// Has a stream that goes on for longer than any test stopped; it is refused `refusals` times in all.
fn assert_stopped(client: Client, refusals: u64) {
    let settings = format!("unattached: meter\nbudget: {{ {}: {BUDGET} }}\n", client.provider());
    // what is redirected is a bottle's
    for way in client.ways().iter().filter(|way| **way != Way::Redirect) {
        Scene::with(endless(), &settings, |scene| {
            let told = scene.stage.bottle("told", &[]);
            let mut screen = Screen::of(&mut scene.told(client, *way, true, Reader::Person, &told));
            let reason = format!("of {BUDGET} {} tokens (budget of scope global", client.provider());
            let shown = screen.shown(&reason, ANSWERED);
            let code = screen.ended(ANSWERED);
            let row = format!("{client:?} by {way:?}");
            let asked = scene.stage.provider.billing_records();
            assert_eq!(asked.len(), client.checks() + 1, "{row} asked again: {asked:#?}");
            let record = asked.last().unwrap();
            assert_eq!(record.end, Some(End::ClientGone), "{record:#?}");
            let flows = scene.stage.flows("host");
            let cut: Vec<_> = flows.iter().filter(|flow| flow["status"] == "cut").collect();
            let [flow] = cut[..] else { panic!("{row}: {flows:#?}") };
            // its figures never came: the text is charged on the safe side
            assert!(flow["provenance"] != "reported", "{flow}");
            let charged = flow["output"].as_u64().unwrap();
            let total: u64 = flows.iter().map(|flow| flow["total"].as_u64().unwrap()).sum();
            assert!(total >= BUDGET, "{flows:#?}");
            std::thread::sleep(refusals::SPAN);
            let refused = refusals::of_host(scene, client, &told);
            let said = screen.line_with(&reason).unwrap_or_default();
            println!(
                "{row} as the host: charged {charged} of {} output tokens billed, refused {refused} times, told {shown:?} \
                 after its start, exit {code:?}, {said}",
                record.billed.output
            );
            assert_eq!(refused, refusals, "{row}");
        });
    }
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_host_codex_is_told_in_the_answer() {
    for client in [Client::Codex, Client::CodexPost, Client::CodexLogin, Client::CodexLoginPost] {
        assert_stopped(client, 1);
    }
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_host_claude_code_asks_once_more() {
    for client in [Client::ClaudeCode, Client::ClaudeCodeBedrock] {
        assert_stopped(client, 2);
    }
}

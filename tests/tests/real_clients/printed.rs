//! What `enforcer env` prints, read by each reader that it is printed for, is all that a client needs.
use std::process::Command;

use support::stage::Bottle;

use crate::client::{Api, Client, Reader, Way};
use crate::metered::{assert_right_and_billed, priced};
use crate::scene::Scene;

const CLIENTS: [Client; 17] = [
    Client::ClaudeCode,
    Client::Codex,
    Client::CodexLogin,
    Client::GeminiCli,
    Client::Python(Api::Messages),
    Client::Python(Api::Responses),
    Client::Python(Api::Generate),
    Client::Node(Api::Messages),
    Client::Node(Api::Responses),
    Client::Curl(Api::Messages),
    Client::Curl(Api::Responses),
    Client::Curl(Api::Generate),
    Client::ClaudeCodeBedrock,
    Client::Python(Api::Bedrock),
    Client::Python(Api::Converse),
    Client::Node(Api::Bedrock),
    Client::Node(Api::Converse),
];
/// Shells, and how each reads its first argument and then becomes the rest.
const SHELLS: [(&str, &str); 2] = [
    ("sh", "eval \"$1\" && shift && exec \"$@\""),
    ("fish", "printf %s $argv[2] | source; and exec $argv[3..]"),
];

/// A client that is told all that is printed, by way of a shell.
fn through_shell(scene: &Scene, (shell, script): (&str, &str), client: &Command, bottle: &Bottle) -> Command {
    let printed = scene.stage.daemon.ok(&["env", &bottle.name, "--shell", shell]);
    let mut command = Command::new(shell);
    command.args(["-c", script, shell, &printed]).arg(client.get_program()).args(client.get_args());
    command.env_clear().envs(client.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.current_dir(client.get_current_dir().expect("a client has a directory to run in"));
    bottle.cgroup.enter_before_exec(&mut command);
    command
}

#[test]
#[ignore = "runs installed clients: cargo xtask test --real-clients"]
fn root_printed_suffices() {
    for client in CLIENTS {
        Scene::with(priced(client), "", |scene| {
            // the gateway's variable is not for everyone
            let elsewhere = client == Client::GeminiCli || client.provider() == "bedrock";
            let mut ways = client.ways().iter();
            let way = *ways.find(|way| !(elsewhere && **way == Way::Gateway)).unwrap();
            for shell in SHELLS {
                let bottle = scene.stage.bottle(shell.0, &[]);
                let bare = scene.bare(client, way, true, Reader::Program, &bottle);
                let mut command = through_shell(scene, shell, &bare, &bottle);
                let row = format!("{client:?} by {}", shell.0);
                assert_right_and_billed(scene, client, &bottle, &mut command, &row);
            }
            let bottle = scene.stage.bottle("dotenv", &[]);
            let mut command = scene.bare(client, way, true, Reader::Program, &bottle);
            command.envs(scene.stage.daemon.environment(&bottle.name));
            bottle.cgroup.enter_before_exec(&mut command);
            let row = format!("{client:?} by an env file");
            assert_right_and_billed(scene, client, &bottle, &mut command, &row);
        });
    }
}

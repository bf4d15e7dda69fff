//! The built meter, met by clients that believe they speak to somebody else.
#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping")]
mod rig;

use meter_proxy::protocol::{Config, ToController};
use rig::{Rig, config};

/// A configuration in which `localhost` is metered at its own address, and other loopback addresses are not.
fn localhost_is_metered() -> Config {
    let mut settings = config("127.0.0.1:9".parse().unwrap());
    settings.providers[0].hosts = vec!["localhost".into()];
    settings.providers[0].upstream = None;
    settings.allow_private = vec!["127.0.0.0/8".into()];
    settings
}

fn is_notice(message: &ToController, words: &str) -> bool {
    matches!(message, ToController::Notice(notice) if notice.detail.contains(words))
}

#[test]
fn root_a_metered_address_is_reached_by_its_metered_name_alone() {
    let rig = Rig::start(localhost_is_metered());
    for target in ["127.0.0.1:8443", "[::ffff:127.0.0.1]:443", "[64:ff9b::7f00:1]:443"] {
        let answer = rig.ask(&format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"));
        assert_eq!(answer.status(), 403, "{target}");
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains("leads to an address of localhost, which is metered"), "{message}");
    }
    let plain = rig.ask("GET http://127.0.0.1:8080/ HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n");
    assert_eq!(plain.status(), 403);
    rig.heard(|message| is_notice(message, "leads to an address of localhost, which is metered"));
    let elsewhere = rig.ask("GET http://127.77.0.1:9/ HTTP/1.1\r\nHost: 127.77.0.1:9\r\n\r\n");
    assert_eq!(elsewhere.status(), 502, "another address may be tried");
}

//! First words of clients: TLS for a name, for none, for a hidden one, and what is no TLS.
use std::sync::Arc;

use rustls::ClientConfig;

use crate::rig::{client_tls, greasing_tls, hidden_behind};

/// What a TLS client that asks for `name` sends first.
pub fn hello(name: &str, named: bool) -> Vec<u8> {
    let mut tls = (*client_tls(Vec::new())).clone();
    tls.enable_sni = named;
    hello_of(tls.into(), name)
}

/// What such a client sends first.
pub fn hello_of(tls: Arc<ClientConfig>, name: &str) -> Vec<u8> {
    let name = name.to_owned().try_into().unwrap();
    let mut client = rustls::ClientConnection::new(tls, name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// First words that name no metered host, with what the audit calls them.
pub fn other_words() -> [(Vec<u8>, &'static str); 7] {
    [
        (hello("example.com", true), "TLS for example.com"),
        (hello("example.com", false), "TLS for no name"),
        (hello_of(greasing_tls(Vec::new()), "example.com"), "TLS for example.com or a hidden name"),
        (hello_of(hidden_behind("front.test"), "api.anthropic.com"), "TLS for front.test or a hidden name"),
        (vec![0x16, 3, 1, 0, 4, 9, 9, 9, 9], "TLS that cannot be read"),
        (b"SSH-2.0-OpenSSH_9.9 x\r\n".to_vec(), "another protocol"),
        (vec![0, 255, 7, 0x16, 3, 1], "another protocol"),
    ]
}

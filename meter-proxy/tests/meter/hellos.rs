//! First words of clients: TLS for a name, for none, for a hidden one, and what is no TLS.
use crate::rig::client_tls;

/// The extension `encrypted_client_hello`.
pub const ECH: u16 = 0xfe0d;

/// What a TLS client that asks for `name` sends first.
pub fn hello(name: &str, named: bool) -> Vec<u8> {
    let mut tls = (*client_tls(Vec::new())).clone();
    tls.enable_sni = named;
    let name = name.to_owned().try_into().unwrap();
    let mut client = rustls::ClientConnection::new(tls.into(), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// The same with one more extension at the end: RFC 8446, 4.1.2.
pub fn with_extension(mut hello: Vec<u8>, number: u16, body: &[u8]) -> Vec<u8> {
    const SESSION_ID: usize = 5 + 4 + 2 + 32;
    let suites = SESSION_ID + 1 + usize::from(hello[SESSION_ID]);
    let compression = suites + 2 + usize::from(u16::from_be_bytes([hello[suites], hello[suites + 1]]));
    let extensions = compression + 1 + usize::from(hello[compression]);
    let mut extension = number.to_be_bytes().to_vec();
    extension.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    extension.extend(body);
    // The lengths of the record, of the handshake message (its low two bytes) and of the extensions.
    for at in [3, 7, extensions] {
        let length = u16::from_be_bytes([hello[at], hello[at + 1]]) + u16::try_from(extension.len()).unwrap();
        hello[at..at + 2].copy_from_slice(&length.to_be_bytes());
    }
    hello.extend(extension);
    hello
}

/// What stands in that extension; its secret parts are noise to whoever has no key.
pub fn encrypted_name() -> Vec<u8> {
    let outer_and_suite_and_key = [0, 0, 1, 0, 1, 7];
    [&outer_and_suite_and_key[..], &[0, 32], &[9; 32], &[0, 100], &[9; 100]].concat()
}

/// First words that name no metered host, with what the audit calls them.
pub fn other_words() -> [(Vec<u8>, &'static str); 6] {
    [
        (hello("example.com", true), "TLS for example.com"),
        (hello("example.com", false), "TLS for no name"),
        (with_extension(hello("example.com", true), ECH, &encrypted_name()), "TLS for example.com"),
        (vec![0x16, 3, 1, 0, 4, 9, 9, 9, 9], "TLS that cannot be read"),
        (b"SSH-2.0-OpenSSH_9.9 x\r\n".to_vec(), "another protocol"),
        (vec![0, 255, 7, 0x16, 3, 1], "another protocol"),
    ]
}

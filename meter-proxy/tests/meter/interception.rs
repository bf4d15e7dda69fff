//! TLS that the meter opens: hellos that hide a name, clients that take no such certificate.
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::Arc;

use meter_proxy::protocol::ToController;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::hellos::{hello, hello_of};
use crate::rig::{
    Answer, Rig, Upstream, client_tls, client_tls_of, config, far, greasing_tls, hidden_behind, is_notice,
    json_answer, nowhere, post, rest_of,
};
use crate::words::{ASK, JSON};

const NAME: &str = "api.anthropic.com";

/// A way to the meter for TLS that asks for [`NAME`].
type Way = fn(&Rig) -> TcpStream;

const WAYS: [(&str, Way); 2] = [
    ("redirect", |rig| rig.redirected(far(443))),
    ("CONNECT", |rig| {
        rig.manner(|manner| manner.original = None);
        rig.tunnel(&format!("{NAME}:443"), NAME).sock
    }),
];

fn tls(config: Arc<ClientConfig>, stream: TcpStream) -> StreamOwned<ClientConnection, TcpStream> {
    StreamOwned::new(ClientConnection::new(config, NAME.try_into().unwrap()).unwrap(), stream)
}

/// Waits for a notice of these words and of the host; there is no other.
fn told_once(rig: &Rig, words: &str) {
    let told = |message: &ToController| is_notice(message, words) && is_notice(message, NAME);
    rig.heard(|message| told(message) && is_notice(message, "b1"));
    rig.taken_in();
    assert_eq!(rig.count(|message| matches!(message, ToController::Notice(_))), 1, "{words}");
}

#[test]
fn root_a_client_that_refuses_our_certificate_is_audited_once() {
    for (way, connect) in WAYS {
        for version in [&TLS12, &TLS13] {
            let rig = Rig::start(config(nowhere()));
            for _ in 0..3 {
                let mut client = tls(client_tls_of(Vec::new(), &[version]), connect(&rig));
                assert_eq!(client.flush().unwrap_err().kind(), ErrorKind::InvalidData, "{way} {version:?}");
                assert_eq!(rest_of(&mut client.sock), b"");
            }
            told_once(&rig, "refused the meter's certificate (UnknownCA)");
        }
    }
}

#[test]
fn root_a_client_that_hangs_up_on_our_certificate_is_audited_once() {
    for (way, connect) in WAYS {
        for version in [&TLS12, &TLS13] {
            let rig = Rig::start(config(nowhere()));
            for _ in 0..3 {
                let mut client = connect(&rig);
                client.write_all(&hello_of(client_tls_of(Vec::new(), &[version]), NAME)).unwrap();
                client.read_exact(&mut [0; 6]).expect(way);
            }
            told_once(&rig, "hung up on the meter's certificate");
        }
    }
}

#[test]
fn root_a_client_that_leaves_after_the_handshake_and_asks_nothing_is_audited_once() {
    for (way, connect) in WAYS {
        for version in [&TLS12, &TLS13] {
            let rig = Rig::start(config(nowhere()));
            for _ in 0..3 {
                let mut client = tls(client_tls_of(rig.roots(), &[version]), connect(&rig));
                while client.conn.is_handshaking() {
                    client.conn.complete_io(&mut client.sock).expect(way);
                }
            }
            told_once(&rig, "left at the meter's certificate");
        }
    }
}

#[test]
fn root_clients_that_ask_or_break_off_before_our_certificate_are_not_said_to_distrust_it() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    for (_, connect) in WAYS {
        let mut asking = tls(client_tls(rig.roots()), connect(&rig));
        asking
            .write_all(post("/v1/messages", ASK).replace("Host: meter", &format!("Host: {NAME}")).as_bytes())
            .unwrap();
        assert_eq!(Answer::read(&mut asking).unwrap().body, JSON.as_bytes());
        connect(&rig).write_all(&hello(NAME, true)[..100]).unwrap();
    }
    rig.taken_in();
    // half a hello may be said to be unreadable, by where it was going; that is another matter
    let distrusts = |message: &ToController| matches!(message, ToController::Notice(said) if said.detail.contains("certificate"));
    assert_eq!(rig.count(distrusts), 0);
}

/// Programs that people use, none of which trusts the authority of this test. What is not installed is named.
#[test]
fn root_real_clients_that_distrust_us_are_audited() {
    const NODE: &str = "const [port, name] = process.argv.slice(1);
        require('https').get({host: '127.0.0.1', port, servername: name}).on('error', () => process.exit(1))";
    const PYTHON: &str = "import socket, ssl, sys
ssl.create_default_context().wrap_socket(socket.create_connection(('127.0.0.1', int(sys.argv[1]))), server_hostname=sys.argv[2])";
    for (program, arguments, words) in [
        (
            "curl",
            &["-sS", "--connect-to", "NAME:443:127.0.0.1:PORT", "https://NAME/"][..],
            "refused the meter's certificate (UnknownCA)",
        ),
        (
            "openssl",
            &[
                "s_client",
                "-tls1_2",
                "-verify_return_error",
                "-servername",
                "NAME",
                "-connect",
                "127.0.0.1:PORT",
            ],
            "refused the meter's certificate (UnknownCA)",
        ),
        (
            "openssl",
            &[
                "s_client",
                "-tls1_3",
                "-verify_return_error",
                "-servername",
                "NAME",
                "-connect",
                "127.0.0.1:PORT",
            ],
            "refused the meter's certificate (UnknownCA)",
        ),
        ("python3", &["-c", PYTHON, "PORT", "NAME"], "refused the meter's certificate (UnknownCA)"),
        ("node", &["-e", NODE, "PORT", "NAME"], "the meter's certificate"),
    ] {
        let rig = Rig::start(config(nowhere()));
        rig.manner(|manner| manner.original = Some(far(443)));
        let port = rig.address.port().to_string();
        let arguments = arguments.iter().map(|text| text.replace("PORT", &port).replace("NAME", NAME));
        let run = Command::new(program)
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .stdin(Stdio::null())
            .output();
        match run {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                eprintln!("not tried, not installed: {program}")
            }
            Err(error) => panic!("{program}: {error}"),
            Ok(output) => {
                assert!(!output.status.success(), "{program}: {output:?}");
                told_once(&rig, words);
            }
        }
    }
}

#[test]
fn root_a_hello_that_hides_a_name_behind_a_metered_one_is_opened() {
    let rig = Rig::start(config(nowhere()));
    for (_, connect) in WAYS {
        let mut client = connect(&rig);
        client.write_all(&hello_of(hidden_behind(NAME), "example.com")).unwrap();
        let mut record = [0; 6];
        client.read_exact(&mut record).unwrap();
        assert_eq!((record[0], record[5]), (0x16, 2), "the meter itself says hello");
    }
    rig.heard(|message| matches!(message, ToController::Sign { host, .. } if host == NAME));
}

#[test]
fn root_a_client_that_puts_noise_in_the_place_of_a_hidden_name_is_metered() {
    let upstream = Upstream::saying(json_answer("200 OK", JSON));
    let rig = Rig::start(config(upstream.address));
    let request = post("/v1/messages", ASK).replace("Host: meter", &format!("Host: {NAME}"));
    for (way, connect) in WAYS {
        let mut client = tls(greasing_tls(rig.roots()), connect(&rig));
        client.write_all(request.as_bytes()).unwrap();
        assert_eq!(Answer::read(&mut client).unwrap().body, JSON.as_bytes(), "{way}");
    }
    rig.heard(|message| matches!(message, ToController::Settle(settle) if settle.tokens.output == 5));
}

//! TLS that the meter opens: hellos that hide a name, clients that take no such certificate.
use std::io::{ErrorKind, Read, Write};

use meter_proxy::protocol::ToController;

use crate::hellos::{ECH, encrypted_name, hello, with_extension};
use crate::rig::{Rig, client_tls, config, far, is_notice, nowhere, rest_of};

#[test]
fn root_a_client_that_refuses_our_certificate_is_audited_once() {
    let rig = Rig::start(config(nowhere()));
    for _ in 0..3 {
        let name = "api.anthropic.com".try_into().unwrap();
        let distrusting = rustls::ClientConnection::new(client_tls(Vec::new()), name).unwrap();
        let mut client = rustls::StreamOwned::new(distrusting, rig.redirected(far(443)));
        assert_eq!(client.flush().unwrap_err().kind(), ErrorKind::InvalidData);
        assert_eq!(rest_of(&mut client.sock), b"");
    }
    let refused = |message: &ToController| {
        is_notice(message, "refused the meter's certificate") && is_notice(message, "api.anthropic.com")
    };
    rig.heard(|message| refused(message) && is_notice(message, "b1"));
    rig.manner(|manner| manner.original = None);
    rig.taken_in();
    assert_eq!(rig.count(refused), 1);
}

#[test]
fn root_a_hello_that_hides_a_name_behind_a_metered_one_is_opened() {
    let rig = Rig::start(config(nowhere()));
    let mut client = rig.redirected(far(443));
    client.write_all(&with_extension(hello("api.anthropic.com", true), ECH, &encrypted_name())).unwrap();
    let mut record = [0; 6];
    client.read_exact(&mut record).unwrap();
    assert_eq!((record[0], record[5]), (0x16, 2), "the meter itself says hello");
    rig.heard(|message| matches!(message, ToController::Sign { host, .. } if host == "api.anthropic.com"));
}

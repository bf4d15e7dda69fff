//! What a CONNECT, a Host header or a TLS name asks for: one form, and no second reading by anybody.
#![no_main]
use std::ffi::CString;

use libfuzzer_sys::fuzz_target;
use meter_proxy::egress::EgressRule;
use meter_proxy::hosts::{AddressPolicy, Authority, Host, HostPattern, Range};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for default_port in [None, Some(443)] {
        if let Ok(authority) = Authority::parse(text, default_port) {
            an_authority(text, &authority);
        }
    }
    if let Ok(host) = text.parse::<Host>() {
        a_host(&host);
    }
    a_range(text);
    a_rule(text);
    as_connect(text);
});

fn an_authority(text: &str, authority: &Authority) {
    assert!(authority.port != 0);
    assert_eq!(Authority::parse(&authority.to_string(), None).as_ref(), Ok(authority), "{text:?}");
    a_host(&authority.host);
}

fn a_host(host: &Host) {
    assert_eq!(host.to_string().parse().as_ref(), Ok(host), "one form");
    match host {
        Host::Name(name) => {
            assert!(
                name.bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte))
            );
            assert!(!is_address_to_libc(name), "{name:?} is an address to others");
            assert!(HostPattern::parse(name).is_ok_and(|pattern| pattern.matches(host)));
        }
        Host::Address(address) => {
            let target = (*address, 7080).into();
            let policy = AddressPolicy { allow_private: vec![Range::from(*address)], own: vec![target] };
            assert!(!policy.allows(target), "the meter never dials itself");
        }
    }
}

/// Whether the C library's resolver takes it for an address, in one of the old forms (`0x7f.1`, `017700000001`).
fn is_address_to_libc(name: &str) -> bool {
    let Ok(name) = CString::new(name) else { return false };
    let mut address = std::mem::MaybeUninit::<libc::in_addr>::uninit();
    // SAFETY: the name ends with a zero, and there is room for the address
    unsafe { inet_aton(name.as_ptr(), address.as_mut_ptr()) != 0 }
}

unsafe extern "C" {
    fn inet_aton(name: *const libc::c_char, address: *mut libc::in_addr) -> libc::c_int;
}

fn a_range(text: &str) {
    if let Ok(range) = text.parse::<Range>() {
        assert_eq!(range.to_string().parse(), Ok(range));
        assert!(range.contains(range.base()));
        assert!(Range::all_of(range.base()).contains(range.base()));
    }
}

fn a_rule(text: &str) {
    if let Ok(rule) = text.parse::<EgressRule>() {
        assert_eq!(rule.to_string().parse().ok(), Some(rule), "{text:?}");
    }
}

/// The target of a CONNECT as `http` reads it first: both name the same host and port.
fn as_connect(text: &str) {
    let Ok(uri) = text.parse::<http::Uri>() else { return };
    let Some(theirs) = uri.authority() else { return };
    let Ok(ours) = Authority::parse(theirs.as_str(), Some(443)) else { return };
    assert_eq!(ours.port, theirs.port_u16().unwrap_or(443), "{text:?}");
    let named: Host = theirs.host().parse().expect("the same text without its port");
    assert_eq!(ours.host, named, "{text:?}");
}

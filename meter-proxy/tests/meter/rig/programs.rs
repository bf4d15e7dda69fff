//! Programs that people use, as clients.
use std::io::{ErrorKind, Write};
use std::process::{Command, Stdio};

/// What curl prints that trusts this certificate; `None`, and it is said, where there is no curl with HTTP/2.
pub fn curl(certificate_pem: &str, arguments: &[&str]) -> Option<String> {
    let run = |arguments: &[&str]| {
        let path = std::env::var_os("PATH").unwrap();
        Command::new("curl").args(arguments).env_clear().env("PATH", path).stdin(Stdio::null()).output()
    };
    let speaks_http2 = match run(&["--version"]) {
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        version => String::from_utf8(version.unwrap().stdout).unwrap().contains("HTTP2"),
    };
    if !speaks_http2 {
        eprintln!("not tried, not installed: curl with HTTP/2");
        return None;
    }
    let mut trusted = tempfile::NamedTempFile::new().unwrap();
    trusted.write_all(certificate_pem.as_bytes()).unwrap();
    let trust =
        ["--silent", "--show-error", "--max-time", "10", "--cacert", trusted.path().to_str().unwrap()];
    let ended = run(&[&trust, arguments].concat()).unwrap();
    assert!(ended.status.success(), "{ended:?}");
    Some(String::from_utf8(ended.stdout).unwrap())
}

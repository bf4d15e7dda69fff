//! `ca path`: where the certificate is that bottles trust.
use super::output::print;
use crate::ca::CERTIFICATE_FILE;
use crate::cli::{Ca, Global};
use crate::error::{Exit, Failure};
use crate::state::{StateDir, control_socket};

pub(super) fn run(global: &Global, ca: Ca) -> Result<(), Failure> {
    if matches!(ca, Ca::Rotate) {
        return Err(Failure::not_yet("ca rotate"));
    }
    let directory = match &global.state_dir {
        Some(named) if named.exists() => StateDir::open(Some(named))?.run_path(),
        Some(named) => {
            return Err(Failure::new(
                Exit::Failed,
                format!("there is no state directory {}", named.display()),
            ));
        }
        // the host's daemon publishes it beside its socket, where users who may not open its state look too
        None => control_socket(None).with_file_name(""),
    };
    let path = directory.join(CERTIFICATE_FILE);
    if !path.is_file() {
        return Err(Failure::new(Exit::Failed, format!("there is no certificate at {}", path.display()))
            .hint("the daemon makes it when it starts first"));
    }
    print(&format!("{}\n", path.display()))
}

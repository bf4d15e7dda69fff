//! A daemon that must not start: who starts it, its state directory, its port, its socket, its programs.
use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;

use support::enforcer::Daemon;
use support::mounts;
use support::process;
use support::require_root;

use crate::{
    FAILED, NO_DAEMON, NOBODY, Place, REFUSED, SOON, UNSUPPORTED, assert_refused, enforcer, unnamed,
};

#[test]
fn root_another_user_is_told_that_root_is_needed() {
    require_root();
    let place = Place::new();
    // nobody must be able to reach the program, which may be built where only root looks
    fs::set_permissions(place.dir.path(), Permissions::from_mode(0o755)).unwrap();
    let program = place.beside("enforcer");
    process::copy_program(&process::built("enforcer"), &program);
    let own = place.beside("own");
    fs::create_dir(&own).unwrap();
    fs::set_permissions(&own, Permissions::from_mode(0o700)).unwrap();
    chown(&own, Some(NOBODY), Some(NOBODY)).unwrap();
    let own = own.to_str().unwrap();
    for (arguments, code, words) in [
        (&["daemon"][..], REFUSED, "the daemon needs root"),
        (&["--state-dir", own, "daemon"], REFUSED, "the daemon needs root"),
        (&["--state-dir", own, "daemon", "--unpin-all"], REFUSED, "the daemon needs root"),
        (&["--state-dir", own, "run", "--", "true"], REFUSED, "run needs root"),
        (&["--state-dir", own, "attach", "b1", "--pid", "1"], NO_DAEMON, "no daemon answers"),
    ] {
        let mut command = unnamed(&program);
        let output = process::run(command.args(arguments).uid(NOBODY).gid(NOBODY), SOON);
        assert_refused(&output, code, words);
    }
    assert_eq!(fs::read_dir(own).unwrap().count(), 0, "nothing is made for nothing");
}

#[test]
fn root_another_user_may_not_ask_the_daemon() {
    let daemon = Daemon::start("");
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let program = dir.path().join("enforcer");
    process::copy_program(&process::built("enforcer"), &program);
    for arguments in [&["status", "--json"][..], &["attach", "b1", "--pid", "1"], &["cut", "--all"]] {
        let mut command = unnamed(&program);
        command.arg("--socket").arg(daemon.socket()).args(arguments).uid(NOBODY).gid(NOBODY);
        assert_refused(&process::run(&mut command, SOON), REFUSED, "open to root and its group only");
    }
}

#[test]
fn root_a_state_directory_that_others_could_change_is_refused() {
    require_root();
    let place = Place::new();
    let state = place.state();
    fs::set_permissions(&state, Permissions::from_mode(0o750)).unwrap();
    place.assert_refuses(REFUSED, "its mode is 0750, not 0700");
    fs::set_permissions(&state, Permissions::from_mode(0o700)).unwrap();
    chown(&state, Some(NOBODY), None).unwrap();
    place.assert_refuses(REFUSED, "it belongs to uid 65534");
    chown(&state, Some(0), None).unwrap();

    let link = place.beside("link");
    symlink(&state, &link).unwrap();
    let file = place.beside("file");
    fs::write(&file, "").unwrap();
    let socket = place.beside("c.sock");
    for (named, words) in [
        (link.to_str().unwrap().to_owned(), "it is a symbolic link"),
        (format!("{}/", link.display()), "it is a symbolic link"),
        (format!("{}/.", link.display()), "it is a symbolic link"),
        (file.to_str().unwrap().to_owned(), "it is not a directory"),
        (format!("{}/below", file.display()), "Not a directory"),
        (format!("{}/a/b", state.display()), "No such file"),
    ] {
        let mut command = enforcer();
        command.args(["--state-dir", &named, "--socket"]).arg(&socket).arg("daemon");
        assert_refused(&process::run(&mut command, SOON), REFUSED, words);
        assert!(!socket.exists());
    }
}

#[test]
fn root_without_cgroup_v2_nothing_starts() {
    require_root();
    let place = Place::new();
    mounts::private(|| {
        mounts::unmount(&support::cgroup::mount_point());
        assert!(!mounts::mounts().contains(" - cgroup2 "), "the host has it in two places");
        let output = process::run(&mut place.daemon(), SOON);
        assert_refused(&output, UNSUPPORTED, "no cgroup v2 file system is mounted");
    });
    place.assert_no_traces();
}

#[test]
fn root_a_taken_port_is_told() {
    require_root();
    let place = Place::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    place.settings(&format!("listen: \"{address}\"\n"));
    place.assert_refuses(FAILED, &format!("cannot listen on {address}"));
    let mut run = enforcer();
    run.arg("--state-dir").arg(place.state()).args(["run", "--", "true"]);
    let output = process::run(&mut run, SOON);
    assert_eq!((output.code, output.stdout.as_str()), (Some(FAILED), ""), "{output:?}");
    assert!(
        output.stderr.contains(&format!("the daemon did not start: cannot listen on {address}")),
        "{output:?}"
    );
    assert!(!place.state().join("control.sock").exists());
}

#[test]
fn root_a_missing_meter_is_told() {
    require_root();
    let place = Place::new();
    let alone = place.beside("enforcer");
    process::copy_program(&process::built("enforcer"), &alone);
    let mut command = unnamed(&alone);
    let output = process::run(command.arg("--state-dir").arg(place.state()).arg("daemon"), SOON);
    assert_refused(&output, FAILED, "the meter's program is not at");
    place.assert_no_traces();
}

#[test]
fn root_a_second_daemon_is_refused_and_the_first_goes_on() {
    let daemon = Daemon::start("");
    let second = process::run(daemon.command().arg("daemon"), SOON);
    assert_refused(
        &second,
        FAILED,
        &format!("another daemon is running on this state directory (pid {})", daemon.pid()),
    );
    let other = Place::new();
    let mut command = enforcer();
    command.arg("--state-dir").arg(other.state()).arg("--socket").arg(daemon.socket()).arg("daemon");
    assert_refused(&process::run(&mut command, SOON), FAILED, "a daemon serves");
    other.assert_no_traces();
    assert_refused(
        &process::run(daemon.command().args(["daemon", "--unpin-all"]), SOON),
        FAILED,
        "another daemon is running",
    );
    assert_eq!(daemon.json(&["status"])["daemon"]["meter"]["state"], "serving");
}

#[test]
fn root_a_stale_socket_is_replaced_and_anything_else_is_not() {
    let mut daemon = Daemon::start("");
    daemon.kill9();
    assert!(daemon.socket().exists(), "a killed daemon leaves its socket file");
    daemon.restart();
    daemon.stop();
    assert!(!daemon.socket().exists(), "a stopped daemon takes its socket file away");

    let place = Place::new();
    let socket = place.state().join("control.sock");
    fs::write(&socket, "precious").unwrap();
    assert_refused(&process::run(&mut place.daemon(), SOON), REFUSED, "no socket");
    assert_eq!(fs::read_to_string(&socket).unwrap(), "precious");
    fs::remove_file(&socket).unwrap();
    symlink("/dev/null", &socket).unwrap();
    assert_refused(&process::run(&mut place.daemon(), SOON), REFUSED, "no socket");
    assert!(socket.is_symlink());
    fs::remove_file(&socket).unwrap();
    let live = UnixListener::bind(&socket).unwrap();
    assert_refused(&process::run(&mut place.daemon(), SOON), FAILED, "a daemon serves");
    drop(live);
}

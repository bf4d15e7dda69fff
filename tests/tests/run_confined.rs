//! What a command of `enforcer run` cannot do, tried by one: sockets that the bottle's hooks do not see, and leaving
//! its cgroup. And what it can: the programs that agents use go on working.
#![allow(clippy::unwrap_used, reason = "a failed expectation should stop the test where it stands")]
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use support::cgroup::{TestCgroup, mount_point};
use support::process::{self, Output};
use support::provider::Reply;
use support::stage::Stage;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);
/// `nobody` and its group.
const NOBODY: (u32, u32) = (65_534, 65_534);
const SIGSYS: i32 = 31;

/// A daemon, and a program where every user can start it.
struct Scene {
    stage: Stage,
    programs: TempDir,
}

impl Scene {
    fn new() -> Self {
        let programs = tempfile::tempdir().unwrap();
        fs::set_permissions(programs.path(), fs::Permissions::from_mode(0o755)).unwrap();
        process::copy_program(&process::built("confined"), &programs.path().join("confined"));
        Self { stage: Stage::new(Reply::default(), ""), programs }
    }

    fn program(&self) -> PathBuf {
        self.programs.path().join("confined")
    }

    fn run(&self, user: &str, words: &[&str]) -> Output {
        let mut command = self.stage.daemon.command();
        command.args(["run", "--user", user, "--workdir", "/", "--"]).args(words);
        process::run(&mut command, PATIENCE)
    }

    /// What `confined` prints, inside as `user`.
    fn confined(&self, user: &str, words: &[&str]) -> Value {
        let output = self.run(user, &[&[self.program().to_str().unwrap()], words].concat());
        assert_eq!(output.code, Some(0), "{user} {words:?}: {output:?}");
        serde_json::from_str(&output.stdout).unwrap()
    }
}

/// What it prints outside of every bottle, in a cgroup of its own: it makes others below, which go with that one.
fn free(scene: &Scene, words: &[&str]) -> Value {
    let group = TestCgroup::new("free");
    let mut command = Command::new(scene.program());
    let output = process::run(group.enter_before_exec(command.args(words)), PATIENCE);
    assert_eq!(output.code, Some(0), "{output:?}");
    serde_json::from_str(&output.stdout).unwrap()
}

#[test]
fn root_no_socket_that_the_hooks_do_not_see() {
    let scene = Scene::new();
    let inside = json!({
        "unix": "ok", "tcp4": "ok", "udp6": "ok", "netlink raw": "ok",
        "raw4": "EPERM", "raw4 with flags": "EPERM", "raw6": "EPERM",
        "packet": "EAFNOSUPPORT", "packet of old": "EPERM",
        "vsock": "EAFNOSUPPORT", "xdp": "EAFNOSUPPORT", "alg": "EAFNOSUPPORT",
        "io_uring": "ENOSYS", "TIOCSTI": "EPERM", "TIOCLINUX": "EPERM",
    });
    for user in ["nobody", "root"] {
        assert_eq!(scene.confined(user, &["sockets"]), inside, "{user}");
    }
    let outside = free(&scene, &["sockets"]);
    for name in ["raw4", "raw4 with flags", "raw6", "packet", "packet of old"] {
        assert_eq!(outside[name], "ok", "root can do it outside, so it is the filter that refuses");
    }
    assert_eq!(json!([outside["TIOCSTI"], outside["TIOCLINUX"]]), json!(["EBADF", "EBADF"]));
    assert_ne!(outside["io_uring"], "ENOSYS");
}

#[test]
#[cfg(target_arch = "x86_64")]
fn root_calls_of_32_bit_programs_end_the_command() {
    let scene = Scene::new();
    let outside = process::run(Command::new(scene.program()).arg("compat"), PATIENCE);
    if outside.code != Some(0) {
        eprintln!("this kernel has no 32-bit calls: {outside:?}");
    }
    for user in ["nobody", "root"] {
        let output = scene.run(user, &[scene.program().to_str().unwrap(), "compat"]);
        // a kernel without such calls ends it by SIGSEGV, which is no way around either
        let ends = if outside.code == Some(0) { SIGSYS } else { 11 };
        assert_eq!(output.code, Some(128 + ends), "{user}: {output:?}");
    }
}

#[test]
fn root_an_ordinary_command_does_not_leave_its_cgroup() {
    let scene = Scene::new();
    let own = TestCgroup::new("nobodys");
    for file in ["", "cgroup.procs", "cgroup.threads"] {
        chown(own.path().join(file), Some(NOBODY.0), Some(NOBODY.1)).unwrap();
    }
    let (root, elsewhere) = (mount_point(), own.path().to_str().unwrap());
    let answers = scene.confined("nobody", &["migrate", root.to_str().unwrap(), elsewhere]);
    let answers = answers.as_object().unwrap();
    assert_eq!(answers.len(), 7);
    for (attempt, answer) in answers {
        assert!(["EACCES", "EPERM"].contains(&answer.as_str().unwrap()), "{attempt}: {answer}");
    }
    // who may write both may move: these are attempts that can succeed
    let free = free(&scene, &["migrate", root.to_str().unwrap(), elsewhere]);
    for attempt in ["to one of its own", "a child born in one of its own", "to one below"] {
        assert!(["moved", "ok"].contains(&free[attempt].as_str().unwrap()), "{attempt}: {free}");
    }
}

#[test]
fn root_the_programs_that_agents_use_work_inside() {
    let scene = Scene::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::io::Read::read(&mut stream, &mut [0; 4096]).unwrap();
            std::io::Write::write_all(&mut stream, b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody")
                .unwrap();
        }
    });
    let url = format!("http://127.0.0.1:{port}/");
    let node = format!(
        "require('fs').readFile('/etc/hosts', () => require('dns').lookup('localhost', () =>
           require('http').get('{url}', r => r.on('data', d => console.log(String(d))))))"
    );
    let python = format!(
        "import socket, asyncio, subprocess, urllib.request as u
u.install_opener(u.build_opener(u.ProxyHandler({{}})))
socket.getaddrinfo('localhost', 80); subprocess.check_call(['true'])
asyncio.run(asyncio.sleep(0)); print(u.urlopen('{url}').read().decode())"
    );
    let git = "cd $(mktemp -d) && git init -q . && echo body > f && git add f &&
        git -c user.name=n -c user.email=e commit -qm m && git clone -q . copy && cat copy/f; rm -rf $PWD";
    let table: [(&str, &[&str]); 6] = [
        (
            "bash",
            &[
                "-c",
                "exec 3<>/dev/tcp/127.0.0.1/$0; coproc cat; echo body >&${COPROC[1]}; read -u ${COPROC[0]} x; echo $x",
                &port.to_string(),
            ],
        ),
        ("curl", &["-sS", "--noproxy", "*", &url]),
        ("git", &[]),
        ("node", &["-e", &node]),
        ("/usr/bin/python3", &["-c", &python]),
        ("ip", &["-o", "address", "show", "lo"]),
    ];
    for (program, arguments) in table {
        if Command::new(program).arg("--version").output().is_err() {
            eprintln!("not tried, since it is not installed: {program}");
            continue;
        }
        for user in ["nobody", "root"] {
            let words = match program {
                "git" => vec!["bash", "-c", git],
                program => [&[program], arguments].concat(),
            };
            let output = scene.run(user, &words);
            assert_eq!(output.code, Some(0), "{program} as {user}: {output:?}");
            let expected = if program == "ip" { "127.0.0.1" } else { "body" };
            assert!(output.stdout.contains(expected), "{program} as {user}: {output:?}");
        }
    }
}

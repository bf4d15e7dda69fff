//! The control API's server and client over a real Unix socket, with a controller made for the test.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by unwrapping")]
#[path = "support/program.rs"]
mod program;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use enforcer::audit;
use enforcer::budget::window::Window;
use enforcer::control::api::{
    AddTokens, Attach, Attached, Bottle, BudgetRow, BudgetScope, Cut, Daemon, Detached, Environment, Lane,
    Meter, Packets, Problem, Programs, Reason, Reloaded, Restore, SetBudget, State, Status,
};
use enforcer::control::client::{Client, ClientError};
use enforcer::control::server::{Server, ServerError};
use enforcer::control::{Controller, Event};
use enforcer::core::{BudgetOrder, BudgetVerb};
use enforcer::kernel::Face;
use enforcer::ledger::{FlowRow, GroupBy, UsageQuery, UsageRow};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

/// Knows one bottle, `b1`, and answers with what it was asked.
struct Fake {
    in_bottle: AtomicBool,
    events: broadcast::Sender<Event>,
}

fn problem(error: &str, exit_code: u8) -> Problem {
    Problem { error: error.to_owned(), hint: None, exit_code }
}

fn bottle(name: &str, state: State) -> Bottle {
    Bottle {
        name: name.to_owned(),
        agent: None,
        parent: None,
        cgroup: format!("/sys/fs/cgroup/{name}"),
        pids: 1,
        state,
        face: None,
        cause: None,
        policy: "cutoff".into(),
        egress: "open".into(),
        usage: BTreeMap::new(),
        budget: BTreeMap::new(),
        chain: BTreeMap::new(),
        kernel: Packets::default(),
    }
}

impl Fake {
    fn known(name: &str, state: State) -> Result<Bottle, Problem> {
        if name == "b1" { Ok(bottle(name, state)) } else { Err(problem("no such bottle", 2)) }
    }
}

impl Controller for Fake {
    async fn status(&self) -> Status {
        Status {
            daemon: Daemon {
                pid: 1,
                version: "0".into(),
                meter: Meter { pid: None, listen: "127.0.0.1:1".into(), state: "down".into() },
                lane: Lane { pid: None, state: "down".into() },
                kernel: Programs { programs: "attached".into(), lease_s: None },
                closed: None,
            },
            bottles: vec![bottle("b1", State::Open)],
        }
    }
    async fn bottle(&self, name: &str) -> Result<Bottle, Problem> {
        Self::known(name, State::Open)
    }
    async fn attach(&self, attach: Attach, by: &str) -> Result<Attached, Problem> {
        if attach.name == "host-poor" {
            return Err(problem("no cgroup v2", 5));
        }
        Ok(Attached { bottle: bottle(&attach.name, State::Open), warnings: vec![by.to_owned()] })
    }
    async fn detach(&self, name: &str, force: bool, _by: &str) -> Result<Detached, Problem> {
        Self::known(name, State::Open)?;
        let detached = Detached { warnings: vec!["comes back".into()] };
        if force { Ok(detached) } else { Err(problem("cut: needs force", 4)) }
    }
    async fn cut(&self, name: &str, cut: Cut, _by: &str) -> Result<Bottle, Problem> {
        let mut cut_bottle = Self::known(name, State::Cut)?;
        cut_bottle.face = cut.face;
        Ok(cut_bottle)
    }
    async fn cut_all(&self, _cut: Cut, _by: &str) -> Result<Vec<Bottle>, Problem> {
        Ok(vec![bottle("b1", State::Cut)])
    }
    async fn restore(&self, name: &str, restore: Restore, _by: &str) -> Result<Bottle, Problem> {
        if restore.add.is_empty() {
            return Err(problem("the budget is used up", 4));
        }
        Self::known(name, State::Open)
    }
    async fn freeze(&self, name: &str, _reason: Reason, _by: &str) -> Result<Bottle, Problem> {
        Self::known(name, State::Frozen)
    }
    async fn thaw(&self, name: &str, _by: &str) -> Result<Bottle, Problem> {
        Self::known(name, State::Open)
    }
    async fn kill(&self, name: &str, reason: Reason, by: &str) -> Result<Bottle, Problem> {
        let cause = audit::Cause::operator(by.into(), reason.reason);
        Ok(Bottle { cause: Some(cause), ..Self::known(name, State::Killed)? })
    }
    async fn reload(&self, _by: &str) -> Result<Reloaded, Problem> {
        Ok(Reloaded::default())
    }
    async fn budgets(&self) -> Result<Vec<BudgetRow>, Problem> {
        Ok(vec![budget_row("global", "claude", 5)])
    }
    async fn state_budget(&self, order: BudgetOrder, by: &str) -> Result<Option<BudgetRow>, Problem> {
        let row = |tokens| budget_row(&format!("{} by {by}", order.scope), &order.provider, tokens);
        match order.verb {
            BudgetVerb::Set(SetBudget { tokens, window }) => {
                Ok(Some(BudgetRow { window: window.unwrap_or_default(), ..row(tokens) }))
            }
            BudgetVerb::Add(tokens) => Ok(Some(BudgetRow { added: tokens, ..row(tokens) })),
            BudgetVerb::Clear if order.scope == BudgetScope::Global => Err(problem("there is none", 2)),
            BudgetVerb::Clear => Ok(None),
        }
    }
    async fn environment(&self, name: &str) -> Result<Environment, Problem> {
        Self::known(name, State::Open)?;
        Ok(Environment { variables: vec![("A".into(), "b".into())], config: Vec::new() })
    }
    async fn usage(&self, query: UsageQuery) -> Result<Vec<UsageRow>, Problem> {
        let day = query.since.map(|since| since.to_string());
        Ok(vec![UsageRow { bottle: query.bottle, provider: query.provider, day, ..UsageRow::default() }])
    }
    async fn flows(&self, _query: UsageQuery) -> Result<Vec<FlowRow>, Problem> {
        Ok(Vec::new())
    }
    async fn audit(&self, after: i64, limit: u32) -> Result<Vec<audit::Row>, Problem> {
        Ok(vec![row(after + i64::from(limit))])
    }
    async fn holds_process(&self, _pid: i32) -> bool {
        self.in_bottle.load(Ordering::Relaxed)
    }
    fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}

fn budget_row(scope: &str, provider: &str, tokens: u64) -> BudgetRow {
    BudgetRow {
        scope: scope.into(),
        provider: provider.into(),
        window: Window::Total,
        tokens,
        added: 0,
        limit: tokens,
        used: 0,
        reserved: 0,
        remaining: tokens,
        until: None,
        source: "operator".into(),
        bottles: 1,
    }
}

fn row(id: i64) -> audit::Row {
    audit::Row {
        id,
        at: "t".into(),
        bottle: None,
        action: "cut".into(),
        cause: None,
        by: "uid:0".into(),
        outcome: "done".into(),
        detail: None,
        took_us: None,
    }
}

/// A server in a directory of its own; stops when dropped.
struct Running {
    directory: tempfile::TempDir,
    fake: Arc<Fake>,
    shutdown: CancellationToken,
    served: tokio::task::JoinHandle<()>,
}

impl Running {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let server = Server::bind(&directory.path().join("control.sock"), own_group()).unwrap();
        let fake = Arc::new(Fake { in_bottle: AtomicBool::new(false), events: broadcast::channel(4).0 });
        let shutdown = CancellationToken::new();
        let served = tokio::spawn(server.serve(fake.clone(), shutdown.clone()));
        Self { directory, fake, shutdown, served }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("control.sock")
    }

    fn client(&self) -> Client {
        Client::new(self.socket())
    }

    /// Status and body of the answer to a request as written, without the client.
    async fn raw(&self, request: String) -> (u16, String) {
        let socket = self.socket();
        tokio::task::spawn_blocking(move || exchange(&socket, &request)).await.unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// So that the tests run for any user: without a group only root is served.
#[allow(clippy::unnecessary_wraps, reason = "the shape that bind takes")]
fn own_group() -> Option<u32> {
    Some(nix::unistd::getegid().as_raw())
}

fn exchange(socket: &Path, request: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn request(method: &str, path: &str, body: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: enforcer\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn every_call_reaches_the_controller_and_comes_back() {
    let running = Running::start();
    let client = running.client();
    assert_eq!(client.status().await.unwrap(), running.fake.status().await);
    assert_eq!(client.bottle("b1").await.unwrap().name, "b1");
    let attach = Attach { name: "b2".into(), create: true, ..Attach::default() };
    let attached = client.attach(&attach).await.unwrap();
    assert_eq!(attached.bottle.name, "b2");
    assert_eq!(attached.warnings, [format!("uid:{}", nix::unistd::geteuid())]);
    assert_eq!(client.detach("b1", true).await.unwrap().warnings, ["comes back"]);
    let cut = Cut { face: Some(Face::Silent), ..Cut::default() };
    let cut_bottle = client.cut("b1", &cut).await.unwrap();
    assert_eq!((cut_bottle.state, cut_bottle.face), (State::Cut, Some(Face::Silent)));
    assert_eq!(client.cut_all(&Cut::default()).await.unwrap().len(), 1);
    let restore = Restore { add: BTreeMap::from([("claude".into(), 5)]), force: false };
    assert_eq!(client.restore("b1", &restore).await.unwrap().state, State::Open);
    assert_eq!(client.environment("b1").await.unwrap().variables, [("A".into(), "b".into())]);
    assert_eq!(client.audit(40, 2).await.unwrap(), [row(42)]);
    assert_eq!(client.flows(&UsageQuery::default()).await.unwrap(), []);
}

#[tokio::test]
async fn budgets_are_listed_and_stated() {
    let running = Running::start();
    let client = running.client();
    assert_eq!(client.budgets().await.unwrap(), [budget_row("global", "claude", 5)]);
    let by = format!("uid:{}", nix::unistd::geteuid());
    let scope = BudgetScope::Bottle("b1".into());
    let of = format!("{scope} by {by}");
    let set = SetBudget { tokens: 7, window: Some(Window::Daily) };
    let stands = client.set_budget(&scope, "claude", &set).await.unwrap();
    assert_eq!(stands, BudgetRow { window: Window::Daily, ..budget_row(&of, "claude", 7) });
    let stands = client.add_to_budget(&scope, "codex", &AddTokens { tokens: 3 }).await.unwrap();
    assert_eq!(stands, BudgetRow { added: 3, ..budget_row(&of, "codex", 3) });
    assert_eq!(client.clear_budget(&scope, "claude").await.unwrap(), None);
}

#[tokio::test]
async fn a_usage_query_arrives_as_it_was_asked() {
    let running = Running::start();
    let query = UsageQuery {
        bottle: Some("b1".into()),
        provider: Some("a&b=c d".into()),
        since: Some(1_700_000_000_123),
        by: Some(GroupBy::Day),
        ..UsageQuery::default()
    };
    let rows = running.client().usage(&query).await.unwrap();
    assert_eq!(rows[0].bottle.as_deref(), Some("b1"));
    assert_eq!(rows[0].provider.as_deref(), Some("a&b=c d"));
    assert_eq!(rows[0].day.as_deref(), Some("1700000000123"));
}

#[tokio::test]
async fn a_refusal_keeps_its_words_and_exit_code() {
    let running = Running::start();
    let client = running.client();
    let refused = |error: ClientError| match error {
        ClientError::Refused(problem) => (problem.error, problem.exit_code),
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(client.bottle("b9").await.unwrap_err()), ("no such bottle".into(), 2));
    assert_eq!(refused(client.detach("b1", false).await.unwrap_err()), ("cut: needs force".into(), 4));
    let attach = Attach { name: "host-poor".into(), ..Attach::default() };
    assert_eq!(refused(client.attach(&attach).await.unwrap_err()), ("no cgroup v2".into(), 5));
}

#[tokio::test]
async fn bad_requests_have_their_status_and_a_problem_as_body() {
    let running = Running::start();
    let big = format!("{{\"name\":\"{}\"}}", "x".repeat(64 * 1024));
    for (method, path, body, status, exit_code) in [
        ("GET", "/nonsense", "", 404, 2),
        ("DELETE", "/v1/status", "", 404, 2),
        ("GET", "/v1/bottles/b9", "", 404, 2),
        ("POST", "/v1/bottles/b9/cut", "", 404, 2),
        ("POST", "/v1/bottles/b1/restore", "{}", 403, 4),
        ("GET", "/v1/bottles/..", "", 400, 2),
        ("GET", "/v1/bottles/%2e%2e", "", 400, 2),
        ("POST", "/v1/bottles/b1/freeze", "{\"for\":\"ever\"}", 400, 2),
        ("POST", "/v1/bottles/b1/thaw", "{\"gently\":true}", 400, 2),
        ("POST", "/v1/bottles/b9/kill", "", 404, 2),
        ("PUT", "/v1/budgets/global/claude", "{}", 400, 2),
        ("PUT", "/v1/budgets/global/claude", "{\"tokens\":-1}", 400, 2),
        ("PUT", "/v1/budgets/global/claude", "{\"tokens\":1,\"window\":\"yearly\"}", 400, 2),
        ("PUT", "/v1/budgets/world/claude", "{\"tokens\":1}", 400, 2),
        ("PUT", "/v1/budgets/bottle:../claude", "{\"tokens\":1}", 400, 2),
        ("POST", "/v1/budgets/agent:/claude", "{\"tokens\":1}", 400, 2),
        ("POST", "/v1/budgets/global/claude", "{\"tokens\":1,\"window\":\"daily\"}", 400, 2),
        ("DELETE", "/v1/budgets/global/claude", "", 400, 2),
        ("GET", "/v1/budgets/global/claude", "", 404, 2),
        ("POST", "/v1/bottles", "{", 400, 2),
        ("POST", "/v1/bottles", "", 400, 2),
        ("POST", "/v1/bottles", "{\"name\":\"b2\",\"colour\":\"red\"}", 400, 2),
        ("POST", "/v1/bottles", big.as_str(), 413, 2),
        ("POST", "/v1/bottles", "{\"name\":\"host-poor\"}", 501, 5),
        ("GET", "/v1/usage?provder=x", "", 400, 2),
        ("GET", "/v1/audit?after=x", "", 400, 2),
        ("DELETE", "/v1/bottles/b1?force=perhaps", "", 400, 2),
    ] {
        let (got, body) = running.raw(request(method, path, body)).await;
        assert_eq!(got, status, "{method} {path}: {body}");
        let problem: Problem = serde_json::from_str(&body).unwrap();
        assert_eq!(problem.exit_code, exit_code, "{method} {path}: {body}");
    }
}

#[tokio::test]
async fn a_process_in_a_bottle_is_refused_also_on_a_connection_that_is_open() {
    let running = Running::start();
    let socket = running.socket();
    let fake = running.fake.clone();
    let statuses = tokio::task::spawn_blocking(move || {
        let mut stream = UnixStream::connect(socket).unwrap();
        [false, true].map(|in_bottle| {
            fake.in_bottle.store(in_bottle, Ordering::Relaxed);
            stream.write_all(b"GET /v1/bottles HTTP/1.1\r\nHost: enforcer\r\n\r\n").unwrap();
            let mut answer = [0; 4096];
            let read = stream.read(&mut answer).unwrap();
            String::from_utf8_lossy(&answer[..read]).split(' ').nth(1).unwrap().to_owned()
        })
    });
    assert_eq!(statuses.await.unwrap(), ["200", "403"]);
}

#[tokio::test]
async fn events_come_as_they_happen_and_end_with_the_server() {
    let running = Running::start();
    let mut stream = UnixStream::connect(running.socket()).unwrap();
    stream.write_all(b"GET /v1/events HTTP/1.1\r\nHost: enforcer\r\nConnection: close\r\n\r\n").unwrap();
    while running.fake.events.receiver_count() == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    running.fake.events.send(Event::Audit(Box::new(row(7)))).unwrap();
    let read = tokio::task::spawn_blocking(move || {
        let (mut text, mut part) = (String::new(), [0; 1024]);
        loop {
            match stream.read(&mut part).unwrap() {
                0 => return text,
                read => text.push_str(&String::from_utf8_lossy(&part[..read])),
            }
        }
    });
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    running.shutdown.cancel();
    let text = read.await.unwrap();
    assert!(text.contains("text/event-stream"), "{text}");
    assert!(text.contains("event: audit\ndata: {\"id\":7,"), "{text}");
}

#[tokio::test]
async fn the_socket_is_closed_to_others_and_gone_after_shutdown() {
    let mut running = Running::start();
    let found = std::fs::symlink_metadata(running.socket()).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o660);
    running.shutdown.cancel();
    (&mut running.served).await.unwrap();
    assert!(!running.socket().exists());
    assert!(matches!(running.client().status().await, Err(ClientError::NoDaemon(_))));
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_anything_else_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(matches!(Client::new(&path).status().await, Err(ClientError::NoDaemon(_))));
    let live = Server::bind(&path, None).unwrap();
    assert!(matches!(Server::bind(&path, None), Err(ServerError::InUse(_))));
    drop(live);
    assert!(!path.exists(), "a server that never came to serve leaves no file");

    std::fs::write(&path, "keep").unwrap();
    assert!(matches!(Server::bind(&path, None), Err(ServerError::Unsafe { .. })));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "keep");

    let link = directory.path().join("link.sock");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(matches!(Server::bind(&link, None), Err(ServerError::Unsafe { .. })));
    assert!(link.symlink_metadata().unwrap().is_symlink());
}

#[tokio::test]
async fn a_directory_that_others_can_write_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(
        Server::bind(&directory.path().join("control.sock"), None),
        Err(ServerError::Unsafe { .. })
    ));
    assert!(matches!(Server::bind(Path::new("control.sock"), None), Err(ServerError::Unsafe { .. })));
}

/// `enforcer status` as another user: exit code and stderr. The binary is copied to where that user may run it.
fn status_as(directory: &Path, gid: u32, groups: &str) -> (Option<i32>, String) {
    let there = directory.join("enforcer");
    let binary = if there.exists() { there } else { program::copy_into(directory) };
    let output = std::process::Command::new("setpriv")
        .args(["--reuid", "54321", "--regid", &gid.to_string(), "--groups", groups])
        .arg(binary)
        .args(["--socket", &directory.join("control.sock").display().to_string(), "status"])
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn root_only_root_and_the_group_are_served() {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root");
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = directory.path().join("control.sock");
    let server = Server::bind(&path, Some(54_000)).unwrap();
    let fake = Arc::new(Fake { in_bottle: AtomicBool::new(false), events: broadcast::channel(4).0 });
    let shutdown = CancellationToken::new();
    let served = tokio::spawn(server.serve(fake, shutdown.clone()));
    let asks = |gid, groups: &str| tokio::task::block_in_place(|| status_as(directory.path(), gid, groups));
    assert_eq!(asks(54_321, "54000"), (Some(0), String::new()));
    assert_eq!(asks(54_000, "54321"), (Some(0), String::new()));
    let (code, words) = asks(54_321, "54001");
    assert_eq!(code, Some(4));
    assert!(words.contains("is open to root and its group only"), "{words}");
    // the mode is not the only guard
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    let (code, words) = asks(54_321, "54001");
    assert_eq!(code, Some(4));
    assert!(words.contains("serves root and its own group only"), "{words}");
    shutdown.cancel();
    served.await.unwrap();
}

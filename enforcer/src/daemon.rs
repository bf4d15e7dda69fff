//! `enforcer daemon`: the only place that wires threads and tasks together.
//!
//! Order: what can be refused without a trace first (settings, state, lock, listener, ledger), then the kernel,
//! the core (which takes over what is there), the meter, and last the control socket, so that whoever gets an
//! answer gets a whole controller. Stopping goes the other way and opens nothing.
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use meter_proxy::protocol::{self, Config, ToMeter};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;

use crate::act;
use crate::bottle::awaited::Awaited;
use crate::bottle::events;
use crate::bottle::home::Home;
use crate::bottle::namespaces::{self, Namespaces, Watched};
use crate::bottle::registry::{self, Registry};
use crate::ca::{self, Ca};
use crate::control::api::Problem;
use crate::control::server;
use crate::core::{self, BottleModel, CoreHandle, Listener, Message};
use crate::egress::Keeper;
use crate::error::{Exit, Failure};
use crate::helpers::signer::Signer;
use crate::hooks;
use crate::kernel::Kernel;
use crate::kernel::loader::Loader;
use crate::kernel::log::Log;
use crate::lane::{self, Berth, Lane};
use crate::ledger::Ledger;
use crate::ledger::sqlite::{self, SqliteLedger};
use crate::ledger::writer::Writer;
use crate::meter::{self, HostListeners, Meter};
use crate::policy;
use crate::reload::{self, Reload, Source};
use crate::retention;
use crate::settings::Settings;
use crate::state::StateDir;

/// Changes that a slow listener may be behind.
const CHANGES_KEPT: usize = 4_096;
/// How long the meter and the lane may take to serve each, before the daemon goes on without.
const HELPER_START: Duration = Duration::from_secs(10);
/// How long a stopping daemon waits for exchanges under way to settle after their upstreams are closed.
const SETTLE_AT_STOP: Duration = Duration::from_secs(2);
/// How long the meter holds a response back for its settlement before it aborts it.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Members of this group may use the control socket.
const CONTROL_GROUP: &str = "enforcer";
/// How often the daemon looks whether its threads live.
const HEALTH_CHECK: Duration = Duration::from_millis(200);
/// Longest file of extra roots: it must fit one message to the meter beside the rest of the configuration.
const MAX_EXTRA_ROOTS_BYTES: usize = 96 * 1024;

/// What the command line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// State directory; the default of the user it runs as without it.
    pub state_dir: Option<PathBuf>,
    /// The control socket.
    pub socket: PathBuf,
    /// Settings file; `STATE_DIR/settings.yml`, if there is one, without it.
    pub settings: Option<PathBuf>,
    /// How much is logged: its helpers are told, and at `TRACE` the kernel programs log what they drop.
    pub log: LevelFilter,
}

/// Runs the controller in the foreground until SIGTERM or SIGINT.
///
/// # Errors
/// Whatever keeps it from starting, as one line with a hint; nothing is left half-started.
pub fn run(options: Options) -> Result<(), Failure> {
    #[cfg(debug_assertions)]
    crate::clock::test::follow();
    let state = StateDir::open(options.state_dir.as_deref())?;
    let source = match &options.settings {
        Some(path) => Source { path: path.clone(), named: true },
        None => Source { path: state.file("settings.yml"), named: false },
    };
    let reload = Arc::new(Reload::start(source, meter_config)?);
    for warning in reload.live().borrow().warnings() {
        tracing::warn!("settings: {warning}");
    }
    let lock = state.lock()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::io("the async runtime cannot be started", &error))?;
    let outcome = runtime.block_on(serve(&state, reload, &options));
    // queries on blocking threads may be under way; they must not keep a stopped daemon alive
    runtime.shutdown_timeout(Duration::from_millis(500));
    drop(lock);
    outcome
}

async fn serve(state: &StateDir, reload: Arc<Reload>, options: &Options) -> Result<(), Failure> {
    let (socket, log) = (&options.socket, options.log);
    let live = reload.live();
    let settings = live.borrow().clone();
    // one that comes while the daemon is starting must not end it
    let hangup = listen_for(SignalKind::hangup())?;
    let run_dir = state.run_dir()?;
    let control = server::Server::bind(socket, control_group()?)?;
    let config = meter_config(&settings)?;
    let HostListeners { address, beside, cookie, sockets } = meter::listen(settings.listen)?;
    let ca = Arc::new(Ca::load_or_create(state)?);
    let ca_certificate = ca.publish(&run_dir)?;
    let ca_bundle = run_dir.join(ca::BUNDLE_FILE);
    let program = meter::program()?;
    let mut ledger = SqliteLedger::open(&state.file(sqlite::FILE))?;
    let snapshot = ledger.load()?;
    let reader = ledger.reader()?;
    let home = Home::enter(state.instance(), is_managed())?;
    let kernel: Arc<dyn Kernel> = Arc::new(open_kernel(state, log)?);
    let berth = Berth::prepare(kernel.clone(), &home)?;
    let lane_address = Some(berth.address());
    let listener = Listener { address, beside, id: enforcer_ebpf::LISTENER_HOST, lane: lane_address };
    kernel.set_place(cookie, &listener.place())?;

    let egress = Arc::new(Keeper::new(kernel.clone(), settings.allow.clone(), settings.resolvers.clone()));
    // narrowed before anything opens; which of them live, and in which slots, is the core's to find out
    egress.take_over(snapshot.attachments.iter().map(|(attachment, _)| attachment.into()))?;
    let (writer, writing) = Writer::spawn(Box::new(ledger));
    let (changes, changed) = broadcast::channel(CHANGES_KEPT);
    let (actor, orders) = act::orders();
    let ((hand, held), (hooks, calls)) = (policy::orders(), hooks::calls());
    let parts = core::Parts {
        settings: settings.clone(),
        kernel: kernel.clone(),
        writer,
        listener,
        actor,
        hand,
        hooks,
        changes,
    };
    let (core, deciding) = core::start(parts, snapshot)?;
    tokio::spawn(held.run(core.clone()));
    tokio::spawn(hooks::run(calls, core.clone()));
    let (bottles, _) = core.ask(|reply| Message::View { reply }).await.map_err(Problem::from)?;
    egress.take_over(bottles.iter().map(|bottle| (&bottle.attachment).into()))?;

    let signer = Signer::start(ca, live.clone()).map_err(meter::MeterError::from)?;
    let meter_options = meter::Options {
        program: program.clone(),
        log,
        cgroup_procs: Some(home.meter_procs()),
        config,
        sockets,
    };
    let meter = Arc::new(Meter::start(meter_options, core.clone(), signer.clone())?);
    let (namespaces, inbox) = Namespaces::new();
    let lane_parts = lane::Parts {
        program,
        log,
        settings: live.clone(),
        core: core.clone(),
        signer,
        namespaces: namespaces.clone(),
    };
    let lane = Arc::new(Lane::start(berth, lane_parts)?);
    let acting = act::start(
        orders,
        act::Parts {
            kernel: kernel.clone(),
            meter: meter.clone(),
            core: core.clone(),
            meter_port: address.port(),
        },
    )
    .map_err(|error| Failure::io("sockets cannot be aborted", &error))?;
    let parts = namespaces::Parts {
        kernel: kernel.clone(),
        meter: meter.clone(),
        lane: lane.clone(),
        core: core.clone(),
        listener,
        host_cookie: cookie,
    };
    let looking = look_after_namespaces(parts, inbox, &namespaces, bottles).await?;
    let told =
        reload::Told { core: core.clone(), egress: egress.clone(), meter: meter.clone(), lane: lane.clone() };
    reload.tell(told);
    let parts = registry::Parts {
        core: core.clone(),
        kernel,
        egress: egress.clone(),
        settings: live,
        reload: reload.clone(),
        listener,
        meter: meter.clone(),
        lane: lane.clone(),
        namespaces: namespaces.clone(),
        bottles_dir: home.bottles(),
        ca_certificate,
        ca_bundle,
    };
    let registry = Registry::start(parts, reader, changed);
    let mut awaited = Awaited::new(registry.clone())?;
    awaited.look().await;
    let stop = CancellationToken::new();
    let awaiting = awaited.start(stop.clone());
    tokio::spawn(retention::keep(registry.clone(), stop.clone()));
    let audit = core.clone();
    tokio::spawn(egress.keep_fresh(stop.clone(), move |detail| {
        audit.tell(Message::Warn { bottle: None, detail, failed: false });
    }));
    let answering = tokio::spawn(control.serve(registry, stop.clone()));
    wait_for_helpers(&meter, &lane).await;
    tell_service_manager(&[sd_notify::NotifyState::Ready]);
    tracing::info!(socket = %socket.display(), listen = %listener.address, "the daemon serves");

    tokio::spawn(reload_when_asked(reload, hangup, stop.clone()));
    asked_to_stop(&[&deciding, &writing, &looking, &acting]).await?;
    tracing::info!("stopping; cut bottles stay cut");
    tell_service_manager(&[sd_notify::NotifyState::Stopping]);
    stop.cancel();
    for task in [answering, awaiting] {
        if let Err(error) = task.await {
            tracing::error!(%error, "a task of the daemon failed");
        }
    }
    settle_all(&core).await;
    // the lane's port may be anybody's once this process has ended
    namespaces.lane(false);
    namespaces.stop();
    join("namespaces", looking).await;
    join("meter's", std::thread::spawn(move || meter.stop())).await;
    core.tell(Message::Stop);
    join("core", deciding).await;
    join("writer", writing).await;
    join("act", acting).await;
    join("lane's", std::thread::spawn(move || stop_lane(&lane))).await;
    drop(home);
    Ok(())
}

/// Loads the programs, or takes over those that are there; when everything is to be logged, what they drop is.
fn open_kernel(state: &StateDir, log: LevelFilter) -> Result<Loader, Failure> {
    let loader = if log == LevelFilter::TRACE {
        Loader::open_to_log(state.instance(), Log::Drops).or_else(|error| {
            tracing::warn!(%error, "the kernel programs log nothing: those that do cannot be loaded here");
            Loader::open(state.instance())
        })?
    } else {
        Loader::open(state.instance())?
    };
    if let Some(logged) = loader.logged()? {
        logged.follow().map_err(|error| Failure::io("the kernel programs' log cannot be read", &error))?;
    }
    Ok(loader)
}

/// Serves the network namespaces that the bottles taken over are in, and looks for others from then on.
async fn look_after_namespaces(
    parts: namespaces::Parts,
    inbox: namespaces::Inbox,
    namespaces: &Arc<Namespaces>,
    bottles: Vec<BottleModel>,
) -> Result<JoinHandle<()>, Failure> {
    let told = parts.kernel.events()?;
    let (namespaces, core) = (namespaces.clone(), parts.core.clone());
    let started = tokio::task::spawn_blocking(move || {
        let bottles = bottles.iter().filter_map(|bottle| Watched::if_there(&bottle.attachment)).collect();
        let looking = inbox.start(parts, bottles)?;
        events::follow(told, namespaces, core)?;
        Ok(looking)
    });
    let started = started.await.map_err(io::Error::other).and_then(|started| started);
    started.map_err(|error| Failure::io("network namespaces cannot be looked after", &error))
}

/// Bottles can be cut while the meter is still starting; the service manager is told when it serves.
async fn wait_for_helpers(meter: &Arc<Meter>, lane: &Arc<Lane>) {
    let (meter, lane) = (meter.clone(), lane.clone());
    let waiting = tokio::task::spawn_blocking(move || {
        [meter.wait_until_serving(HELPER_START), lane.wait_until_serving(HELPER_START)]
    });
    let [meter, lane] = waiting.await.unwrap_or_default();
    if !meter {
        tracing::error!(
            "the meter does not serve yet; it is tried again and again, and until then nothing passes"
        );
    }
    if !lane {
        tracing::error!(
            "the lane does not serve yet; it is tried again and again, and until then answered cuts are silent"
        );
    }
}

/// Takes the settings file again whenever SIGHUP comes.
async fn reload_when_asked(reload: Arc<Reload>, mut hangup: Signal, stop: CancellationToken) {
    while stop.run_until_cancelled(hangup.recv()).await.flatten().is_some() {
        // what became of it is in the audit
        drop(reload.now("controller").await);
    }
}

/// How the meter is to work by these settings.
fn meter_config(settings: &Settings) -> Result<Config, Failure> {
    let config = Config {
        providers: settings.providers.clone(),
        extra_roots_pem: extra_roots(settings)?,
        midstream: settings.midstream,
        hold_ms: millis(settings.hold),
        settle_timeout_ms: millis(SETTLE_TIMEOUT),
        allow_private: settings.allow_private.clone(),
        allow: settings.allow.clone(),
    };
    protocol::check_length(&ToMeter::Config(config.clone())).map_err(|error| {
        Failure::new(Exit::Usage, format!("the settings do not reach the meter: {error}"))
    })?;
    Ok(config)
}

/// The group that may use the control socket beside root, where the operator made one.
fn control_group() -> Result<Option<u32>, Failure> {
    let group = nix::unistd::Group::from_name(CONTROL_GROUP)
        .map_err(|error| Failure::io("the group database", &error.into()))?;
    Ok(group.map(|group| group.gid.as_raw()))
}

/// Closes every upstream and waits, bounded, until what was under way is settled.
async fn settle_all(core: &CoreHandle) {
    core.tell(Message::CloseUpstreams);
    let until = Instant::now() + SETTLE_AT_STOP;
    while Instant::now() < until {
        match core.ask(|reply| Message::UnderWay { reply }).await {
            Ok(0) | Err(_) => return,
            Ok(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    tracing::warn!("some exchanges did not settle in time; they are charged as estimated");
}

fn stop_lane(lane: &Lane) {
    if let Err(error) = lane.stop() {
        tracing::error!(%error, "the lane's guards stay, and are taken over at the next start");
    }
}

async fn join(name: &str, thread: JoinHandle<()>) {
    let joined = tokio::task::spawn_blocking(move || thread.join()).await;
    if !matches!(joined, Ok(Ok(()))) {
        tracing::error!("the {name} thread panicked");
    }
}

/// Returns when the operator wants it to end; fails when a thread that decides or records has ended by itself:
/// without it nothing may pass, and the meter ends with this process.
async fn asked_to_stop(threads: &[&JoinHandle<()>]) -> Result<(), Failure> {
    let (mut term, mut int) = (listen_for(SignalKind::terminate())?, listen_for(SignalKind::interrupt())?);
    let mut health = tokio::time::interval(HEALTH_CHECK);
    loop {
        tokio::select! {
            _ = term.recv() => return Ok(()),
            _ = int.recv() => return Ok(()),
            _ = health.tick() => {
                if let Some(ended) = threads.iter().find(|thread| thread.is_finished()) {
                    let name = ended.thread().name().unwrap_or("unnamed");
                    return Err(Failure::new(Exit::Failed, format!("the {name} thread ended; nothing can be decided")));
                }
            }
        }
    }
}

fn listen_for(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|error| Failure::io("signals cannot be received", &error))
}

/// Whether a service manager started this process in a cgroup of its own.
fn is_managed() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

fn tell_service_manager(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

/// The certificates that `tls: extra_roots` names; they travel to the meter in one message.
fn extra_roots(settings: &Settings) -> Result<String, Failure> {
    let Some(path) = &settings.extra_roots else { return Ok(String::new()) };
    let pem = std::fs::read_to_string(path).map_err(|error| {
        Failure::new(Exit::Usage, format!("tls: extra_roots: {}: {error}", path.display()))
    })?;
    if pem.len() > MAX_EXTRA_ROOTS_BYTES {
        return Err(Failure::new(
            Exit::Usage,
            format!(
                "tls: extra_roots: {} has {} bytes, more than {MAX_EXTRA_ROOTS_BYTES}",
                path.display(),
                pem.len()
            ),
        ));
    }
    check_certificates(&pem)
        .map_err(|what| Failure::new(Exit::Usage, format!("tls: extra_roots: {}: {what}", path.display())))?;
    Ok(pem)
}

/// The meter would not start with what is no certificate.
fn check_certificates(pem: &str) -> Result<(), String> {
    for (index, certificate) in CertificateDer::pem_slice_iter(pem.as_bytes()).enumerate() {
        let certificate = certificate.map_err(|error| format!("it is no PEM: {error}"))?;
        x509_parser::parse_x509_certificate(&certificate)
            .map_err(|error| format!("certificate {} cannot be read: {error}", index + 1))?;
    }
    Ok(())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

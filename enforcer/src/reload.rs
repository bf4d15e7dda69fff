//! Changed settings: the file is read again and taken whole, or not at all. What is different is in the audit, and so
//! is a file that was not taken.
//!
//! In this order: everything that can be refused without a trace, then the core, which records the change before it
//! holds, then what could still fail (and is put back, the core too, if it does), then those who are only told.
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use meter_proxy::protocol::Config;
use tokio::sync::{Mutex, watch};

use crate::control::api::{Problem, Reloaded};
use crate::core::{CoreHandle, Message, Reloading};
use crate::egress::Keeper;
use crate::error::{Exit, Failure};
use crate::lane::Lane;
use crate::meter::Meter;
use crate::settings::{Live, Settings, changes};

/// Who is told of other settings.
pub struct Told {
    /// Budgets and verdicts.
    pub core: CoreHandle,
    /// What confined bottles reach.
    pub egress: Arc<Keeper>,
    /// The meter process.
    pub meter: Arc<Meter>,
    /// The refusal lane's process.
    pub lane: Arc<Lane>,
}

/// Where settings come from.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// Whether the operator named it: then it must be there.
    pub named: bool,
}

impl Source {
    fn read(&self) -> Result<(Settings, String), Failure> {
        Ok(Settings::load_with_text(&self.path, self.named)?)
    }
}

/// See the module's head.
pub struct Reload {
    source: Source,
    /// How the meter is configured by some settings.
    config: fn(&Settings) -> Result<Config, Failure>,
    live: watch::Sender<Arc<Settings>>,
    told: OnceLock<Told>,
    /// The text that holds; one reload at a time.
    text: Mutex<String>,
}

impl Reload {
    /// Reads the settings for the first time.
    ///
    /// # Errors
    /// When they are not to be taken.
    pub fn start(source: Source, config: fn(&Settings) -> Result<Config, Failure>) -> Result<Self, Failure> {
        let (settings, text) = source.read()?;
        let (live, _) = watch::channel(Arc::new(settings));
        Ok(Self { source, config, live, told: OnceLock::new(), text: Mutex::new(text) })
    }

    /// The settings as they stand.
    #[must_use]
    pub fn live(&self) -> Live {
        self.live.subscribe()
    }

    /// Who is told from now on; before that nothing can be changed.
    pub fn tell(&self, told: Told) {
        if self.told.set(told).is_err() {
            tracing::error!("who is told of settings is said twice");
        }
    }

    /// Takes the file as it is now.
    ///
    /// # Errors
    /// When it is not taken: what holds stays as it is.
    pub async fn now(&self, by: &str) -> Result<Reloaded, Problem> {
        let told = self.told.get().ok_or_else(|| Problem::failed("the daemon is still starting"))?;
        let mut text = self.text.lock().await;
        let taken = self.take(told, by, &mut text).await;
        if let Err(problem) = &taken {
            let why = format!("not taken: {}", problem.error);
            tracing::warn!(by, "settings are {why}");
            told.core.tell(Message::NotReloaded { by: by.to_owned(), why });
        }
        taken
    }

    async fn take(&self, told: &Told, by: &str, text: &mut String) -> Result<Reloaded, Problem> {
        let source = self.source.clone();
        let read = tokio::task::spawn_blocking(move || source.read()).await;
        let (settings, new_text) = read.map_err(|error| Problem::failed(error.to_string()))??;
        let before = self.live.borrow().clone();
        let mut changed = changes(text, &new_text);
        let config = (self.config)(&settings)?;
        let same_roots = told.meter.has_roots(&config);
        if settings == *before && same_roots {
            *text = new_text;
            return Ok(Reloaded::default());
        }
        refuse_fixed(&before, &settings)?;
        if !same_roots {
            changed.push("tls.extra_roots: other certificates".into());
        }
        let settings = Arc::new(settings);
        let mut warnings = hold(&told.core, settings.clone(), changed.join("; "), by).await?;
        if let Err(why) = told.egress.replace(settings.allow.clone(), settings.resolvers.clone()) {
            put_back(&told.core, before, &why).await;
            return Err(Problem::host(format!("what bottles may reach cannot be written: {why}")));
        }
        self.live.send_replace(settings.clone());
        told.meter.configure(config);
        told.lane.configure();
        *text = new_text;
        tracing::info!(by, changed = changed.join("; "), "other settings hold");
        warnings.extend(settings.warnings());
        warnings.extend(waits(&before, &settings));
        Ok(Reloaded { changed, warnings })
    }
}

/// Has the core hold these settings; what the operator should know.
async fn hold(
    core: &CoreHandle,
    settings: Arc<Settings>,
    changed: String,
    by: &str,
) -> Result<Vec<String>, Problem> {
    let by = by.to_owned();
    core.ask(|reply| Message::Reload(Reloading { settings, changed, back: false, by, reply })).await?
}

/// Has the core hold again what held before, which it does not refuse.
async fn put_back(core: &CoreHandle, settings: Arc<Settings>, why: &str) {
    let (changed, by) = (format!("put back: {why}"), "controller".to_owned());
    let back = |reply| Message::Reload(Reloading { settings, changed, back: true, by, reply });
    let held = core.ask(back).await.map_err(Problem::from).and_then(|held| held);
    if let Err(problem) = held {
        tracing::error!(problem.error, "settings are not put back");
    }
}

/// Refuses what holds for as long as the daemon runs.
fn refuse_fixed(before: &Settings, after: &Settings) -> Result<(), Failure> {
    if before.listen == after.listen {
        return Ok(());
    }
    let what =
        format!("listen cannot change while the daemon runs (from {} to {})", before.listen, after.listen);
    Err(Failure::new(Exit::Usage, what).hint("restart the daemon for it; nothing of the file was taken"))
}

/// What is taken at an attach and stays with the bottle.
fn waits(before: &Settings, after: &Settings) -> Option<String> {
    let at_attach = |settings: &Settings| {
        let bottles = settings.bottles.iter();
        let own = bottles.map(|(name, b)| (name.clone(), b.extends.clone(), b.shutdown, b.egress));
        (settings.shutdown, settings.egress, own.collect::<Vec<_>>())
    };
    (at_attach(before) != at_attach(after)).then(|| {
        "bottles that are attached keep the policy, egress and parent that they were attached with".to_owned()
    })
}

//! `settings check`: says what is wrong with a settings file; with `--apply` has the daemon take its own.
use super::output::{print, say};
use crate::cli::{Global, Settings as Verb};
use crate::error::{Exit, Failure};
use crate::settings::Settings;
use crate::state::StateDir;

pub(super) fn run(global: &Global, verb: &Verb) -> Result<(), Failure> {
    let Verb::Check { file, apply } = verb;
    if *apply {
        return match file {
            Some(_) => Err(Failure::new(
                Exit::Usage,
                "--apply has the daemon read its own file; leave the name out",
            )
            .hint("the daemon's file is STATE_DIR/settings.yml, or what it was started with (--settings)")),
            None => take(global),
        };
    }
    let named = file.as_ref().or(global.settings.as_ref());
    let path = match named {
        Some(path) => path.clone(),
        None => StateDir::open(global.state_dir.as_deref())?.file("settings.yml"),
    };
    let settings = Settings::load(&path)?;
    settings.warnings().iter().for_each(|warning| say(&format!("warning: {warning}")));
    print(&format!("{}: good\n", path.display()))
}

/// Has the daemon take its file as it is now.
fn take(global: &Global) -> Result<(), Failure> {
    let control = super::connect(global)?;
    let reloaded = control.wait(control.client().reload())?;
    reloaded.warnings.iter().for_each(|warning| say(warning));
    if reloaded.changed.is_empty() {
        return print("nothing changed\n");
    }
    reloaded.changed.iter().try_for_each(|line| print(&format!("{}\n", crate::text::scrub(line))))
}

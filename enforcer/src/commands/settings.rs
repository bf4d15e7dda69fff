//! `settings check`: says what is wrong with a settings file.
use super::output::{print, say};
use crate::cli::{Global, Settings as Verb};
use crate::error::Failure;
use crate::settings::Settings;
use crate::state::StateDir;

pub(super) fn run(global: &Global, verb: &Verb) -> Result<(), Failure> {
    let Verb::Check { file, apply } = verb;
    if *apply {
        return Err(Failure::not_yet("settings check --apply"));
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

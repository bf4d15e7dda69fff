//! The settings file: any text is taken whole, or refused in one line that says where.
#![no_main]
use std::path::Path;

use enforcer::settings::{Settings, SettingsError};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let path = Path::new("settings.yml");
    let taken = Settings::parse(text, path);
    match &taken {
        Ok(settings) => {
            let longer = format!("{text}\n# nothing more\n");
            let same = Settings::parse(&longer, path);
            assert!(same.is_ok_and(|same| same == *settings), "a comment changes nothing: {text:?}");
        }
        Err(SettingsError::Wrong { place, what, hint, .. }) => {
            let lines = text.split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']).count();
            assert!((1..=lines + 1).contains(&place.line) && place.column >= 1, "{place} of {text:?}");
            for words in [Some(what), hint.as_ref()].into_iter().flatten() {
                assert!(!words.is_empty() && !words.contains(char::is_control), "{words:?}");
            }
        }
        Err(SettingsError::Unreadable { .. }) => panic!("a text needs not be read from anywhere"),
    }
});

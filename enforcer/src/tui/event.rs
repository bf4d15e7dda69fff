//! What can happen to the dashboard: keys, ticks, answers. Turns terminal input into these; decides nothing.
use crossterm::event::{Event as Input, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use crate::audit::Row;
use crate::control::api;

/// One thing that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A key was pressed.
    Key(Key),
    /// The terminal has another size: draw again.
    Resize,
    /// Time to ask for fresh figures.
    Tick,
    /// The daemon's answer to [`super::update::Request::Status`].
    Status {
        /// Milliseconds since the dashboard started, monotonic; rates are made from it.
        at_ms: u64,
        /// The figures, or why there are none.
        answer: Result<api::Status, String>,
    },
    /// The daemon's answer to [`super::update::Request::Audit`].
    Audit(Result<Vec<Row>, String>),
    /// The daemon's answer to an action.
    Acted {
        /// What was asked for, in words (`cut reviewer`).
        what: String,
        /// Whether it was done, or why not.
        answer: Result<(), String>,
    },
}

/// The keys that mean anything here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A printable character.
    Char(char),
    /// Arrow up.
    Up,
    /// Arrow down.
    Down,
    /// First row.
    Home,
    /// Last row.
    End,
    /// Enter.
    Enter,
    /// Escape.
    Escape,
    /// Backspace.
    Backspace,
    /// Ctrl-C.
    Interrupt,
}

/// The event that terminal input stands for; `None` for what the dashboard does not care about.
#[must_use]
pub fn from_terminal(input: &Input) -> Option<Event> {
    match input {
        Input::Key(key) if key.kind != KeyEventKind::Release => from_key(*key).map(Event::Key),
        Input::Resize(..) => Some(Event::Resize),
        _ => None,
    }
}

fn from_key(key: KeyEvent) -> Option<Key> {
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return (key.code == KeyCode::Char('c')).then_some(Key::Interrupt);
    }
    if key.modifiers.contains(KeyModifiers::ALT) {
        return None;
    }
    Some(match key.code {
        KeyCode::Char(c) if !c.is_control() => Key::Char(c),
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Backspace => Key::Backspace,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(code: KeyCode, modifiers: KeyModifiers, kind: KeyEventKind) -> Option<Key> {
        match from_terminal(&Input::Key(KeyEvent::new_with_kind(code, modifiers, kind))) {
            Some(Event::Key(key)) => Some(key),
            _ => None,
        }
    }

    #[test]
    fn keys_are_read_once_and_without_foreign_modifiers() {
        use KeyEventKind::{Press, Release};
        for (code, modifiers, kind, expected) in [
            (KeyCode::Char('c'), KeyModifiers::NONE, Press, Some(Key::Char('c'))),
            (KeyCode::Char('C'), KeyModifiers::SHIFT, Press, Some(Key::Char('C'))),
            (KeyCode::Char('c'), KeyModifiers::CONTROL, Press, Some(Key::Interrupt)),
            (KeyCode::Char('c'), KeyModifiers::NONE, Release, None),
            (KeyCode::Char('y'), KeyModifiers::ALT, Press, None),
            (KeyCode::Char('r'), KeyModifiers::CONTROL, Press, None),
            (KeyCode::Esc, KeyModifiers::NONE, Press, Some(Key::Escape)),
            (KeyCode::F(1), KeyModifiers::NONE, Press, None),
        ] {
            assert_eq!(key(code, modifiers, kind), expected, "{code:?} {modifiers:?} {kind:?}");
        }
        assert!(matches!(from_terminal(&Input::Resize(10, 10)), Some(Event::Resize)));
        assert!(from_terminal(&Input::FocusGained).is_none());
    }
}

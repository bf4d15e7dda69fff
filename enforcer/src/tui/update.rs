//! What each event changes and what it asks for. The only place where the dashboard decides; no I/O.
use std::mem;

use super::event::{Event, Key};
use super::state::{AUDIT_ROWS, Link, Mode, Note, Prompt, Question, Sample, State, total_tokens, used_up};
use crate::audit::Row;
use crate::control::api;
use crate::settings::parse_tokens;
use crate::text::{grouped, short};

/// Shortest time that a rate is measured over, milliseconds.
const RATE_SPAN_MS: u64 = 900;
/// Longest line that is typed, characters.
const TYPED_MAX: usize = 64;

/// What the dashboard wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Ask the daemon; its answer is an event.
    Ask(Request),
    /// Leave.
    Quit,
}

/// What the daemon is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The figures.
    Status,
    /// Audit rows above an id.
    Audit {
        /// The newest id known; 0 for none.
        after: i64,
    },
    /// A cut.
    Cut {
        /// The bottle's name.
        bottle: String,
        /// How.
        body: api::Cut,
    },
    /// A cut of every bottle there is.
    CutAll {
        /// How.
        body: api::Cut,
    },
    /// A freeze.
    Freeze {
        /// The bottle's name.
        bottle: String,
    },
    /// A thaw.
    Thaw {
        /// The bottle's name.
        bottle: String,
    },
    /// A kill.
    Kill {
        /// The bottle's name.
        bottle: String,
    },
    /// A restore.
    Restore {
        /// The bottle's name.
        bottle: String,
        /// With what.
        body: api::Restore,
    },
}

/// Takes one event into the state; returns what is to be done, in this order.
pub fn update(state: &mut State, event: Event) -> Vec<Effect> {
    match event {
        Event::Key(Key::Interrupt) => vec![Effect::Quit],
        Event::Key(key) => press(state, key),
        Event::Resize => vec![],
        Event::Tick => refresh(state),
        Event::Status { at_ms, answer } => {
            take_status(state, at_ms, answer);
            vec![]
        }
        Event::Audit(answer) => take_audit(state, answer),
        Event::Acted { what, answer } => take_result(state, &what, answer),
    }
}

/// Asks for what is not being asked for already: a slow daemon is not asked twice at once.
fn refresh(state: &mut State) -> Vec<Effect> {
    let mut effects = vec![];
    if !mem::replace(&mut state.awaits_status, true) {
        effects.push(Effect::Ask(Request::Status));
    }
    if !mem::replace(&mut state.awaits_audit, true) {
        effects.push(fetch_audit(state));
    }
    effects
}

fn fetch_audit(state: &State) -> Effect {
    Effect::Ask(Request::Audit { after: state.audit.back().map_or(0, |row| row.id) })
}

fn take_status(state: &mut State, at_ms: u64, answer: Result<api::Status, String>) {
    state.awaits_status = false;
    match answer {
        Ok(status) => {
            measure_rates(state, at_ms, &status);
            state.status = Some(status);
            state.link = Link::Live;
        }
        Err(reason) => {
            state.link = Link::Lost(reason);
            // what happened while nobody answered has no rate
            state.rates.clear();
            state.sample = None;
        }
    }
}

fn measure_rates(state: &mut State, at_ms: u64, status: &api::Status) {
    let totals = status.bottles.iter().map(|bottle| (bottle.name.clone(), total_tokens(bottle))).collect();
    let now = Sample { at_ms, totals };
    let Some(before) = &state.sample else {
        state.sample = Some(now);
        return;
    };
    let elapsed_ms = at_ms.saturating_sub(before.at_ms);
    if elapsed_ms < RATE_SPAN_MS {
        return;
    }
    let rate = |(name, total): (&String, &u64)| {
        let gained = total.saturating_sub(*before.totals.get(name)?);
        Some((name.clone(), gained.saturating_mul(1000) / elapsed_ms))
    };
    state.rates = now.totals.iter().filter_map(rate).collect();
    state.sample = Some(now);
}

/// Keeps the newest rows; asks again at once while there are more, so that a long audit is caught up with.
fn take_audit(state: &mut State, answer: Result<Vec<Row>, String>) -> Vec<Effect> {
    state.awaits_audit = false;
    let rows = match answer {
        Ok(rows) => rows,
        Err(reason) => {
            state.audit_error = Some(reason);
            return vec![];
        }
    };
    state.audit_error = None;
    let known = state.audit.back().map_or(0, |row| row.id);
    let before = state.audit.len();
    state.audit.extend(rows.into_iter().filter(|row| row.id > known));
    if state.audit.len() == before {
        return vec![];
    }
    state.audit.drain(..state.audit.len().saturating_sub(AUDIT_ROWS));
    state.awaits_audit = true;
    vec![fetch_audit(state)]
}

fn take_result(state: &mut State, what: &str, answer: Result<(), String>) -> Vec<Effect> {
    state.actions = state.actions.saturating_sub(1);
    match answer {
        Ok(()) => note(state, format!("{what}: done")),
        Err(reason) => {
            state.leaving = false;
            fail(state, format!("{what} failed: {reason}"));
        }
    }
    if state.leaving && state.actions == 0 {
        return vec![Effect::Quit];
    }
    refresh(state)
}

/// Tells that something went well; does not cover a failure that nobody has read yet.
fn note(state: &mut State, text: String) {
    if !state.note.as_ref().is_some_and(|note| note.is_error) {
        state.note = Some(Note { text, is_error: false });
    }
}

/// Tells that something went wrong, beside what went wrong before.
fn fail(state: &mut State, text: String) {
    let text = match state.note.take() {
        Some(earlier) if earlier.is_error => format!("{}; {text}", earlier.text),
        _ => text,
    };
    state.note = Some(Note { text, is_error: true });
}

fn press(state: &mut State, key: Key) -> Vec<Effect> {
    state.note = None;
    match mem::take(&mut state.mode) {
        Mode::Browse => browse(state, key),
        Mode::Help => vec![],
        Mode::Filter => {
            type_filter(state, key);
            vec![]
        }
        Mode::Confirm(question) => confirm(state, question, key),
        Mode::AddTokens(prompt) => add_tokens(state, prompt, key),
    }
}

fn browse(state: &mut State, key: Key) -> Vec<Effect> {
    match key {
        Key::Char('j') | Key::Down => select(state, state.selected_row().saturating_add(1)),
        Key::Char('k') | Key::Up => select(state, state.selected_row().saturating_sub(1)),
        Key::Home => select(state, 0),
        Key::End => select(state, usize::MAX),
        Key::Char('c') => ask(state, Question::Cut),
        Key::Char('f') => ask(state, Question::Freeze),
        Key::Char('t') => ask_thaw(state),
        Key::Char('K') => ask(state, Question::Kill),
        Key::Char('C') => state.mode = Mode::Confirm(Question::CutAll),
        Key::Char('r') => ask_restore(state),
        Key::Char('/') => state.mode = Mode::Filter,
        Key::Char('?') => state.mode = Mode::Help,
        Key::Escape => state.filter.clear(),
        Key::Char('q') => return quit(state),
        Key::Char(_) | Key::Enter | Key::Backspace | Key::Interrupt => {}
    }
    vec![]
}

/// Leaves, but not before the user has seen what became of a cut; a second `q` does not wait.
fn quit(state: &mut State) -> Vec<Effect> {
    if state.actions == 0 || state.leaving {
        return vec![Effect::Quit];
    }
    state.leaving = true;
    note(state, "leaving when the daemon has answered; q again leaves now".to_owned());
    vec![]
}

fn select(state: &mut State, row: usize) {
    let visible = state.visible();
    let row = row.min(visible.len().saturating_sub(1));
    state.selected = visible.get(row).map(|bottle| bottle.name.clone());
}

fn ask(state: &mut State, question: impl Fn(String) -> Question) {
    match state.selected_bottle() {
        Some(bottle) => state.mode = Mode::Confirm(question(bottle.name.clone())),
        None => fail(state, "no bottle is selected".to_owned()),
    }
}

fn ask_thaw(state: &mut State) {
    match state.selected_bottle() {
        Some(bottle) if bottle.state != api::State::Frozen => {
            let text = format!("{} is not frozen", bottle.name);
            note(state, text);
        }
        _ => ask(state, Question::Thaw),
    }
}

fn ask_restore(state: &mut State) {
    let Some(bottle) = state.selected_bottle() else {
        return fail(state, "no bottle is selected".to_owned());
    };
    if bottle.state == api::State::Open {
        let text = format!("{} is open already", bottle.name);
        return note(state, text);
    }
    if bottle.state == api::State::Killed {
        let text = format!("{} was killed, which is final", bottle.name);
        return note(state, text);
    }
    let bottle_name = bottle.name.clone();
    let mut spent = used_up(bottle).into_iter();
    state.mode = match spent.next() {
        None => Mode::Confirm(Question::Restore(bottle_name)),
        Some(provider) => Mode::AddTokens(Prompt {
            bottle: bottle_name,
            provider,
            next: spent.collect(),
            add: Default::default(),
            typed: String::new(),
            error: None,
        }),
    };
}

fn type_filter(state: &mut State, key: Key) {
    match key {
        Key::Enter => return,
        Key::Escape => {
            state.filter.clear();
            return;
        }
        Key::Backspace => {
            state.filter.pop();
        }
        Key::Char(c) => push(&mut state.filter, c),
        Key::Down => select(state, state.selected_row().saturating_add(1)),
        Key::Up => select(state, state.selected_row().saturating_sub(1)),
        Key::Home | Key::End | Key::Interrupt => {}
    }
    state.mode = Mode::Filter;
}

fn push(line: &mut String, c: char) {
    if !c.is_control() && line.chars().count() < TYPED_MAX {
        line.push(c);
    }
}

fn confirm(state: &mut State, question: Question, key: Key) -> Vec<Effect> {
    match key {
        Key::Char('y' | 'Y') => act(state, question),
        Key::Char('n' | 'N' | 'q') | Key::Escape => {
            note(state, "nothing was done".to_owned());
            vec![]
        }
        _ => {
            state.mode = Mode::Confirm(question);
            vec![]
        }
    }
}

fn act(state: &mut State, question: Question) -> Vec<Effect> {
    state.actions += 1;
    vec![Effect::Ask(match question {
        Question::Cut(bottle) => Request::Cut { bottle, body: api::Cut::default() },
        // the daemon knows which there are; the picture here may be old
        Question::CutAll => Request::CutAll { body: api::Cut::default() },
        Question::Freeze(bottle) => Request::Freeze { bottle },
        Question::Thaw(bottle) => Request::Thaw { bottle },
        Question::Kill(bottle) => Request::Kill { bottle },
        Question::Restore(bottle) => Request::Restore { bottle, body: api::Restore::default() },
    })]
}

fn add_tokens(state: &mut State, mut prompt: Prompt, key: Key) -> Vec<Effect> {
    match key {
        Key::Escape => {
            note(state, "nothing was done".to_owned());
            return vec![];
        }
        Key::Char('f' | 'F') if prompt.typed.is_empty() => return restore(state, prompt, true),
        Key::Char(c) => push(&mut prompt.typed, c),
        Key::Backspace => {
            prompt.typed.pop();
        }
        Key::Enter => match take_tokens(state, &mut prompt) {
            Ok(true) => return restore(state, prompt, false),
            Ok(false) => {}
            Err(words) => prompt.error = Some(words),
        },
        Key::Up | Key::Down | Key::Home | Key::End | Key::Interrupt => {}
    }
    state.mode = Mode::AddTokens(prompt);
    vec![]
}

/// Takes what was typed for the provider asked about and moves to the next; true when there is none.
fn take_tokens(state: &State, prompt: &mut Prompt) -> Result<bool, String> {
    let tokens = parse_tokens(prompt.typed.trim()).map_err(|error| error.to_string())?;
    if tokens == 0 {
        return Err("type a number of tokens above 0".to_owned());
    }
    if let Some(budget) = state.budget_asked_for(prompt)
        && budget.limit.saturating_add(tokens) <= budget.used
    {
        return Err(format!(
            "{} is not enough: more than {} is needed",
            short(tokens),
            grouped(budget.used - budget.limit)
        ));
    }
    prompt.add.insert(prompt.provider.clone(), tokens);
    prompt.typed.clear();
    prompt.error = None;
    if prompt.next.is_empty() {
        return Ok(true);
    }
    prompt.provider = prompt.next.remove(0);
    Ok(false)
}

fn restore(state: &mut State, prompt: Prompt, force: bool) -> Vec<Effect> {
    state.actions += 1;
    let body = api::Restore { add: prompt.add, force };
    vec![Effect::Ask(Request::Restore { bottle: prompt.bottle, body })]
}

//! The dashboard, `enforcer top`: a client of the control API that shows what `status` shows and asks before it acts.
//!
//! `event` → `update` changes `state` and returns effects → `run` here carries them out → `view` draws. Only
//! this file does I/O.
pub mod event;
pub mod state;
pub mod update;
mod view;

use std::future::Future;
use std::io::{self, IsTerminal};
use std::thread;
use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::{Backend as Surface, TestBackend};
use ratatui::buffer::Buffer;
use ratatui::text::Span;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::audit::Row;
use crate::control::api;
use event::Event;
use state::{Link, State};
use update::{Effect, Request};

/// Between two questions for fresh figures.
const TICK: Duration = Duration::from_secs(1);
/// Longest wait for figures.
const FETCH_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest wait for an action.
const ACT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for processes to stand still or to end: the daemon waits a little less.
const HOLD_TIMEOUT: Duration = Duration::from_secs(12);
/// How often the keyboard's thread looks whether it is still wanted.
const KEYBOARD_POLL: Duration = Duration::from_millis(100);

/// What the dashboard needs from a client of the control API. Errors are one line for the user.
pub trait Backend: Clone + Send + Sync + 'static {
    /// `GET /v1/status`.
    fn status(&self) -> impl Future<Output = Result<api::Status, String>> + Send;
    /// Audit rows with an id above `after`, oldest first; an empty answer means that there are no more. For
    /// `after` 0 the newest rows alone will do.
    fn audit(&self, after: i64) -> impl Future<Output = Result<Vec<Row>, String>> + Send;
    /// Cuts a bottle.
    fn cut(&self, bottle: &str, body: &api::Cut) -> impl Future<Output = Result<(), String>> + Send;
    /// Cuts every bottle.
    fn cut_all(&self, body: &api::Cut) -> impl Future<Output = Result<(), String>> + Send;
    /// Freezes a bottle.
    fn freeze(&self, bottle: &str) -> impl Future<Output = Result<(), String>> + Send;
    /// Lets a frozen bottle go on.
    fn thaw(&self, bottle: &str) -> impl Future<Output = Result<(), String>> + Send;
    /// Kills a bottle's processes.
    fn kill(&self, bottle: &str) -> impl Future<Output = Result<(), String>> + Send;
    /// Restores a bottle.
    fn restore(&self, bottle: &str, body: &api::Restore) -> impl Future<Output = Result<(), String>> + Send;
}

/// Why the dashboard ended other than by the user's wish.
#[derive(Debug, thiserror::Error)]
pub enum TuiError {
    /// Standard input or output is a pipe or a file.
    #[error("the dashboard needs a terminal; `enforcer status` prints the same figures")]
    NotATerminal,
    /// The terminal failed.
    #[error("the terminal: {0}")]
    Terminal(#[from] io::Error),
}

/// Shows the dashboard until the user quits or SIGTERM or SIGHUP comes. The terminal is put back as it was also
/// after an error or a panic. An action under way when the user insists on leaving may still happen.
///
/// # Errors
/// When there is no terminal, or it fails.
pub async fn run(backend: impl Backend) -> Result<(), TuiError> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(TuiError::NotATerminal);
    }
    let (events, mut inbox) = mpsc::unbounded_channel();
    let mut screen = Screen::open()?;
    let keyboard = thread::spawn(move || read_keyboard(&events));
    let outcome = tokio::select! {
        outcome = drive(&mut screen.0, backend, &mut inbox) => outcome,
        outcome = asked_to_end() => outcome,
    };
    // the keyboard's thread ends when nobody listens any more; it must not eat what is typed to the shell
    drop(inbox);
    if keyboard.join().is_err() {
        return Err(io::Error::other("the thread that reads the keyboard panicked").into());
    }
    Ok(outcome?)
}

/// Raw mode, the alternate screen and a panic hook that leaves both; left when dropped, too.
struct Screen(ratatui::DefaultTerminal);

impl Screen {
    fn open() -> io::Result<Self> {
        // a failure half-way would leave raw mode on
        ratatui::try_init().map(Self).inspect_err(|_| ratatui::restore())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

async fn asked_to_end() -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}

/// Sends what is typed until nobody listens. An error of the terminal is the last thing sent.
fn read_keyboard(events: &mpsc::UnboundedSender<io::Result<Event>>) {
    while !events.is_closed() {
        let event = match next_input() {
            Ok(None) => continue,
            Ok(Some(event)) => Ok(event),
            Err(error) => Err(error),
        };
        let failed = event.is_err();
        if events.send(event).is_err() || failed {
            return;
        }
    }
}

fn next_input() -> io::Result<Option<Event>> {
    if !crossterm::event::poll(KEYBOARD_POLL)? {
        return Ok(None);
    }
    Ok(event::from_terminal(&crossterm::event::read()?))
}

/// The loop: draw, wait for an event, update, start the effects.
async fn drive<S: Surface>(
    terminal: &mut Terminal<S>,
    backend: impl Backend,
    inbox: &mut mpsc::UnboundedReceiver<io::Result<Event>>,
) -> io::Result<()>
where
    S::Error: Send + Sync + 'static,
{
    let started = Instant::now();
    let mut state = State::default();
    let mut answers = JoinSet::new();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        terminal.draw(|frame| view::draw(frame, &state)).map_err(io::Error::other)?;
        let event = tokio::select! {
            input = inbox.recv() => match input {
                Some(event) => event?,
                None => return Ok(()),
            },
            Some(answer) = answers.join_next() => answer.map_err(io::Error::other)?,
            _ = ticks.tick() => Event::Tick,
        };
        for effect in update::update(&mut state, event) {
            match effect {
                Effect::Ask(request) => answers.spawn(ask(request, backend.clone(), started)),
                Effect::Quit => return Ok(()),
            };
        }
    }
}

/// Asks the daemon; its answer, or its silence, is the event.
async fn ask(request: Request, backend: impl Backend, started: Instant) -> Event {
    match request {
        Request::Status => {
            let answer = bounded(FETCH_TIMEOUT, backend.status()).await;
            Event::Status { at_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX), answer }
        }
        Request::Audit { after } => Event::Audit(bounded(FETCH_TIMEOUT, backend.audit(after)).await),
        Request::Cut { bottle, body } => {
            let answer = bounded(ACT_TIMEOUT, backend.cut(&bottle, &body)).await;
            Event::Acted { what: format!("cut {bottle}"), answer }
        }
        Request::CutAll { body } => {
            let answer = bounded(ACT_TIMEOUT, backend.cut_all(&body)).await;
            Event::Acted { what: "cut all bottles".to_owned(), answer }
        }
        Request::Freeze { bottle } => {
            let answer = bounded(HOLD_TIMEOUT, backend.freeze(&bottle)).await;
            Event::Acted { what: format!("freeze {bottle}"), answer }
        }
        Request::Thaw { bottle } => {
            let answer = bounded(ACT_TIMEOUT, backend.thaw(&bottle)).await;
            Event::Acted { what: format!("thaw {bottle}"), answer }
        }
        Request::Kill { bottle } => {
            let answer = bounded(HOLD_TIMEOUT, backend.kill(&bottle)).await;
            Event::Acted { what: format!("kill {bottle}"), answer }
        }
        Request::Restore { bottle, body } => {
            let answer = bounded(ACT_TIMEOUT, backend.restore(&bottle, &body)).await;
            Event::Acted { what: format!("restore {bottle}"), answer }
        }
    }
}

async fn bounded<T>(limit: Duration, answer: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let silence = |_| Err(format!("no answer within {} s", limit.as_secs()));
    timeout(limit, answer).await.unwrap_or_else(silence)
}

/// The dashboard as plain text, lines without trailing spaces: what [`run`] would show of these documents on a
/// screen of `width` × `height` cells.
#[must_use]
pub fn render_to_text(status: &api::Status, audit: &[Row], width: u16, height: u16) -> String {
    let state = State {
        status: Some(status.clone()),
        link: Link::Live,
        audit: audit.iter().cloned().collect(),
        ..State::default()
    };
    plain_text(&render(&state, width, height))
}

fn render(state: &State, width: u16, height: u16) -> Buffer {
    let mut terminal = match Terminal::new(TestBackend::new(width, height)) {
        Ok(terminal) => terminal,
        Err(never) => match never {},
    };
    match terminal.draw(|frame| view::draw(frame, state)) {
        Ok(drawn) => drawn.buffer.clone(),
        Err(never) => match never {},
    }
}

fn plain_text(buffer: &Buffer) -> String {
    let mut text = String::new();
    for y in buffer.area.top()..buffer.area.bottom() {
        let mut line = String::new();
        let mut x = buffer.area.left();
        while x < buffer.area.right() {
            let symbol = buffer[(x, y)].symbol();
            line.push_str(symbol);
            // a wide character fills the cells after its own
            x = x.saturating_add(u16::try_from(Span::raw(symbol).width()).unwrap_or(1).max(1));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests;

//! Draws the state. Decides nothing but what there is room for; every word that comes from outside is scrubbed.
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Block, Borders, Paragraph, Row, Table, TableState};

use super::state::{Link, Mode, Prompt, Question, State, percent_used, providers, total_tokens};
use crate::audit::{self, Cause, CauseKind};
use crate::control::api::{self, Bottle, Budget};
use crate::text::{grouped, scrub, short};

/// Cells of a gauge.
const BAR: usize = 8;
/// From this width on a row says whose budget it is and counts packets both ways.
const WIDE: u16 = 120;
/// Below this width a row holds name, state and percent alone.
const NARROW: u16 = 72;
/// From this body height on there is a pane for the audit.
const ROOM_FOR_AUDIT: u16 = 15;
/// From this body height on there is a pane for the selected bottle.
const ROOM_FOR_DETAIL: u16 = 10;

/// Most lines of the header, of a banner, of a question.
const BRIEF_LINES: usize = 4;

const ALARM: Style = Style::new().fg(Color::Red).bold();
const FAINT: Style = Style::new().fg(Color::DarkGray);

/// Draws one frame, whatever its size.
pub fn draw(frame: &mut Frame<'_>, state: &State) {
    let width = frame.area().width;
    let top = top_lines(state, width);
    let bottom = bottom_lines(state, width);
    let [head, body, line, keys] = Layout::vertical([
        Constraint::Length(rows(&top)),
        Constraint::Min(1),
        Constraint::Length(rows(&bottom)),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(top), head);
    if state.mode == Mode::Help {
        frame.render_widget(help(), body);
    } else if state.status.is_some() {
        draw_body(frame, body, state);
    }
    frame.render_widget(Paragraph::new(bottom), line);
    frame.render_widget(Paragraph::new(footer(width)).style(FAINT), keys);
}

fn rows(text: &Text<'_>) -> u16 {
    u16::try_from(text.height()).unwrap_or(u16::MAX)
}

/// Header, then what is wrong with the daemon or the connection to it.
fn top_lines(state: &State, width: u16) -> Text<'static> {
    let mut text = Text::default();
    let Some(status) = &state.status else {
        text.extend(brief(&format!("enforcer: {}", link_words(&state.link)), width, link_style(&state.link)));
        return text;
    };
    text.extend(brief(&header(&status.daemon, width), width, Style::new().bold()));
    if let Some(reason) = &status.daemon.closed {
        text.extend(brief(&format!("CLOSED: requests are refused: {}", scrub(reason)), width, ALARM));
    }
    if state.stale().is_some() {
        text.extend(brief(&format!("STALE. {}", link_words(&state.link)), width, ALARM.reversed()));
    }
    text
}

fn link_words(link: &Link) -> String {
    match link {
        Link::Connecting => "connecting to the daemon …".to_owned(),
        Link::Live => "connected".to_owned(),
        Link::Lost(reason) => format!("NO DAEMON, trying again: {}", scrub(reason)),
    }
}

fn link_style(link: &Link) -> Style {
    match link {
        Link::Lost(_) => ALARM,
        Link::Connecting | Link::Live => Style::new(),
    }
}

fn header(daemon: &api::Daemon, width: u16) -> String {
    if width < NARROW {
        return format!("enforcer pid {} | meter {}", daemon.pid, scrub(&daemon.meter.state));
    }
    let lease = daemon.kernel.lease_s.map_or("lease off".to_owned(), |s| format!("lease {s} s"));
    format!(
        "enforcer {} pid {} | meter {} {} | kernel {}, {lease}",
        scrub(&daemon.version),
        daemon.pid,
        scrub(&daemon.meter.state),
        scrub(&daemon.meter.listen),
        scrub(&daemon.kernel.programs),
    )
}

fn draw_body(frame: &mut Frame<'_>, body: Rect, state: &State) {
    let detail = state.selected_bottle().map(|bottle| detail(bottle, body.width)).unwrap_or_default();
    let detail_rows = rows(&detail).saturating_add(1).min(body.height / 2);
    let audit_rows = (body.height / 4).max(4);
    let (detail_rows, audit_rows) = match body.height {
        ..ROOM_FOR_DETAIL => (0, 0),
        ROOM_FOR_DETAIL..ROOM_FOR_AUDIT => (detail_rows, 0),
        _ => (detail_rows, audit_rows),
    };
    let [table_area, detail_area, audit_area] = Layout::vertical([
        Constraint::Min(1),
        Constraint::Length(detail_rows),
        Constraint::Length(audit_rows),
    ])
    .areas(body);
    draw_bottles(frame, table_area, state);
    if detail_rows > 0 {
        let title = state.selected_bottle().map_or("no bottle".to_owned(), |bottle| scrub(&bottle.name));
        frame.render_widget(Paragraph::new(detail).block(pane(title)), detail_area);
    }
    if audit_rows > 0 {
        draw_audit(frame, audit_area, state);
    }
    if state.stale().is_some() {
        frame.buffer_mut().set_style(body, FAINT.bg(Color::Reset));
    }
}

fn pane(title: String) -> Block<'static> {
    Block::new().borders(Borders::TOP).border_style(FAINT).title(Span::from(format!(" {title} ")).bold())
}

fn draw_bottles(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let visible = state.visible();
    let all = state.status.as_ref().map_or(0, |status| status.bottles.len());
    let mut title = match visible.len() == all {
        true => format!("bottles: {all}"),
        false => format!("bottles: {} of {all}, filter {}", visible.len(), scrub(&state.filter)),
    };
    if state.stale().is_some() {
        title.push_str(", STALE");
    }
    let (header, widths) = columns(area.width);
    let rows = visible.iter().map(|bottle| {
        let rate = state.rates.get(&bottle.name).copied().unwrap_or(0);
        bottle_row(bottle, rate, area.width)
    });
    let table = Table::new(rows, widths)
        .header(Row::new(header).style(FAINT))
        .block(pane(title))
        .highlight_symbol("> ")
        .row_highlight_style(Style::new().reversed());
    let selected = (!visible.is_empty()).then(|| state.selected_row());
    frame.render_stateful_widget(table, area, &mut TableState::new().with_selected(selected));
}

/// Titles and widths of the columns that there is room for; [`bottle_row`] fills the same ones.
fn columns(width: u16) -> (Vec<&'static str>, Vec<Constraint>) {
    use Constraint::{Length, Min};
    match width {
        ..NARROW => (vec!["NAME", "STATE", "BUDGET USED"], vec![Min(8), Length(6), Length(16)]),
        NARROW..WIDE => (
            vec!["NAME", "STATE", "USED OF BUDGET", "TOKENS", "/S", "DROPPED", "PIDS"],
            vec![Min(8), Length(6), Length(33), Length(6), Length(5), Length(7), Length(4)],
        ),
        _ => (
            vec!["NAME", "AGENT", "STATE", "USED OF BUDGET", "TOKENS", "/S", "PASSED", "DROPPED", "PIDS"],
            vec![
                Min(10),
                Length(12),
                Length(6),
                Length(50),
                Length(6),
                Length(5),
                Length(6),
                Length(7),
                Length(4),
            ],
        ),
    }
}

fn bottle_row(bottle: &Bottle, rate: u64, width: u16) -> Row<'static> {
    let name = Text::from(scrub(&bottle.name));
    let agent = Text::from(bottle.agent.as_deref().map_or("-".to_owned(), scrub));
    let state = Text::from(bottle.state.as_str()).style(state_style(bottle.state));
    let budgets: Vec<Line<'_>> = providers(bottle).into_iter().map(|p| gauge(bottle, p, width)).collect();
    let height = u16::try_from(budgets.len().max(1)).unwrap_or(u16::MAX);
    let budgets = Text::from(budgets);
    let number = |count: u64| Text::from(short(count));
    let packets = bottle.kernel;
    let pids = Text::from(bottle.pids.to_string());
    let (used, rate, dropped) = (number(total_tokens(bottle)), number(rate), number(packets.dropped_packets));
    let cells = match width {
        ..NARROW => vec![name, state, budgets],
        NARROW..WIDE => vec![name, state, budgets, used, rate, dropped, pids],
        _ => vec![name, agent, state, budgets, used, rate, number(packets.passed_packets), dropped, pids],
    };
    Row::new(cells).height(height)
}

fn state_style(state: api::State) -> Style {
    match state {
        api::State::Open => Style::new().green(),
        api::State::Cut => ALARM,
        api::State::Frozen => Style::new().cyan().bold(),
        api::State::Killed => Style::new().magenta().bold(),
        api::State::Gone => FAINT,
    }
}

/// One provider's use of its governing budget: `claude ████░░░░  61% 305k/500k bottle reviewer`.
fn gauge(bottle: &Bottle, provider: &str, width: u16) -> Line<'static> {
    let label = format!("{:<7}", scrub(provider));
    let Some(budget) = bottle.budget.get(provider) else {
        return Line::from(format!("{label}no budget")).style(FAINT);
    };
    let percent = percent_used(budget);
    let style = fill_style(percent);
    if width < NARROW {
        return Line::from(format!("{label}{percent}%")).style(style);
    }
    let mut spans = vec![
        Span::from(label),
        Span::from(bar(percent)).style(style),
        Span::from(format!("{percent:>4}% {}/{}", short(budget.used), short(budget.limit))).style(style),
    ];
    if width >= WIDE {
        spans.push(Span::from(format!(" {}", whose(budget))));
    }
    Line::from(spans)
}

fn bar(percent: u64) -> String {
    let filled = usize::try_from(percent).unwrap_or(usize::MAX).min(100) * BAR / 100;
    "█".repeat(filled) + &"░".repeat(BAR - filled)
}

fn fill_style(percent: u64) -> Style {
    match percent {
        ..80 => Style::new().green(),
        80..100 => Style::new().yellow(),
        _ => ALARM,
    }
}

/// `bottle reviewer`; `global` alone, as it has one owner.
fn owner_words(budget: &Budget) -> String {
    if budget.scope == "global" {
        return "global".to_owned();
    }
    format!("{} {}", scrub(&budget.scope), scrub(&budget.owner))
}

/// The same with the window, where it ends: `bottle reviewer daily`.
fn whose(budget: &Budget) -> String {
    match budget.window.as_str() {
        "total" => owner_words(budget),
        window => format!("{} {}", owner_words(budget), scrub(window)),
    }
}

/// All there is to say of one bottle; the cause of a cut first.
fn detail(bottle: &Bottle, width: u16) -> Text<'static> {
    let mut text = Text::default();
    if let Some(cause) = &bottle.cause {
        let face = bottle.face.map(|face| format!(" ({})", face.as_str())).unwrap_or_default();
        let words = format!("{}{face}: {}", bottle.state.as_str(), cause_words(cause));
        text.extend(fold(&words, width, ALARM));
    }
    for provider in providers(bottle) {
        if let Some(budget) = bottle.budget.get(provider) {
            text.extend(fold(&budget_words(provider, budget), width, Style::new()));
        }
        if let Some(usage) = bottle.usage.get(provider) {
            text.extend(fold(&usage_words(provider, usage), width, Style::new()));
        }
    }
    text.extend(fold(&placement_words(bottle), width, FAINT));
    text
}

/// Why a bottle is cut, in full: what was decided, whose budget, by whom, when.
fn cause_words(cause: &Cause) -> String {
    let optional = |value: &Option<String>| value.as_deref().map_or("?".to_owned(), scrub);
    let number = |value: Option<u64>| value.map_or("?".to_owned(), grouped);
    let mut words = match cause.kind {
        CauseKind::Budget => format!(
            "the {} budget of scope {}, owner {}, is used up: {} of {} tokens",
            optional(&cause.provider),
            optional(&cause.scope),
            optional(&cause.owner),
            number(cause.used),
            number(cause.limit),
        ),
        CauseKind::Operator => "an operator said so".to_owned(),
        CauseKind::Lease => "the controller was silent for too long".to_owned(),
        CauseKind::Hook => "a hook said so".to_owned(),
    };
    if let Some(flow) = cause.flow {
        words.push_str(&format!(", crossed by exchange {flow}"));
    }
    if let Some(reason) = &cause.reason {
        words.push_str(&format!(", reason: {}", scrub(reason)));
    }
    format!("{words}; at {} by {}", scrub(&cause.at), scrub(&cause.by))
}

fn budget_words(provider: &str, budget: &Budget) -> String {
    let until = budget.until.as_deref().map(|until| format!(" until {}", scrub(until))).unwrap_or_default();
    let why = if budget.why.is_empty() { String::new() } else { format!("; {}", scrub(&budget.why)) };
    format!(
        "{} budget ({}, window {}{until}): used {} of {}, reserved {}, remaining {}{why}",
        scrub(provider),
        owner_words(budget),
        scrub(&budget.window),
        grouped(budget.used),
        grouped(budget.limit),
        grouped(budget.reserved),
        grouped(budget.remaining),
    )
}

fn usage_words(provider: &str, usage: &api::Usage) -> String {
    format!(
        "{} usage: {} tokens in {} exchanges: input {}, cache write {}, cache read {}, output {} (reasoning {}); estimated {}",
        scrub(provider),
        grouped(usage.total),
        grouped(usage.flows),
        grouped(usage.input),
        grouped(usage.cache_write),
        grouped(usage.cache_read),
        grouped(usage.output),
        grouped(usage.reasoning),
        grouped(usage.estimated),
    )
}

fn placement_words(bottle: &Bottle) -> String {
    let or_none = |value: &Option<String>| value.as_deref().map_or("none".to_owned(), scrub);
    format!(
        "agent {}, parent {}, policy {}, egress {}; packets passed {}, dropped {}; {} processes in {}",
        or_none(&bottle.agent),
        or_none(&bottle.parent),
        scrub(&bottle.policy),
        scrub(&bottle.egress),
        grouped(bottle.kernel.passed_packets),
        grouped(bottle.kernel.dropped_packets),
        bottle.pids,
        scrub(&bottle.cgroup),
    )
}

fn draw_audit(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let title = match &state.audit_error {
        Some(reason) => format!("audit, STALE: {}", scrub(reason)),
        None => "audit".to_owned(),
    };
    let room = usize::from(area.height.saturating_sub(1));
    let newest = state.audit.iter().skip(state.audit.len().saturating_sub(room));
    let lines: Vec<Line<'_>> = newest.map(audit_line).collect();
    frame.render_widget(Paragraph::new(lines).block(pane(title)), area);
}

/// `12:00:00 cut reviewer: claude budget 300k/300k by controller, 84 µs`.
fn audit_line(row: &audit::Row) -> Line<'static> {
    let time = row.at.get(11..19).unwrap_or(&row.at);
    let mut words = format!("{} {}", scrub(time), scrub(&row.action));
    if let Some(bottle) = &row.bottle {
        words.push_str(&format!(" {}", scrub(bottle)));
    }
    if let Some(cause) = &row.cause {
        words.push_str(&format!(": {}", brief_cause(cause)));
    }
    if let Some(detail) = &row.detail {
        words.push_str(&format!(": {}", scrub(detail)));
    }
    words.push_str(&format!(", by {}", scrub(&row.by)));
    if let Some(took_us) = row.took_us {
        words.push_str(&format!(", {} µs", grouped(took_us)));
    }
    if row.outcome == "done" {
        return Line::from(words);
    }
    Line::from(format!("{words}, {}", scrub(&row.outcome))).style(ALARM)
}

/// A cause in as few words as say it.
fn brief_cause(cause: &Cause) -> String {
    let budget = cause.provider.as_ref().zip(cause.used.zip(cause.limit));
    match (cause.kind, budget) {
        (CauseKind::Budget, Some((provider, (used, limit)))) => {
            let scope = cause.scope.as_deref().map_or("?".to_owned(), scrub);
            format!("{scope} budget, {} {}/{}", scrub(provider), short(used), short(limit))
        }
        (CauseKind::Budget, None) => "budget".to_owned(),
        (CauseKind::Operator, _) => cause.reason.as_deref().map_or("operator".to_owned(), scrub),
        (CauseKind::Lease, _) => "lease".to_owned(),
        (CauseKind::Hook, _) => "hook".to_owned(),
    }
}

/// The question, else the last answer, else why the selected bottle is cut.
fn bottom_lines(state: &State, width: u16) -> Text<'static> {
    let asked = Style::new().yellow().bold();
    match &state.mode {
        Mode::Confirm(question) => return brief(&question_words(state, question), width, asked),
        Mode::AddTokens(prompt) => return brief(&prompt_words(state, prompt), width, asked),
        Mode::Filter => return brief(&format!("filter by name: {}_", scrub(&state.filter)), width, asked),
        Mode::Browse | Mode::Help => {}
    }
    if let Some(note) = &state.note {
        let style = if note.is_error { ALARM } else { Style::new() };
        return brief(&scrub(&note.text), width, style);
    }
    let Some((bottle, cause)) = state.selected_bottle().and_then(|b| Some((b, b.cause.as_ref()?))) else {
        return Text::from("");
    };
    let words = format!("{} is {}: {}", scrub(&bottle.name), bottle.state.as_str(), brief_cause(cause));
    brief(&words, width, Style::new())
}

fn question_words(state: &State, question: &Question) -> String {
    match question {
        Question::Cut(bottle) => format!("[y/n] cut bottle {}?", scrub(bottle)),
        Question::CutAll => {
            let count = state.status.as_ref().map_or(0, |status| status.bottles.len());
            format!("[y/n] cut ALL bottles ({count}, whatever the filter shows)?")
        }
        Question::Freeze(bottle) => format!("[y/n] freeze bottle {}?", scrub(bottle)),
        Question::Thaw(bottle) => format!("[y/n] thaw bottle {}?", scrub(bottle)),
        Question::Kill(bottle) => format!("[y/n] KILL bottle {}, for good?", scrub(bottle)),
        Question::Restore(bottle) => format!("[y/n] restore bottle {}?", scrub(bottle)),
    }
}

fn prompt_words(state: &State, prompt: &Prompt) -> String {
    let budget = state.budget_asked_for(prompt).map_or("used up".to_owned(), |budget| {
        format!("{}, used {} of {}", whose(budget), short(budget.used), short(budget.limit))
    });
    let error = prompt.error.as_deref().map(|error| format!(" ({error})")).unwrap_or_default();
    format!(
        "tokens to add: {}_{error} | restore {}: {} budget ({budget}) | Enter adds, f forces, Esc leaves it cut",
        scrub(&prompt.typed),
        scrub(&prompt.bottle),
        scrub(&prompt.provider),
    )
}

fn footer(width: u16) -> &'static str {
    match width {
        ..NARROW => "j/k c C f t K r /  ? help  q quit",
        NARROW..WIDE => "j/k  c cut  C all  f freeze  t thaw  K kill  r restore  / ? help  q quit",
        _ => "j/k select  c cut  C cut all  f freeze  t thaw  K kill  r restore  / filter  ? help  q quit",
    }
}

fn help() -> Paragraph<'static> {
    let lines = [
        "j k arrows Home End   select a bottle",
        "c   cut it: no packet passes (asks)",
        "C   cut all bottles (asks)",
        "f   freeze its processes (asks); t lets them go on",
        "K   kill its processes, for good (asks)",
        "r   restore it (asks; for tokens, too)",
        "/   filter by name, Enter keeps, Esc clears",
        "q   quit (Ctrl-C: at once)",
        "Any key closes this help.",
    ];
    Paragraph::new(lines.map(Line::from).to_vec()).block(pane("keys".to_owned()))
}

/// Text of a few lines at most: what is longer ends in `…` and leaves room for the bottles.
fn brief(text: &str, width: u16, style: Style) -> Text<'static> {
    let mut text = fold(text, width, style);
    if text.height() > BRIEF_LINES {
        text.lines.truncate(BRIEF_LINES - 1);
        text.push_line(Line::from("…").style(style));
    }
    text
}

/// Breaks scrubbed text into lines of at most `width` cells, at spaces where there are any.
fn fold(text: &str, width: u16, style: Style) -> Text<'static> {
    let width = usize::from(width.max(2));
    let mut lines = vec![];
    let mut line = String::new();
    for word in text.split(' ') {
        if !line.is_empty() && cells(&line) + 1 + cells(word) > width {
            lines.push(std::mem::take(&mut line));
        } else if !line.is_empty() {
            line.push(' ');
        }
        for c in word.chars() {
            if cells(&line) + cells(c.encode_utf8(&mut [0; 4])) > width {
                lines.push(std::mem::take(&mut line));
            }
            line.push(c);
        }
    }
    lines.push(line);
    lines.into_iter().map(|line| Line::from(line).style(style)).collect()
}

/// Width on the screen.
fn cells(text: &str) -> usize {
    Span::raw(text).width()
}

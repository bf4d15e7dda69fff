//! `budget`: shows budgets, and says what operators want of them.
use super::output::{Table, or_dash, print, print_json};
use crate::cli::{Budget, Global};
use crate::control::api::{AddTokens, BudgetRow, SetBudget};
use crate::error::Failure;
use crate::text::scrub;

pub(super) fn run(global: &Global, verb: &Budget) -> Result<(), Failure> {
    let control = super::connect(global)?;
    let client = control.client();
    let stands = match verb {
        Budget::List(json) => {
            let rows = control.wait(client.budgets())?;
            return if json.json { print_json(&rows) } else { print(&table(&rows)) };
        }
        Budget::Set { scope, budget: (provider, tokens), window } => {
            let budget = SetBudget { tokens: *tokens, window: *window };
            Some(control.wait(client.set_budget(scope, provider, &budget))?)
        }
        Budget::Add { scope, budget: (provider, tokens) } => {
            Some(control.wait(client.add_to_budget(scope, provider, &AddTokens { tokens: *tokens }))?)
        }
        Budget::Clear { scope, provider } => control.wait(client.clear_budget(scope, provider))?,
    };
    match stands {
        Some(row) => print(&(line(&row) + "\n")),
        None => print("no budget there any more\n"),
    }
}

/// `global claude: 500000 tokens daily, 1200 used, 498800 left (operator); 2 bottles`.
fn line(row: &BudgetRow) -> String {
    let added = if row.added > 0 { format!(", {} of them added", row.added) } else { String::new() };
    format!(
        "{} {}: {} tokens {}{added}, {} used, {} left ({}); {} bottles",
        scrub(&row.scope),
        scrub(&row.provider),
        row.limit,
        row.window.as_str(),
        row.used,
        row.remaining,
        scrub(&row.source),
        row.bottles,
    )
}

fn table(rows: &[BudgetRow]) -> String {
    const HEADING: [&str; 10] =
        ["SCOPE", "PROVIDER", "WINDOW", "LIMIT", "ADDED", "USED", "LEFT", "UNTIL", "STATED BY", "BOTTLES"];
    if rows.is_empty() {
        return "no budgets\n".to_owned();
    }
    let mut table = Table::new(&HEADING, [3, 4, 5, 6, 9]);
    for row in rows {
        table.row(&[
            row.scope.clone(),
            row.provider.clone(),
            row.window.as_str().to_owned(),
            row.limit.to_string(),
            row.added.to_string(),
            row.used.to_string(),
            row.remaining.to_string(),
            or_dash(row.until.as_deref()),
            row.source.clone(),
            row.bottles.to_string(),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::window::Window;

    #[test]
    fn a_table_and_a_line_say_what_there_is() {
        let row = BudgetRow {
            scope: "bottle:reviewer".into(),
            provider: "claude".into(),
            window: Window::Daily,
            tokens: 500_000,
            added: 20_000,
            limit: 520_000,
            used: 519_000,
            reserved: 0,
            remaining: 1_000,
            until: Some("2026-02-01T00:00:00.000Z".into()),
            source: "operator".into(),
            bottles: 2,
        };
        insta::assert_snapshot!(line(&row), @"bottle:reviewer claude: 520000 tokens daily, 20000 of them added, 519000 used, 1000 left (operator); 2 bottles");
        insta::assert_snapshot!(table(&[row]), @r#"
        SCOPE            PROVIDER  WINDOW   LIMIT  ADDED    USED  LEFT  UNTIL                     STATED BY  BOTTLES
        bottle:reviewer  claude    daily   520000  20000  519000  1000  2026-02-01T00:00:00.000Z  operator         2
        "#);
    }
}

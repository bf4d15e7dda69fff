//! `usage`: what was used, summed or exchange by exchange.
use super::output::{Table, or_dash, print, print_json};
use crate::cli::{Global, Usage};
use crate::error::Failure;
use crate::ledger::{FlowRow, UsageQuery, UsageRow};
use crate::text::short;

/// Counts of a row, in the contract's order and by its names.
const COUNTS: [&str; 8] =
    ["flows", "input", "cache_write", "cache_read", "output", "reasoning", "total", "estimated"];

pub(super) fn run(global: &Global, usage: &Usage) -> Result<(), Failure> {
    let query = UsageQuery {
        bottle: usage.bottle.clone(),
        agent: usage.agent.clone(),
        provider: usage.provider.clone(),
        since: usage.since,
        by: usage.by.map(Into::into),
    };
    let control = super::connect(global)?;
    if usage.flows {
        let rows = control.wait(control.client().flows(&query))?;
        return show(usage, &rows, flow_table);
    }
    let rows = control.wait(control.client().usage(&query))?;
    show(usage, &rows, usage_table)
}

/// How the cells of a count are written.
type Count = fn(u64) -> String;

/// A table before it is laid out; `-` where there is no value.
struct Cells {
    heading: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

fn show<T: serde::Serialize>(
    usage: &Usage,
    rows: &[T],
    table: fn(&[T], Count) -> Cells,
) -> Result<(), Failure> {
    if usage.json.json {
        return print_json(&rows);
    }
    if usage.csv {
        return print(&csv(&table(rows, |count| count.to_string())));
    }
    print(&aligned(&table(rows, short)))
}

fn usage_table(rows: &[UsageRow], count: Count) -> Cells {
    let mut heading = vec!["bottle", "agent", "provider", "model", "day"];
    heading.extend(COUNTS);
    heading.push("governs");
    let cells = rows.iter().map(|row| {
        let mut cells = keys(row);
        cells.push(or_dash(row.day.as_deref()));
        cells.extend(counts(row).map(count));
        cells.push(or_dash(row.governs.as_deref()));
        cells
    });
    Cells { heading, rows: cells.collect() }
}

fn flow_table(rows: &[FlowRow], count: Count) -> Cells {
    let mut heading = vec!["bottle", "agent", "provider", "model", "id", "started", "ended", "status"];
    heading.extend(["provenance", "endpoint"]);
    heading.extend(&COUNTS[1..]);
    let cells = rows.iter().map(|row| {
        let mut cells = keys(&row.usage);
        cells.extend([row.id.to_string(), row.started.clone(), or_dash(row.ended.as_deref())]);
        cells.extend([row.status.clone(), or_dash(row.provenance.as_deref()), row.endpoint.clone()]);
        cells.extend(counts(&row.usage)[1..].iter().map(|&figure| count(figure)));
        cells
    });
    Cells { heading, rows: cells.collect() }
}

fn keys(row: &UsageRow) -> Vec<String> {
    [&row.bottle, &row.agent, &row.provider, &row.model].map(|key| or_dash(key.as_deref())).to_vec()
}

fn counts(row: &UsageRow) -> [u64; 8] {
    [
        row.flows,
        row.input,
        row.cache_write,
        row.cache_read,
        row.output,
        row.reasoning,
        row.total,
        row.estimated,
    ]
}

/// A table without the columns that no row has anything in.
fn aligned(Cells { heading, rows }: &Cells) -> String {
    if rows.is_empty() {
        return "nothing used\n".to_owned();
    }
    let used: Vec<usize> =
        (0..heading.len()).filter(|&column| rows.iter().any(|row| row[column] != "-")).collect();
    let titles: Vec<String> =
        used.iter().map(|&column| heading[column].to_uppercase().replace('_', " ")).collect();
    let right = used.iter().enumerate().filter(|&(_, &column)| COUNTS.contains(&heading[column]));
    let mut table =
        Table::new(&titles.iter().map(String::as_str).collect::<Vec<_>>(), right.map(|(at, _)| at));
    for row in rows {
        table.row(&used.iter().map(|&column| row[column].clone()).collect::<Vec<_>>());
    }
    table.render()
}

/// RFC 4180, absent values empty. A value that a spreadsheet would take for a formula is led by a quote.
fn csv(Cells { heading, rows }: &Cells) -> String {
    let mut lines = format!("{}\n", heading.join(","));
    for row in rows {
        let cells: Vec<String> = row.iter().map(|cell| csv_cell(cell)).collect();
        lines.push_str(&format!("{}\n", cells.join(",")));
    }
    lines
}

fn csv_cell(cell: &str) -> String {
    let cell = crate::text::scrub(cell);
    match cell.as_str() {
        "-" => String::new(),
        formula if formula.starts_with(['=', '+', '-', '@']) => {
            format!("\"'{}\"", formula.replace('"', "\"\""))
        }
        quoted if quoted.contains([',', '"']) => format!("\"{}\"", quoted.replace('"', "\"\"")),
        plain => plain.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> UsageRow {
        UsageRow {
            bottle: Some("b1".into()),
            provider: Some("claude".into()),
            model: Some("=cmd(\"a\",b)".into()),
            flows: 2,
            input: 1_500,
            total: 1_500,
            ..UsageRow::default()
        }
    }

    #[test]
    fn a_table_leaves_empty_columns_out() {
        insta::assert_snapshot!(aligned(&usage_table(&[row()], short)), @r#"
        BOTTLE  PROVIDER  MODEL        FLOWS  INPUT  CACHE WRITE  CACHE READ  OUTPUT  REASONING  TOTAL  ESTIMATED
        b1      claude    =cmd("a",b)      2   1.5k            0           0       0          0   1.5k          0
        "#);
    }

    #[test]
    fn csv_is_exact_and_no_formula() {
        insta::assert_snapshot!(csv(&usage_table(&[row()], |count| count.to_string())), @r#"
        bottle,agent,provider,model,day,flows,input,cache_write,cache_read,output,reasoning,total,estimated,governs
        b1,,claude,"'=cmd(""a"",b)",,2,1500,0,0,0,0,1500,0,
        "#);
    }
}

//! What is different between two settings files, in words: one line for each value, by the path of its keys. Pure; both
//! texts have been taken as settings.
use std::collections::{BTreeMap, BTreeSet};

use serde_yaml::Value;

/// Most characters of one value that are told.
const MAX_VALUE_CHARS: usize = 200;
/// Most lines; of more, their number is told.
const MAX_LINES: usize = 100;

/// `budget.claude: 100 → 200`, in the order of the keys. What is not written has its default, and is told as unset.
#[must_use]
pub fn changes(before: &str, after: &str) -> Vec<String> {
    let (before, after) = (values(before), values(after));
    let paths: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let shown = |value: Option<&String>| value.map_or("unset", String::as_str).to_owned();
    let changed = paths.into_iter().filter(|path| before.get(*path) != after.get(*path));
    let mut lines: Vec<String> = changed
        .map(|path| format!("{path}: {} → {}", shown(before.get(path)), shown(after.get(path))))
        .collect();
    if lines.len() > MAX_LINES {
        let more = lines.split_off(MAX_LINES).len();
        lines.push(format!("and {more} more"));
    }
    lines
}

/// Every value that is no mapping, by its path.
fn values(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    if let Ok(value) = serde_yaml::from_str(text) {
        collect(&value, "", &mut found);
    }
    found
}

fn collect(value: &Value, path: &str, found: &mut BTreeMap<String, String>) {
    match value {
        Value::Mapping(mapping) => {
            for (key, value) in mapping {
                let key = written(key);
                let path = if path.is_empty() { key } else { format!("{path}.{key}") };
                collect(value, &path, found);
            }
        }
        Value::Null => {}
        value => drop(found.insert(path.to_owned(), written(value))),
    }
}

/// A value on one line, short, and fit for a terminal.
fn written(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        value => serde_json::to_string(value).unwrap_or_else(|_| "?".to_owned()),
    };
    meter_proxy::text::printable_within(&text, MAX_VALUE_CHARS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_that_differs_is_told_once() {
        let before = "budget: { claude: 100 }\nhold: 60s\nhooks: { cut: [/bin/a, b] }\n";
        let after = "budget:\n  claude: 200\n  codex: 5\nhooks: { cut: [/bin/a, c] }\nbottles: { b: {} }\n";
        let told = [
            "budget.claude: 100 → 200",
            "budget.codex: unset → 5",
            "hold: 60s → unset",
            "hooks.cut: [\"/bin/a\",\"b\"] → [\"/bin/a\",\"c\"]",
        ];
        assert_eq!(changes(before, after), told);
        assert_eq!(changes(before, before), [""; 0]);
        assert_eq!(changes("", "{}"), [""; 0]);
    }

    #[test]
    fn a_long_diff_and_hostile_values_are_bounded() {
        let many: String = (0..300).map(|n| format!("  b{n}: {{ budget: {{ claude: 1 }} }}\n")).collect();
        let told = changes("", &format!("bottles:\n{many}"));
        assert_eq!((told.len(), told.last().unwrap().as_str()), (MAX_LINES + 1, "and 200 more"));
        let told = changes("", &format!("tls: {{ extra_roots: \"\\e[2J{}\" }}", "x".repeat(900)));
        assert!(told[0].chars().count() < 260 && !told[0].contains('\u{1b}'), "{told:?}");
    }
}

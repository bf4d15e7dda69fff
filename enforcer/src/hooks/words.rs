//! What an argument of a hook stands for: `{bottle}`, `{cgroup}`, `{provider}` and `{cause}` anywhere in it. Pure.

/// The names that may stand between braces.
pub const PLACEHOLDERS: [&str; 4] = ["bottle", "cgroup", "provider", "cause"];

/// What a program is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// The bottle's name; empty where none is concerned.
    pub bottle: String,
    /// Its cgroup; empty where none is attached.
    pub cgroup: String,
    /// The provider of the budget; empty where none is concerned.
    pub provider: String,
    /// Why, in words.
    pub cause: String,
}

impl About {
    /// The arguments with what they stand for. What is put in is not read again, so that a cause's words name nothing.
    #[must_use]
    pub fn fill(&self, argv: &[String]) -> Vec<String> {
        argv.iter().map(|argument| self.fill_one(argument)).collect()
    }

    fn fill_one(&self, argument: &str) -> String {
        let (mut filled, mut rest) = (String::new(), argument);
        while let Some((before, name, after)) = next_placeholder(rest) {
            filled.push_str(before);
            match name {
                "bottle" => filled.push_str(&self.bottle),
                "cgroup" => filled.push_str(&self.cgroup),
                "provider" => filled.push_str(&self.provider),
                "cause" => filled.push_str(&self.cause),
                // `check` lets no other through
                other => filled.push_str(&format!("{{{other}}}")),
            }
            rest = after;
        }
        // a program takes no NUL in an argument
        (filled + rest).replace('\0', "\u{fffd}")
    }
}

/// Says which of an argument's placeholders stands for nothing, if one does.
#[must_use]
pub fn unknown_placeholder(argument: &str) -> Option<&str> {
    let mut rest = argument;
    while let Some((_, name, after)) = next_placeholder(rest) {
        if !PLACEHOLDERS.contains(&name) {
            return Some(name);
        }
        rest = after;
    }
    None
}

/// What stands before the first `{word}`, the word, and what follows. Braces around anything else are just braces.
fn next_placeholder(text: &str) -> Option<(&str, &str, &str)> {
    let mut from = 0;
    while let Some(open) = text[from..].find('{').map(|at| from + at) {
        let inner = &text[open + 1..];
        let length = inner.bytes().take_while(|byte| byte.is_ascii_lowercase() || *byte == b'_').count();
        if length > 0 && inner[length..].starts_with('}') {
            return Some((&text[..open], &inner[..length], &inner[length + 1..]));
        }
        from = open + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_filled_once() {
        let about = About {
            bottle: "b1".into(),
            cgroup: "/c".into(),
            provider: "claude".into(),
            cause: "by {bottle}".into(),
        };
        for (argument, filled) in [
            ("{bottle}", "b1"),
            ("--of={bottle}@{cgroup}", "--of=b1@/c"),
            ("{cause}{provider}", "by {bottle}claude"),
            ("{\"name\": \"{bottle}\"}", "{\"name\": \"b1\"}"),
            ("{}{{bottle}}{ bottle }", "{}{b1}{ bottle }"),
            ("plain é {", "plain é {"),
        ] {
            assert_eq!(about.fill(&[argument.to_owned()]), [filled], "{argument}");
        }
    }

    #[test]
    fn what_stands_for_nothing_is_found() {
        assert_eq!(unknown_placeholder("{bottle} {botle}"), Some("botle"));
        assert_eq!(unknown_placeholder("{\"a\": {}} {cause}"), None);
    }
}

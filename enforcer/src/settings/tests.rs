//! Settings by tables: what is taken and what it becomes, what is refused and in which words and place.
use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Result<Settings, SettingsError> {
    Settings::parse(text, Path::new("s.yml"))
}

/// The error as an operator reads it, with its hint in brackets.
fn refused(text: &str) -> String {
    match parse(text) {
        Ok(settings) => panic!("{text:?} was taken: {settings:?}"),
        Err(error) => match error.hint() {
            Some(hint) => format!("{error} [{hint}]"),
            None => error.to_string(),
        },
    }
}

/// Tokens by provider, in the window of the default.
fn budgets(pairs: &[(&str, u64)]) -> Budgets {
    let budget =
        |&(provider, tokens): &(&str, u64)| (provider.to_owned(), Budget { tokens, window: Window::Total });
    pairs.iter().map(budget).collect()
}

#[test]
fn the_short_form_is_a_whole_file() {
    let settings = parse("budget:\n  claude: 5000000\n  codex: 2M\nshutdown: cutoff\n").unwrap();
    let budget = budgets(&[("claude", 5_000_000), ("codex", 2_000_000)]);
    assert_eq!(settings, Settings { budget, ..Settings::default() });
}

#[test]
fn nothing_said_is_the_default() {
    for text in
        ["", "# only words\n", "---\n", "budget:\nbottles:\nproviders:\n", "{}", "warn_at: []\nhooks: {}\n"]
    {
        assert_eq!(parse(text).unwrap(), Settings::default(), "{text:?}");
    }
}

/// Every key of the schema, with a value that has its effect in this version.
const EVERYTHING: &str = r#"
budget: { claude: 5_000_000, codex: "500k", local: 7 }
shutdown: freeze
window: total
scope_rule: nearest
gate: off
midstream: false
cut: silent
hold: 1500ms
lease: off
reopen: auto
warn_at: []
weights: { input: 1, cache_write: 1.0, cache_read: 1, output: 1 }
egress: allowlist
allow: ["github.com:443", "10.0.0.0/8:5432", "[fd00::1]"]
unattached: meter
allow_private: ["10.0.0.0/8", "fd00::/8", "127.0.0.1/32"]
resolvers: [10.0.0.53, "fd00::53"]
listen: "[::1]:0"
hooks: { warn: [], cut: [/usr/bin/logger, "{bottle}: {cause}"], freeze: [/bin/true], kill: [] }
retention: 90d
providers:
  claude: { upstream: "http://127.0.0.1:9000" }
  codex: { dialect: openai, hosts: [api.openai.com] }
  local: { dialect: openai-chat, hosts: ["*.llm.example.com"], upstream: "https://llm.example.com/v2", include_usage: false }
  gemini: { hosts: [generativelanguage.googleapis.com, europe-west4-aiplatform.googleapis.com] }
tls: { extra_roots: /etc/roots.pem }
bottles:
  base: { shutdown: kill, egress: metered, snapshot: [/bin/snap, "{cgroup}"] }
  reviewer: { extends: base, budget: { claude: 300000 }, snapshot: engine }
agents:
  implementer: { budget: { claude: 100000 } }
dlp: { mode: off }
"#;

#[test]
fn every_supported_value_arrives() {
    let settings = parse(EVERYTHING).unwrap();
    assert_eq!(settings.budget, budgets(&[("claude", 5_000_000), ("codex", 500_000), ("local", 7)]));
    assert_eq!(settings.gate, Gate::Off);
    assert!(!settings.midstream);
    assert_eq!((settings.cut, parse("").unwrap().cut), (Face::Silent, Face::Answered));
    assert_eq!(settings.hold, Duration::from_millis(1500));
    assert_eq!(settings.unattached, Unattached::Meter);
    assert_eq!(settings.allow_private, ["10.0.0.0/8", "fd00::/8", "127.0.0.1/32"]);
    assert_eq!(settings.listen, "[::1]:0".parse().unwrap());
    assert_eq!(settings.extra_roots, Some(PathBuf::from("/etc/roots.pem")));
    let [claude, codex, gemini, bedrock, local] = settings.providers.as_slice() else {
        panic!("{:?}", settings.providers)
    };
    assert_eq!(claude.hosts, ["api.anthropic.com"]);
    assert_eq!(claude.upstream.as_deref(), Some("http://127.0.0.1:9000"));
    assert_eq!((codex.hosts.as_slice(), &codex.upstream), (["api.openai.com".to_owned()].as_slice(), &None));
    assert_eq!((local.name.as_str(), local.dialect), ("local", Dialect::OpenaiChat));
    assert_eq!((codex.include_usage, local.include_usage), (true, false));
    assert_eq!((gemini.dialect, gemini.hosts.len()), (Dialect::Gemini, 2));
    assert_eq!(bedrock.dialect, Dialect::Bedrock);
    assert!(bedrock.hosts.contains(&"bedrock-runtime.*.amazonaws.com".to_owned()));
    assert_eq!(
        settings.bottles["reviewer"],
        BottleSettings {
            extends: Some("base".to_owned()),
            budget: budgets(&[("claude", 300_000)]),
            snapshot: Some(Snapshot::Engine),
            ..BottleSettings::default()
        }
    );
    assert_eq!((settings.shutdown, settings.bottles["base"].shutdown), (Policy::Freeze, Some(Policy::Kill)));
    assert_eq!(
        settings.bottles["base"].snapshot,
        Some(Snapshot::Program(vec!["/bin/snap".into(), "{cgroup}".into()]))
    );
    assert_eq!(settings.bottles["reviewer"].snapshot, Some(Snapshot::Engine));
    assert_eq!(settings.hooks.keys().copied().collect::<Vec<_>>(), [Occasion::Cut, Occasion::Freeze]);
    assert_eq!(settings.hooks[&Occasion::Cut], ["/usr/bin/logger", "{bottle}: {cause}"]);
    assert_eq!(settings.retention, Duration::from_hours(90 * 24));
    assert_eq!(settings.egress, Egress::Allowlist);
    assert_eq!(settings.bottles["base"].egress, Some(Egress::Metered));
    assert_eq!(settings.bottles["reviewer"].egress, None);
    let rules: Vec<String> = settings.allow.iter().map(ToString::to_string).collect();
    assert_eq!(rules, ["github.com:443", "10.0.0.0/8:5432", "[fd00::1/128]"]);
    let resolvers: [IpAddr; 2] = ["10.0.0.53".parse().unwrap(), "fd00::53".parse().unwrap()];
    assert_eq!(settings.resolvers, resolvers);
    assert_eq!(settings.agents["implementer"].budget, budgets(&[("claude", 100_000)]));
}

#[test]
fn what_has_no_effect_yet_is_refused_with_its_place() {
    for (text, place, key) in [("gate: exact", "1:7", "gate"), ("dlp: { mode: block }", "1:14", "dlp.mode")] {
        let words = refused(text);
        let expected = format!("s.yml:{place}: this value of {key} is not yet supported in this version [");
        assert!(words.starts_with(&expected), "{text:?}: {words}");
    }
}

#[test]
fn budgets_have_windows_rules_weights_and_warnings() {
    let text = "window: weekly\nscope_rule: ceiling\nreopen: manual\nwarn_at: [95, 50, 95]\n\
        weights: { cache_read: 0.1, output: 5 }\nbudget: { claude: 5, codex: { tokens: 2M, window: daily } }\n\
        agents: { a: { budget: { claude: { tokens: 7 } } } }";
    let settings = parse(text).unwrap();
    let budget = |tokens, window| Budget { tokens, window };
    assert_eq!(settings.budget["claude"], budget(5, Window::Weekly));
    assert_eq!(settings.budget["codex"], budget(2_000_000, Window::Daily));
    assert_eq!(settings.agents["a"].budget["claude"], budget(7, Window::Weekly));
    assert_eq!((settings.scope_rule, settings.reopen), (ScopeRule::Ceiling, Reopen::Manual));
    assert_eq!(settings.warn_at, [50, 95]);
    let weights = settings.weights;
    let shown =
        [weights.input, weights.cache_write, weights.cache_read, weights.output].map(|w| w.to_string());
    assert_eq!(shown, ["1", "1", "0.1", "5"]);
}

#[test]
fn overrides_that_may_exceed_the_global_budget_are_warned_of() {
    let overrides =
        "bottles: { b: { budget: { claude: 30 } } }\nagents: { a: { budget: { claude: 20, codex: 1 } } }";
    let warnings = |before: &str| parse(&format!("{before}\n{overrides}")).unwrap().warnings();
    assert_eq!(
        warnings("budget: { claude: 100 }"),
        [
            "claude: the global budget of 100 tokens total does not hold back those that override it (bottle:b 30 tokens \
          total, agent:a 20 tokens total): up to 150 tokens total can be used; scope_rule: ceiling holds all of them \
          under the global one"
        ]
    );
    let windows_differ = &warnings("budget: { claude: { tokens: 100, window: monthly } }")[0];
    assert!(windows_differ.contains("their windows differ, so there is no sum to it"), "{windows_differ}");
    for quiet in
        ["", "budget: { claude: 100 }\nscope_rule: ceiling", "budget: { claude: 100 }\nscope_rule: strictest"]
    {
        assert_eq!(warnings(quiet), [""; 0], "{quiet}");
    }
    assert_eq!(parse("budget: { claude: 100 }").unwrap().warnings(), [""; 0]);
}

#[test]
fn a_bottle_s_cgroup_is_written_one_way_and_below_the_mount() {
    let parse = |text: &str| Settings::parse_for(text, Path::new("s.yml"), Some(Path::new("/sys/fs/cgroup")));
    let given = |path: &str| format!("bottles:\n  b: {{ cgroup: {path} }}");
    for path in ["/sys/fs/cgroup/a/b", "/sys/fs/cgroup//a/./b/", "/sys//fs/cgroup/a/b"] {
        let settings = parse(&given(path)).unwrap();
        assert_eq!(settings.bottles["b"].cgroup, Some(PathBuf::from("/sys/fs/cgroup/a/b")), "{path}");
    }
    for (path, words) in [
        ("a/b", "is not an absolute path"),
        ("''", "is not an absolute path"),
        ("/sys/fs/cgroup/a/../b", "goes up by \"..\""),
        ("/sys/fs/cgroup", "is not below /sys/fs/cgroup"),
        ("/sys/fs/cgroup/", "is not below /sys/fs/cgroup"),
        ("/sys/fs/cgroup2/a", "is not below /sys/fs/cgroup"),
        ("/tmp/a", "is not below /sys/fs/cgroup"),
    ] {
        let refused = parse(&given(path)).unwrap_err().to_string();
        assert!(refused.starts_with("s.yml:2:16: ") && refused.contains(words), "{path}: {refused}");
    }
    let twice = "bottles:\n  a: { cgroup: /sys/fs/cgroup/x }\n  b: { cgroup: /sys/fs/cgroup/./x/ }";
    let refused = parse(twice).unwrap_err().to_string();
    assert_eq!(refused, "s.yml:3:16: /sys/fs/cgroup/x is the cgroup of bottle \"a\" already");
}

#[test]
fn errors_name_line_and_column_and_what_to_do() {
    let table: String = [
        "budget:\n  claude: 5\n bad: indent",
        "budget: {claude: 5",
        "budget: &a {claude: 5}",
        "budget: *a",
        "budget: !!int 5",
        "shutdown: |\n  cutoff",
        "shutdown: >\n  cutoff",
        "budget:\n  claude: 1\n  claude: 2",
        "a: {b: {c: {d: {e: {f: {g: {h: {i: 1}}}}}}}}",
        "---\nmidstream: true\n---\nmidstream: false",
        "[a]: b",
        "just words",
        "- a\n- b",
        "budgte: {}",
        "zzz: 1",
        "bottles:\n  b: { extend: a }",
        "tls: { extra_root: /x }",
        "budget:\n  cluade: 5",
        "budget: 5",
        "budget:\n  claude: abc",
        "budget:\n  claude: -1",
        "budget:\n  claude: 1.5",
        "budget:\n  claude: 1e30",
        "budget:\n  claude: 9223372036854775808",
        "budget:\n  claude: 99999999999999999999999999999999999999999999",
        "budget:\n  claude: true",
        "budget:\n  claude: [1]",
        "budget:\n  claude:",
        "budget:\n  claude: { tokens: 5, windw: daily }",
        "budget:\n  claude: { window: daily }",
        "bottles:\n  b: { budget: { claude: { tokens: 5, window: yearly } } }",
        "window: day",
        "scope_rule: closest",
        "reopen: later",
        "warn_at: [50, 101]",
        "warn_at: [0]",
        "warn_at: [300]",
        "warn_at: 50",
        "weights: { input: -1 }",
        "weights: { input: 1e9 }",
        "weights: { input: 0.0001 }",
        "weights: { input: .nan }",
        "weights: { inptu: 1 }",
        "weights: { input: 0, cache_write: 0, cache_read: 0, output: 0 }",
        "shutdown: cut",
        "midstream: sometimes",
        "hold: 60",
        "hold: 1 minute",
        "hold: 99999999d",
        "lease: never",
        "lease: 300ms",
        "listen: localhost",
        "allow_private: [10.0.0.0/8, 10.0.0.0/33]",
        "allow_private: [10.0.0.1/8]",
        "allow_private: [10.0.0.1]",
        "egress: closed",
        "allow: github.com",
        "allow: ['github.com:443', '*.github.com:443']",
        "allow: ['fd00::1:443']",
        "allow:\n  - 10.0.0.1/8",
        "allow: ['github.com:https']",
        "allow: ['a b']",
        "resolvers: [dns.example]",
        "resolvers: ['10.0.0.1:5353']",
        "resolvers: [0.0.0.0]",
        "bottles:\n  b: { egress: none }",
        "providers:\n  new: { hosts: [a.example] }",
        "providers:\n  new: { dialect: openai }",
        "providers:\n  ../x: { dialect: openai }",
        "providers:\n  new: { dialect: openai, hosts: [API.example.com] }",
        "providers:\n  new: { dialect: openai, hosts: ['*'] }",
        "providers:\n  new: { dialect: openai, hosts: [b.example, api.openai.com] }",
        "providers:\n  new: { dialect: openai, hosts: ['*.openai.com'] }",
        "providers:\n  new: { dialect: openai, hosts: [a.example, a.example] }",
        "providers:\n  claude: { upstream: 'ftp://x' }",
        "providers:\n  claude: { upstream: 'https://u:p@x' }",
        "providers:\n  claude: { upstream: 'https://x:99999' }",
        "providers:\n  claude: { upstream: 'https://x/?q' }",
        "providers:\n  claude: { upstream: 'x y' }",
        "tls: { extra_roots: roots.pem }",
        "bottles:\n  host: {}",
        "bottles:\n  b: { extends: c }",
        "bottles:\n  a: { extends: b }\n  b: { extends: c }\n  c: { extends: b }",
        "bottles:\n  a: { extends: a }",
        "bottles:\n  a: { budget: { gpt: 1 } }",
        "agents:\n  'a b': {}",
        "agents:\n  a: { budget: { claude: 5x } }",
        "shutdown: \"a\\nb\\e[31m\"",
    ]
    .iter()
    .map(|text| format!("{text}\n  => {}\n", refused(text)))
    .collect();
    insta::assert_snapshot!(table, @r#"
    budget:
      claude: 5
     bad: indent
      => s.yml:3:2: malformed YAML: while parsing a block mapping, did not find expected key
    budget: {claude: 5
      => s.yml:2:1: malformed YAML: while parsing a flow mapping, did not find expected ',' or '}'
    budget: &a {claude: 5}
      => s.yml:1:9: anchors (&name) are refused [write the value out where it is needed]
    budget: *a
      => s.yml:1:9: malformed YAML: while parsing node, found unknown anchor
    budget: !!int 5
      => s.yml:1:9: tags (!name) are refused [write the value alone]
    shutdown: |
      cutoff
      => s.yml:2:3: block scalars (| and >) are refused [write it on one line]
    shutdown: >
      cutoff
      => s.yml:2:3: block scalars (| and >) are refused [write it on one line]
    budget:
      claude: 1
      claude: 2
      => s.yml:3:3: "claude" is given twice [keep one of them]
    a: {b: {c: {d: {e: {f: {g: {h: {i: 1}}}}}}}}
      => s.yml:1:32: nested deeper than 8 levels
    ---
    midstream: true
    ---
    midstream: false
      => s.yml:3:1: a second document (---) is refused [keep one mapping in the file]
    [a]: b
      => s.yml:1:1: a key must be one word
    just words
      => s.yml:1:1: invalid type: string "just words", expected a mapping of settings
    - a
    - b
      => s.yml:1:1: invalid type: sequence, expected a mapping of settings
    budgte: {}
      => s.yml:1:1: unknown key "budgte" [did you mean "budget"?]
    zzz: 1
      => s.yml:1:1: unknown key "zzz" [known are budget, shutdown, window, scope_rule, gate, midstream, cut, hold, lease, reopen, warn_at, weights, egress, allow, unattached, allow_private, resolvers, retention, listen, hooks, providers, tls, bottles, agents, dlp]
    bottles:
      b: { extend: a }
      => s.yml:2:8: unknown key "extend" [did you mean "extends"?]
    tls: { extra_root: /x }
      => s.yml:1:8: unknown key "extra_root" [did you mean "extra_roots"?]
    budget:
      cluade: 5
      => s.yml:2:3: no provider is called "cluade" [did you mean "claude"?]
    budget: 5
      => s.yml:1:9: budget: invalid type: integer `5`, expected a map
    budget:
      claude: abc
      => s.yml:2:11: budget.claude: not a number of tokens (5000000, 500k and 2M are)
    budget:
      claude: -1
      => s.yml:2:11: budget.claude: a budget cannot be negative
    budget:
      claude: 1.5
      => s.yml:2:11: budget.claude: tokens are whole (1500k instead of 1.5M)
    budget:
      claude: 1e30
      => s.yml:2:11: budget.claude: more tokens than can be counted (at most 9223372036854775807)
    budget:
      claude: 9223372036854775808
      => s.yml:2:11: budget.claude: more tokens than can be counted (at most 9223372036854775807)
    budget:
      claude: 99999999999999999999999999999999999999999999
      => s.yml:2:11: budget.claude: more tokens than can be counted (at most 9223372036854775807)
    budget:
      claude: true
      => s.yml:2:11: budget.claude: invalid type: boolean `true`, expected a whole number of tokens, such as 5000000, 500k or 2M, or { tokens: 500k, window: daily }
    budget:
      claude: [1]
      => s.yml:2:11: budget.claude: invalid type: sequence, expected a whole number of tokens, such as 5000000, 500k or 2M, or { tokens: 500k, window: daily }
    budget:
      claude:
      => s.yml:2:10: budget.claude: invalid type: unit value, expected a whole number of tokens, such as 5000000, 500k or 2M, or { tokens: 500k, window: daily }
    budget:
      claude: { tokens: 5, windw: daily }
      => s.yml:2:24: unknown key "windw" [did you mean "window"?]
    budget:
      claude: { window: daily }
      => s.yml:2:11: budget.claude: missing field `tokens`
    bottles:
      b: { budget: { claude: { tokens: 5, window: yearly } } }
      => s.yml:2:47: bottles.b.budget.claude.window: unknown variant `yearly`, expected one of `total`, `hourly`, `daily`, `weekly`, `monthly`
    window: day
      => s.yml:1:9: window: unknown variant `day`, expected one of `total`, `hourly`, `daily`, `weekly`, `monthly`
    scope_rule: closest
      => s.yml:1:13: scope_rule: unknown variant `closest`, expected one of `nearest`, `ceiling`, `strictest`
    reopen: later
      => s.yml:1:9: reopen: unknown variant `later`, expected `auto` or `manual`
    warn_at: [50, 101]
      => s.yml:1:15: 101 is no percentage to warn at [1 to 100 are, as in [50, 80, 95]]
    warn_at: [0]
      => s.yml:1:11: 0 is no percentage to warn at [1 to 100 are, as in [50, 80, 95]]
    warn_at: [300]
      => s.yml:1:11: 300 is no percentage to warn at [1 to 100 are, as in [50, 80, 95]]
    warn_at: 50
      => s.yml:1:10: warn_at: invalid type: integer `50`, expected a sequence
    weights: { input: -1 }
      => s.yml:1:19: weights.input: a weight cannot be negative
    weights: { input: 1e9 }
      => s.yml:1:19: weights.input: a weight is at most 1000
    weights: { input: 0.0001 }
      => s.yml:1:19: weights.input: a weight has at most three decimals
    weights: { input: .nan }
      => s.yml:1:19: weights.input: a weight is a number (0, 0.1 and 1.25 are)
    weights: { inptu: 1 }
      => s.yml:1:12: unknown key "inptu" [did you mean "input"?]
    weights: { input: 0, cache_write: 0, cache_read: 0, output: 0 }
      => s.yml:1:10: no class of token weighs anything, so no budget would ever be used up [give at least one class a weight above 0]
    shutdown: cut
      => s.yml:1:11: shutdown: unknown variant `cut`, expected one of `cutoff`, `freeze`, `kill`
    midstream: sometimes
      => s.yml:1:12: midstream: invalid type: string "sometimes", expected a boolean
    hold: 60
      => s.yml:1:7: hold: invalid type: integer `60`, expected a length of time with its unit, such as 60s
    hold: 1 minute
      => s.yml:1:7: hold: not a length of time (500ms, 60s, 5m, 2h and 1d are)
    hold: 99999999d
      => s.yml:1:7: hold: longer than 1000 days
    lease: never
      => s.yml:1:8: lease: not a length of time (500ms, 60s, 5m, 2h and 1d are)
    lease: 300ms
      => s.yml:1:8: a lease shorter than 1 s would cut healthy bottles [10s is the default; off is none]
    listen: localhost
      => s.yml:1:9: "localhost" is not an address with a port [write it as "127.0.0.1:7080" or "[::1]:7080"]
    allow_private: [10.0.0.0/8, 10.0.0.0/33]
      => s.yml:1:29: "10.0.0.0/33" is no range of addresses (10.0.0.0/8, fd00::/8)
    allow_private: [10.0.0.1/8]
      => s.yml:1:17: "10.0.0.1/8" has bits beyond its prefix of 8
    allow_private: [10.0.0.1]
      => s.yml:1:17: "10.0.0.1" is no range of addresses (10.0.0.0/8, fd00::/8)
    egress: closed
      => s.yml:1:9: egress: unknown variant `closed`, expected one of `open`, `allowlist`, `metered`
    allow: github.com
      => s.yml:1:8: allow: invalid type: string "github.com", expected a sequence
    allow: ['github.com:443', '*.github.com:443']
      => s.yml:1:27: "*.github.com:443" is no rule of allow: a name with * has no addresses that could be looked up [list each name by itself: git.example.com:443]
    allow: ['fd00::1:443']
      => s.yml:1:9: "fd00::1:443" is no rule of allow: an IPv6 address without brackets could end in a port [write it as [fd00::1]:443]
    allow:
      - 10.0.0.1/8
      => s.yml:2:5: "10.0.0.1/8" is no rule of allow: the range has bits beyond its prefix [a range starts where its prefix says: 10.0.0.0/8]
    allow: ['github.com:https']
      => s.yml:1:9: "github.com:https" is no rule of allow: the port is not one of 1 to 65535 [rules are host:port, 10.0.0.0/8:port, [fd00::1]:port, or any of these without a port]
    allow: ['a b']
      => s.yml:1:9: "a b" is no rule of allow: not a host name, an address or a range of addresses [rules are host:port, 10.0.0.0/8:port, [fd00::1]:port, or any of these without a port]
    resolvers: [dns.example]
      => s.yml:1:13: "dns.example" is no address of a DNS server [resolvers are addresses of at most 8 DNS servers, asked at port 53: 10.0.0.53, fd00::53]
    resolvers: ['10.0.0.1:5353']
      => s.yml:1:13: "10.0.0.1:5353" is no address of a DNS server [resolvers are addresses of at most 8 DNS servers, asked at port 53: 10.0.0.53, fd00::53]
    resolvers: [0.0.0.0]
      => s.yml:1:13: "0.0.0.0" is no address of a DNS server [resolvers are addresses of at most 8 DNS servers, asked at port 53: 10.0.0.53, fd00::53]
    bottles:
      b: { egress: none }
      => s.yml:2:16: bottles.b.egress: unknown variant `none`, expected one of `open`, `allowlist`, `metered`
    providers:
      new: { hosts: [a.example] }
      => s.yml:2:3: provider "new" has no dialect [a dialect is anthropic, openai, openai-chat, gemini or bedrock]
    providers:
      new: { dialect: openai }
      => s.yml:2:3: provider "new" has neither hosts nor an upstream
    providers:
      ../x: { dialect: openai }
      => s.yml:2:3: provider "../x": a name is made of letters, digits, '.', '_' and '-', and does not start with '.' or '-'
    providers:
      new: { dialect: openai, hosts: [API.example.com] }
      => s.yml:2:35: "API.example.com" is not a host name in lower case (api.example.com, *.example.com)
    providers:
      new: { dialect: openai, hosts: ['*'] }
      => s.yml:2:35: "*" is not a host name in lower case (api.example.com, *.example.com)
    providers:
      new: { dialect: openai, hosts: [b.example, api.openai.com] }
      => s.yml:2:46: host "api.openai.com" belongs to provider "codex" already ("api.openai.com") [a metered host has one provider]
    providers:
      new: { dialect: openai, hosts: ['*.openai.com'] }
      => s.yml:2:35: host "*.openai.com" belongs to provider "codex" already ("api.openai.com") [a metered host has one provider]
    providers:
      new: { dialect: openai, hosts: [a.example, a.example] }
      => s.yml:2:46: provider "new" lists "a.example" twice ("a.example" covers it) [a metered host has one provider]
    providers:
      claude: { upstream: 'ftp://x' }
      => s.yml:2:23: "ftp://x" is no upstream: it starts with neither http:// nor https:// [write it as https://host[:port][/path]]
    providers:
      claude: { upstream: 'https://u:p@x' }
      => s.yml:2:23: "https://u:p@x" is no upstream: it holds a user name [write it as https://host[:port][/path]]
    providers:
      claude: { upstream: 'https://x:99999' }
      => s.yml:2:23: "https://x:99999" is no upstream: its port is not one of 1 to 65535 [write it as https://host[:port][/path]]
    providers:
      claude: { upstream: 'https://x/?q' }
      => s.yml:2:23: "https://x/?q" is no upstream: it has a query or a fragment [write it as https://host[:port][/path]]
    providers:
      claude: { upstream: 'x y' }
      => s.yml:2:23: "x y" is no upstream: not a URL [write it as https://host[:port][/path]]
    tls: { extra_roots: roots.pem }
      => s.yml:1:21: roots.pem is not an absolute path
    bottles:
      host: {}
      => s.yml:2:3: bottle "host": the names host and global are taken
    bottles:
      b: { extends: c }
      => s.yml:2:17: no bottle is called "c" [there is none]
    bottles:
      a: { extends: b }
      b: { extends: c }
      c: { extends: b }
      => s.yml:4:17: bottle "b" extends itself, by way of "c" [extends must not go in a circle]
    bottles:
      a: { extends: a }
      => s.yml:2:17: bottle "a" extends itself, by way of "a" [extends must not go in a circle]
    bottles:
      a: { budget: { gpt: 1 } }
      => s.yml:2:18: no provider is called "gpt" [known are claude, codex, gemini, bedrock]
    agents:
      'a b': {}
      => s.yml:2:3: agent "a b": a name is made of letters, digits, '.', '_' and '-', and does not start with '.' or '-'
    agents:
      a: { budget: { claude: 5x } }
      => s.yml:2:26: agents.a.budget.claude: not a number of tokens (5000000, 500k and 2M are)
    shutdown: "a\nb\e[31m"
      => s.yml:1:11: shutdown: unknown variant `a�b�[31m`, expected one of `cutoff`, `freeze`, `kill`
    "#);
}

#[test]
fn rules_and_resolvers_are_bounded() {
    let list = |item: &str, count: usize| vec![item; count].join(", ");
    assert_eq!(parse(&format!("allow: [{}]", list("a.example", MAX_RULES))).unwrap().allow.len(), MAX_RULES);
    let words = refused(&format!("allow: [{}]", list("a.example", MAX_RULES + 1)));
    assert!(words.starts_with("s.yml:1:1417: more than 128 rules in allow ["), "{words}");
    let rules: Vec<String> = (1..=17).map(|port| format!("a.example:{port}")).collect();
    assert!(parse(&format!("allow: [{}]", rules[..16].join(", "))).is_ok());
    let words = refused(&format!("allow: [{}]", rules.join(", ")));
    assert!(words.starts_with("s.yml:1:224: more than 16 different ports in allow ["), "{words}");
    let words = refused(&format!("resolvers: [{}]", list("10.0.0.1", MAX_RESOLVERS + 1)));
    assert!(words.starts_with("s.yml:1:93: more than 8 resolvers ["), "{words}");
}

#[test]
fn a_hook_is_a_program_by_its_whole_path_and_names_only_what_there_is() {
    for (text, words) in [
        ("hooks: { cut: [logger] }", "s.yml:1:16: \"logger\" is not an absolute path ["),
        (
            "hooks: { cut: [/bin/x, \"{who}\"] }",
            "holds {who}, which stands for nothing [placeholders are {bottle}",
        ),
        ("hooks: { thaw: [/bin/x] }", "s.yml:1:10: unknown key \"thaw\" [known are warn"),
        ("bottles:\n  b: { snapshot: [tar] }", "s.yml:2:19: \"tar\" is not an absolute path ["),
        ("bottles:\n  b: { snapshot: docker }", "a list of a program and its arguments, or the word engine"),
        ("retention: 30d", "exchanges younger than the longest window would be rolled up [32d is the least"),
    ] {
        let refused = refused(text);
        assert!(refused.contains(words), "{text}: {refused}");
    }
}

#[test]
fn each_key_that_is_named_as_known_is_in_the_schema() {
    // a key that only the list knows would be refused by serde as unknown
    let places = yaml::places(EVERYTHING).unwrap();
    let written: Vec<&str> =
        places.keys().filter(|(path, _)| path.len() == 1).map(|(path, _)| path[0].as_str()).collect();
    let missing: Vec<_> = file::TOP_KEYS.iter().filter(|key| !written.contains(key)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn tokens_are_whole_and_counted() {
    for (text, tokens) in [
        ("0", 0),
        ("5000000", 5_000_000),
        ("5_000_000", 5_000_000),
        ("500k", 500_000),
        ("500K", 500_000),
        ("2M", 2_000_000),
        ("2m", 2_000_000),
        ("9223372036854775807", i64::MAX.unsigned_abs()),
    ] {
        assert_eq!(parse_tokens(text), Ok(tokens), "{text}");
    }
    for (text, error) in [
        ("", TokensError::NotANumber),
        ("k", TokensError::NotANumber),
        ("_5", TokensError::NotANumber),
        ("abc", TokensError::NotANumber),
        ("5 k", TokensError::NotANumber),
        ("5kk", TokensError::NotANumber),
        ("5G", TokensError::NotANumber),
        ("٥", TokensError::NotANumber),
        ("nan", TokensError::NotANumber),
        ("inf", TokensError::NotANumber),
        ("-1", TokensError::Negative),
        ("-2M", TokensError::Negative),
        ("1.5M", TokensError::Fraction),
        ("9223372036854775808", TokensError::TooMany),
        ("99999999999999M", TokensError::TooMany),
        ("99999999999999999999999999", TokensError::TooMany),
    ] {
        assert_eq!(parse_tokens(text), Err(error), "{text}");
    }
}

#[test]
fn names_can_be_file_names_and_nothing_more() {
    for name in ["a", "b1", "Reviewer-2.x_y", "9", &"a".repeat(64)] {
        assert_eq!(check_name(name), Ok(()), "{name}");
    }
    for name in ["..", ".", ".a", "-a", "a/b", "a b", "a\n", "a\x1b[31m", "ü", "a\u{202e}b", "a:b", "a\0"] {
        assert_eq!(check_name(name), Err(NameError::Character), "{name:?}");
    }
    assert_eq!(check_name(""), Err(NameError::Length(0)));
    assert_eq!(check_name(&"a".repeat(65)), Err(NameError::Length(65)));
    assert_eq!(check_name(&"a".repeat(300)), Err(NameError::Length(300)));
    assert_eq!(check_name("host"), Err(NameError::Taken));
    assert_eq!(check_name("global"), Err(NameError::Taken));
}

mod files {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use tempfile::TempDir;

    use super::*;

    fn written(text: &str) -> (TempDir, PathBuf) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("settings.yml");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        (dir, path)
    }

    fn refused(path: &Path) -> String {
        Settings::load_default(path).unwrap_err().to_string()
    }

    #[test]
    fn a_file_is_read() {
        let (_dir, path) = written("midstream: false");
        assert!(!Settings::load(&path).unwrap().midstream);
    }

    #[test]
    fn only_the_default_file_may_be_missing() {
        let path = Path::new("/nonexistent/settings.yml");
        assert_eq!(Settings::load_default(path).unwrap(), Settings::default());
        let error = Settings::load(path).unwrap_err();
        assert_eq!(error.to_string(), "/nonexistent/settings.yml: there is no such file");
    }

    #[test]
    fn a_file_that_others_can_write_is_refused() {
        let (dir, path) = written("");
        let link = dir.path().join("link.yml");
        symlink(&path, &link).unwrap();
        assert!(refused(&link).contains("it is a symbolic link"));
        assert!(refused(dir.path()).contains("it is not a file"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o664)).unwrap();
        assert!(refused(&path).contains("others than its owner can write it"));
    }

    #[test]
    fn root_refuses_a_file_of_somebody_else() {
        assert!(Uid::effective().is_root(), "this test needs root");
        let (_dir, path) = written("");
        nix::unistd::chown(&path, Some(1234.into()), None).unwrap();
        assert!(refused(&path).contains("it belongs to uid 1234, who could raise their own budget"));
    }

    #[test]
    fn a_file_that_is_no_text_or_too_long_is_refused() {
        let (_dir, path) = written(&"#".repeat(1024 * 1024 + 1));
        assert!(refused(&path).contains("at most 1048576 are read"));
        fs::write(&path, [0xff, 0xfe, b'a']).unwrap();
        assert!(refused(&path).contains("UTF-8"));
    }
}

proptest! {
    /// Whatever is written, there is an answer: settings, or one line with a place.
    #[test]
    fn any_text_is_answered_in_one_line(text in "[ \\PC\n:{}\\[\\]&*!|>'\"#-]{0,80}") {
        if let Err(error) = parse(&text) {
            prop_assert_eq!(error.to_string().lines().count(), 1);
        }
    }

    /// What is close to settings, too.
    #[test]
    fn damaged_settings_are_answered(at in 0..EVERYTHING.len(), instead in "[:{}\\[\\]&*!|>'\"#\n 9a-]{0,3}") {
        let mut text = EVERYTHING.to_owned();
        text.replace_range(at..=at, &instead);
        if let Err(error) = parse(&text) {
            prop_assert_eq!(error.to_string().lines().count(), 1);
        }
    }

    #[test]
    fn tokens_that_are_printed_are_read_again(tokens in 0..=i64::MAX.unsigned_abs()) {
        prop_assert_eq!(parse_tokens(&tokens.to_string()), Ok(tokens));
    }
}

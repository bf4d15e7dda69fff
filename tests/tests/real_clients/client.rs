//! The table of clients: how each is asked one question, what it needs for each way to the meter, and where in its
//! output the answer is.
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::{home, installed, keys};

/// Whatever is asked.
const QUESTION: &str = "Say hello";
/// What an SDK or curl is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    Messages,
    Chat,
    Responses,
    /// Gemini's `generateContent` and `streamGenerateContent`.
    Generate,
    /// Messages by Bedrock's `invoke`, of Anthropic's SDKs.
    Bedrock,
    /// Bedrock's `invoke`, of AWS's SDKs.
    Invoke,
    /// Bedrock's Converse, of AWS's SDKs.
    Converse,
}

impl Api {
    /// Those that take a key in a header, as curl sends it, and answer in text.
    pub const BY_CURL: [Self; 4] = [Self::Messages, Self::Chat, Self::Responses, Self::Generate];
    /// Those of Bedrock.
    pub const OF_BEDROCK: [Self; 3] = [Self::Bedrock, Self::Invoke, Self::Converse];

    fn word(self) -> &'static str {
        match self {
            Self::Messages => "anthropic",
            Self::Chat => "chat",
            Self::Responses => "responses",
            Self::Generate => "generate",
            Self::Bedrock => "bedrock",
            Self::Invoke => "invoke",
            Self::Converse => "converse",
        }
    }
}

/// A client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    ClaudeCode,
    /// Told to ask Bedrock.
    ClaudeCodeBedrock,
    /// With an API key, over WebSocket.
    Codex,
    /// With an API key and a provider of its configuration's, to which it sends POSTs.
    CodexPost,
    /// Logged in with ChatGPT, over WebSocket: another host.
    CodexLogin,
    /// Logged in with ChatGPT, with POSTs, whose bodies it compresses.
    CodexLoginPost,
    GeminiCli,
    Python(Api),
    Node(Api),
    Curl(Api),
}

/// For whom a client prints, where it makes a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    Person,
    Program,
    /// Who sits at a terminal, for agents that have an interface there.
    Terminal,
}

/// How a client comes to the meter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A base URL, and nothing else.
    Gateway,
    /// A proxy, and trust in the CA. No name is found by the client itself.
    Connect,
    /// Trust in the CA alone: the client finds its provider at a public address.
    Redirect,
}

impl Client {
    /// The provider that it asks.
    pub fn provider(self) -> &'static str {
        match self {
            Self::ClaudeCode => "claude",
            Self::ClaudeCodeBedrock => "bedrock",
            Self::Codex | Self::CodexPost | Self::CodexLogin | Self::CodexLoginPost => "codex",
            Self::GeminiCli => "gemini",
            Self::Python(api) | Self::Node(api) | Self::Curl(api) => match api {
                Api::Messages => "claude",
                Api::Chat | Api::Responses => "codex",
                Api::Generate => "gemini",
                Api::Bedrock | Api::Invoke | Api::Converse => "bedrock",
            },
        }
    }

    /// Each way that leads it to the meter, with streams and, where it can be asked for them, whole answers.
    pub fn rows(self) -> impl Iterator<Item = (Way, bool)> {
        self.ways().iter().flat_map(move |way| self.modes().iter().map(move |stream| (*way, *stream)))
    }

    /// Whether it can be asked for streams, and for whole answers.
    fn modes(self) -> &'static [bool] {
        match self {
            Self::Python(_) | Self::Node(_) | Self::Curl(_) => &[true, false],
            _ => &[true],
        }
    }

    /// The ways that lead it to the meter.
    pub fn ways(self) -> &'static [Way] {
        match self {
            // its gateway would be another than that of an API key, and no line for it is printed
            Self::CodexLogin | Self::CodexLoginPost => &[Way::Connect, Way::Redirect],
            // a key goes out by TLS alone, and what is signed is for the provider's own name
            Self::Python(Api::Invoke | Api::Converse) => &[Way::Connect, Way::Redirect],
            // no proxy of the environment's is used
            Self::Node(_) => &[Way::Gateway, Way::Redirect],
            _ => &[Way::Gateway, Way::Connect, Way::Redirect],
        }
    }

    /// The variables that suffice on a way, of those that `enforcer env` prints. Where two do for trust, each has a way.
    pub fn needs(self, way: Way) -> &'static [&'static str] {
        match (way, self) {
            (Way::Gateway, Self::Codex | Self::CodexPost) => &[],
            (Way::Gateway, _) => match self.provider() {
                "claude" => &["ANTHROPIC_BASE_URL"],
                "codex" => &["OPENAI_BASE_URL"],
                _ => &[],
            },
            (Way::Connect, Self::ClaudeCode | Self::ClaudeCodeBedrock | Self::GeminiCli | Self::Node(_)) => {
                &["HTTPS_PROXY", "NODE_EXTRA_CA_CERTS"]
            }
            (Way::Connect, Self::Python(Api::Invoke | Api::Converse)) => &["HTTPS_PROXY", "AWS_CA_BUNDLE"],
            (Way::Redirect, Self::Python(Api::Invoke | Api::Converse)) => &["REQUESTS_CA_BUNDLE"],
            (Way::Connect, Self::Python(_)) => &["HTTPS_PROXY", "SSL_CERT_FILE"],
            (Way::Connect, Self::Curl(_)) => &["HTTPS_PROXY", "CURL_CA_BUNDLE"],
            (Way::Connect, _) => &["HTTPS_PROXY", "CODEX_CA_CERTIFICATE"],
            (Way::Redirect, Self::GeminiCli | Self::Node(_)) => &["NODE_EXTRA_CA_CERTS"],
            (Way::Redirect, _) => &["SSL_CERT_FILE"],
        }
    }

    /// How often the gate says no to it that says no to everything: Codex opens its socket before it is asked anything,
    /// and again for the question; Claude Code looks at its first start for a model of Bedrock's that it may use, among
    /// 15 of them.
    pub fn refusals(self) -> u64 {
        match self {
            Self::ClaudeCodeBedrock => 16,
            _ if self.status() == 101 => 2,
            _ => 1,
        }
    }

    /// Answers of one token that it asks for at its first start, to see which models it may use.
    pub fn checks(self) -> usize {
        if self == Self::ClaudeCodeBedrock { 3 } else { 0 }
    }

    /// The name under which lines are printed for it that are not for every client.
    pub fn addressed_as(self) -> &'static str {
        match (self.provider(), self) {
            ("gemini", _) => "google-genai",
            (_, Self::ClaudeCodeBedrock | Self::Python(Api::Bedrock) | Self::Node(Api::Bedrock)) => {
                "AnthropicBedrock"
            }
            ("bedrock", _) => "@aws-sdk",
            _ => "codex",
        }
    }

    /// The status with which its provider agrees to answer: over WebSocket it is that of the handshake.
    pub fn status(self) -> u16 {
        if matches!(self, Self::Codex | Self::CodexLogin) { 101 } else { 200 }
    }

    /// What it says of itself when it speaks HTTP/2, which it does where it reaches the meter over TLS.
    pub fn says_http2(self, way: Way) -> Option<&'static str> {
        match self {
            // of a request with a body, which it has once alone
            Self::CodexPost | Self::CodexLoginPost if way != Way::Gateway => Some("send frame=Data"),
            Self::Curl(_) if way != Way::Gateway => Some("by HTTP/2"),
            _ => None,
        }
    }

    /// Asks it one question in a home of its own. Its environment is that of nobody, with keys.
    pub fn ask(self, home: &Path, way: Way, stream: bool, reader: Reader) -> Command {
        let words = self.words(stream, reader);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(home).env_clear().env("HOME", home).env("TERM", "dumb");
        // some leave reports there
        let temporary = home.join("tmp");
        fs::create_dir(&temporary).unwrap();
        command.env("TMPDIR", &temporary).env("CLAUDE_CODE_TMPDIR", &temporary);
        command.env("PATH", std::env::var_os("PATH").unwrap());
        match self {
            // what it asks its makers besides would be answered by nobody
            Self::ClaudeCode => command.env("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
            Self::ClaudeCodeBedrock => command
                .env("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1")
                .env("CLAUDE_CODE_USE_BEDROCK", "1"),
            // node looks for the SDKs where it runs
            Self::Node(_) => command.current_dir(installed::directory().join("node")),
            Self::CodexPost | Self::CodexLoginPost if reader == Reader::Program => {
                command.env("RUST_LOG", "h2::codec=debug")
            }
            _ => &mut command,
        };
        if reader == Reader::Terminal {
            home::know(self, home);
        }
        if matches!(self, Self::CodexLogin | Self::CodexLoginPost) {
            home::log_in(home);
            return command;
        }
        command.envs(keys::of(self, way));
        command
    }

    /// The words of its command line.
    fn words(self, stream: bool, reader: Reader) -> Vec<OsString> {
        let mode = if stream { "stream" } else { "whole" };
        let (program, arguments): (PathBuf, Vec<&str>) = match self {
            Self::ClaudeCode | Self::ClaudeCodeBedrock => {
                (installed::node_program("claude"), claude_words(reader))
            }
            Self::GeminiCli => {
                let format = if reader == Reader::Person { "text" } else { "json" };
                let words = vec!["-p", QUESTION, "-o", format, "-m", "gemini-2.5-flash", "--skip-trust"];
                (installed::node_program("gemini"), words)
            }
            Self::Codex | Self::CodexPost | Self::CodexLogin | Self::CodexLoginPost => {
                (installed::node_program("codex"), codex_words(reader))
            }
            Self::Python(api) => (installed::python(), vec!["-c", include_str!("ask.py"), api.word(), mode]),
            Self::Node(api) => {
                let program = include_str!("ask.mjs");
                ("node".into(), vec!["--input-type=module", "-e", program, "--", api.word(), mode])
            }
            Self::Curl(api) => ("sh".into(), vec!["-c", include_str!("ask.sh"), "sh", api.word(), mode]),
        };
        std::iter::once(program.into_os_string()).chain(arguments.into_iter().map(OsString::from)).collect()
    }

    /// The answer's text in what was printed for programs. Panics when there is none.
    pub fn answer(self, stdout: &str) -> String {
        match self {
            Self::ClaudeCode | Self::ClaudeCodeBedrock => {
                let result: Value = serde_json::from_str(stdout).unwrap_or_else(|_| panic!("{stdout}"));
                result["result"].as_str().unwrap_or_else(|| panic!("{stdout}")).to_owned()
            }
            Self::GeminiCli => {
                let result: Value = serde_json::from_str(stdout).unwrap_or_else(|_| panic!("{stdout}"));
                result["response"].as_str().unwrap_or_else(|| panic!("{stdout}")).to_owned()
            }
            Self::Codex | Self::CodexPost | Self::CodexLogin | Self::CodexLoginPost => {
                let events = stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
                let mut items = events.map(|event| event["item"].clone());
                let message = items.find(|item| item["type"] == "agent_message");
                message.unwrap_or_else(|| panic!("{stdout}"))["text"].as_str().unwrap().to_owned()
            }
            Self::Python(_) | Self::Node(_) | Self::Curl(_) => stdout.to_owned(),
        }
    }
}

fn claude_words(reader: Reader) -> Vec<&'static str> {
    match reader {
        Reader::Person => vec!["-p", QUESTION, "--output-format", "text"],
        Reader::Program => vec!["-p", QUESTION, "--output-format", "json"],
        Reader::Terminal => vec![QUESTION],
    }
}

fn codex_words(reader: Reader) -> Vec<&'static str> {
    let mode: &[&str] = match reader {
        Reader::Person => &["exec", "--skip-git-repo-check", "--color=never"],
        Reader::Program => &["exec", "--skip-git-repo-check", "--json"],
        Reader::Terminal => &["-c", "check_for_update_on_startup=false"],
    };
    [mode, &["-c", "analytics.enabled=false", QUESTION]].concat()
}

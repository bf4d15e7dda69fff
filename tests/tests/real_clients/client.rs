//! The table of clients: how each is asked one question, what it needs for each way to the meter, and where in its
//! output the answer is.
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde_json::{Value, json};

use crate::installed;

/// Whatever is asked.
const QUESTION: &str = "Say hello";
/// Keys that no provider takes.
const KEYS: [(&str, &str); 4] = [
    ("ANTHROPIC_API_KEY", "sk-ant-visibly-fake"),
    ("GEMINI_API_KEY", "visibly-fake"),
    ("OPENAI_API_KEY", "sk-visibly-fake"),
    ("CODEX_API_KEY", "sk-visibly-fake"),
];
/// A provider that is asked by POST, up to where it is.
const POSTS: &str = "model_provider = \"posts\"\n[model_providers.posts]\nname = \"Posts\"\n\
                     env_key = \"OPENAI_API_KEY\"\nwire_api = \"responses\"\n";
/// The same for a login, which is for providers of OpenAI's name alone that their bodies are compressed.
const LOGIN_POSTS: &str = "model_provider = \"posts\"\n[model_providers.posts]\nname = \"OpenAI\"\n\
                           requires_openai_auth = true\nwire_api = \"responses\"\n\
                           base_url = \"https://chatgpt.com/backend-api/codex\"\n";
/// Settings of gemini-cli by which it comes with a key, whatever else is in its environment.
const BY_KEY: &str = r#"{"security": {"auth": {"selectedType": "gemini-api-key"}}}"#;
/// The account of a login with ChatGPT that no server has given.
const ACCOUNT: &str = "account-visibly-fake";

/// What an SDK or curl is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    Messages,
    Chat,
    Responses,
    /// Gemini's `generateContent` and `streamGenerateContent`.
    Generate,
}

impl Api {
    pub const ALL: [Self; 4] = [Self::Messages, Self::Chat, Self::Responses, Self::Generate];

    fn word(self) -> &'static str {
        match self {
            Self::Messages => "anthropic",
            Self::Chat => "chat",
            Self::Responses => "responses",
            Self::Generate => "generate",
        }
    }
}

/// A client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    ClaudeCode,
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
            Self::Codex | Self::CodexPost | Self::CodexLogin | Self::CodexLoginPost => "codex",
            Self::GeminiCli => "gemini",
            Self::Python(api) | Self::Node(api) | Self::Curl(api) => match api {
                Api::Messages => "claude",
                Api::Chat | Api::Responses => "codex",
                Api::Generate => "gemini",
            },
        }
    }

    fn is_codex(self) -> bool {
        matches!(self, Self::Codex | Self::CodexPost | Self::CodexLogin | Self::CodexLoginPost)
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
            (Way::Connect, Self::ClaudeCode | Self::GeminiCli | Self::Node(_)) => {
                &["HTTPS_PROXY", "NODE_EXTRA_CA_CERTS"]
            }
            (Way::Connect, Self::Python(_)) => &["HTTPS_PROXY", "SSL_CERT_FILE"],
            (Way::Connect, Self::Curl(_)) => &["HTTPS_PROXY", "CURL_CA_BUNDLE"],
            (Way::Connect, _) => &["HTTPS_PROXY", "CODEX_CA_CERTIFICATE"],
            (Way::Redirect, Self::GeminiCli | Self::Node(_)) => &["NODE_EXTRA_CA_CERTS"],
            (Way::Redirect, _) => &["SSL_CERT_FILE"],
        }
    }

    /// The file of its configuration below its home and what is in it on this way, if it needs any: with the line that
    /// `printed` gives where that is the way.
    pub fn config(self, way: Way, printed: impl FnOnce() -> String) -> Option<(&'static str, String)> {
        let base_url = || match way {
            Way::Gateway => printed(),
            Way::Connect | Way::Redirect => "openai_base_url = \"https://api.openai.com/v1\"".to_owned(),
        };
        let config = match self {
            Self::Codex if way == Way::Gateway => base_url(),
            Self::CodexPost => POSTS.to_owned() + &base_url().replace("openai_base_url", "base_url"),
            Self::CodexLoginPost => LOGIN_POSTS.to_owned(),
            Self::GeminiCli if way == Way::Gateway => {
                return Some((".gemini/settings.json", BY_KEY.to_owned()));
            }
            _ => return None,
        };
        Some((".codex/config.toml", config))
    }

    /// How often the gate says no to it that says no to everything: Codex opens its socket before it is asked anything,
    /// and again for the question.
    pub fn refusals(self) -> u64 {
        if self.status() == 101 { 2 } else { 1 }
    }

    /// The name under which lines are printed for it that are not for every client.
    pub fn addressed_as(self) -> &'static str {
        if self.provider() == "gemini" { "google-genai" } else { "codex" }
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
    pub fn ask(self, home: &Path, stream: bool, reader: Reader) -> Command {
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
            // node looks for the SDKs where it runs
            Self::Node(_) => command.current_dir(installed::directory().join("node")),
            Self::CodexPost | Self::CodexLoginPost if reader == Reader::Program => {
                command.env("RUST_LOG", "h2::codec=debug")
            }
            _ => &mut command,
        };
        if reader == Reader::Terminal {
            known_to(self, home);
        }
        if matches!(self, Self::CodexLogin | Self::CodexLoginPost) {
            log_in(home);
            return command;
        }
        command.envs(KEYS);
        command
    }

    /// The words of its command line.
    fn words(self, stream: bool, reader: Reader) -> Vec<OsString> {
        let mode = if stream { "stream" } else { "whole" };
        let (program, arguments): (PathBuf, Vec<&str>) = match self {
            Self::ClaudeCode => {
                let words = match reader {
                    Reader::Person => vec!["-p", QUESTION, "--output-format", "text"],
                    Reader::Program => vec!["-p", QUESTION, "--output-format", "json"],
                    Reader::Terminal => vec![QUESTION],
                };
                (installed::node_program("claude"), words)
            }
            Self::GeminiCli => {
                let format = if reader == Reader::Person { "text" } else { "json" };
                let words = vec!["-p", QUESTION, "-o", format, "-m", "gemini-2.5-flash", "--skip-trust"];
                (installed::node_program("gemini"), words)
            }
            _ if self.is_codex() && reader == Reader::Terminal => {
                let quiet = ["-c", "analytics.enabled=false", "-c", "check_for_update_on_startup=false"];
                (installed::node_program("codex"), [&quiet[..], &[QUESTION]].concat())
            }
            Self::Codex | Self::CodexPost | Self::CodexLogin | Self::CodexLoginPost => {
                let format = if reader == Reader::Person { "--color=never" } else { "--json" };
                let quiet = ["-c", "analytics.enabled=false"];
                let words = [&["exec", "--skip-git-repo-check", format], &quiet[..], &[QUESTION]].concat();
                (installed::node_program("codex"), words)
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
            Self::ClaudeCode => {
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

/// Leaves what an agent asks somebody at a terminal for at its first start: a theme, a key, trust in the directory.
fn known_to(agent: Client, home: &Path) {
    if agent == Client::ClaudeCode {
        let trusted = json!({"hasTrustDialogAccepted": true, "hasCompletedProjectOnboarding": true});
        let known = json!({
            "hasCompletedOnboarding": true, "theme": "dark",
            "customApiKeyResponses": {"approved": ["sk-ant-visibly-fake"], "rejected": []},
            "projects": {home.display().to_string(): trusted},
        });
        fs::write(home.join(".claude.json"), known.to_string()).unwrap();
    } else {
        let codex = home.join(".codex");
        fs::create_dir_all(&codex).unwrap();
        let login = json!({"OPENAI_API_KEY": "sk-visibly-fake"});
        fs::write(codex.join("auth.json"), login.to_string()).unwrap();
        let mut config = File::options().create(true).append(true).open(codex.join("config.toml")).unwrap();
        writeln!(config, "\n[projects.\"{}\"]\ntrust_level = \"trusted\"", home.display()).unwrap();
    }
}

/// Leaves a login with ChatGPT in a home, as Codex itself would.
fn log_in(home: &Path) {
    let claims = json!({
        "email": "nobody@example.com",
        "exp": 4_000_000_000_u64,
        "https://api.openai.com/auth": {"chatgpt_plan_type": "pro", "chatgpt_account_id": ACCOUNT},
    });
    let token = [json!({"alg": "none", "typ": "JWT"}), claims].map(|part| BASE64.encode(part.to_string()));
    let token = format!("{}.visiblyfake", token.join("."));
    let tokens =
        json!({"id_token": token, "access_token": token, "refresh_token": "fake", "account_id": ACCOUNT});
    let login = json!({"tokens": tokens, "last_refresh": jiff::Timestamp::now().to_string()});
    fs::create_dir_all(home.join(".codex")).unwrap();
    fs::write(home.join(".codex/auth.json"), login.to_string()).unwrap();
}

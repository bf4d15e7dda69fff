//! What a client finds in its home: configuration, a login, and what an agent asks somebody for at its first start.
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde_json::json;

use crate::client::{Client, Way};
use crate::keys;

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

/// The file of a client's configuration below its home and what is in it on this way, if it needs any: with the line
/// that `printed` gives where that is the way.
pub fn config(client: Client, way: Way, printed: impl FnOnce() -> String) -> Option<(&'static str, String)> {
    let base_url = || match way {
        Way::Gateway => printed(),
        Way::Connect | Way::Redirect => "openai_base_url = \"https://api.openai.com/v1\"".to_owned(),
    };
    let codex = |text| Some((".codex/config.toml", text));
    match client {
        Client::Codex if way == Way::Gateway => codex(base_url()),
        Client::CodexPost => codex(POSTS.to_owned() + &base_url().replace("openai_base_url", "base_url")),
        Client::CodexLoginPost => codex(LOGIN_POSTS.to_owned()),
        Client::GeminiCli if way == Way::Gateway => Some((".gemini/settings.json", BY_KEY.to_owned())),
        _ => None,
    }
}

/// Leaves what an agent asks somebody at a terminal for at its first start: a theme, a key, trust in the directory.
pub fn know(agent: Client, home: &Path) {
    if agent == Client::ClaudeCode {
        let trusted = json!({"hasTrustDialogAccepted": true, "hasCompletedProjectOnboarding": true});
        let known = json!({
            "hasCompletedOnboarding": true, "theme": "dark",
            "customApiKeyResponses": {"approved": [keys::ANTHROPIC], "rejected": []},
            "projects": {home.display().to_string(): trusted},
        });
        fs::write(home.join(".claude.json"), known.to_string()).unwrap();
    } else {
        let codex = home.join(".codex");
        fs::create_dir_all(&codex).unwrap();
        let login = json!({"OPENAI_API_KEY": keys::OPENAI});
        fs::write(codex.join("auth.json"), login.to_string()).unwrap();
        let mut config = File::options().create(true).append(true).open(codex.join("config.toml")).unwrap();
        writeln!(config, "\n[projects.\"{}\"]\ntrust_level = \"trusted\"", home.display()).unwrap();
    }
}

/// Leaves a login with ChatGPT in a home, as Codex itself would.
pub fn log_in(home: &Path) {
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

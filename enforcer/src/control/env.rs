//! What a client in a bottle needs to reach the meter and to trust its certificates, in its environment or in a file
//! of its own, and how shells quote it. Pure: reads no environment and no file.
use std::net::SocketAddr;
use std::path::Path;

use clap::ValueEnum;

use super::api::ConfigLine;

/// Hosts that are never reached through the meter. Upper and lower case: clients differ in which they read.
const NO_PROXY: &str = "localhost,127.0.0.1,::1";

/// The variables that send clients to the meter on `listen`, in a fixed order. `ca_cert` is the meter's
/// certificate alone, for the variable that adds to a program's own roots; `ca_bundle` holds it beside the
/// system's roots, for those that replace them.
#[must_use]
pub fn variables(listen: SocketAddr, ca_cert: &Path, ca_bundle: &Path) -> Vec<(String, String)> {
    let meter = format!("http://{listen}");
    let (cert, bundle) = (ca_cert.display().to_string(), ca_bundle.display().to_string());
    [
        // the gateway; Codex has a line of its configuration for that, and comes by the proxy without it
        ("ANTHROPIC_BASE_URL", format!("{meter}/claude")),
        ("OPENAI_BASE_URL", format!("{meter}/codex/v1")),
        ("HTTPS_PROXY", meter.clone()),
        ("https_proxy", meter),
        ("NO_PROXY", NO_PROXY.to_owned()),
        ("no_proxy", NO_PROXY.to_owned()),
        ("NODE_EXTRA_CA_CERTS", cert),
        ("SSL_CERT_FILE", bundle.clone()),
        ("CODEX_CA_CERTIFICATE", bundle.clone()),
        ("REQUESTS_CA_BUNDLE", bundle.clone()),
        ("CURL_CA_BUNDLE", bundle.clone()),
        // before what AWS's own configuration names; boto3 reads REQUESTS_CA_BUNDLE after that
        ("AWS_CA_BUNDLE", bundle),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

/// What clients read from a file of their own and from no variable, and variables that are not for everyone:
/// gemini-cli takes Gemini's for another kind of login, and ends at its start where its settings name none. Bedrock's
/// are for API keys: a signature is for the host that was asked, which at the gateway is not the provider's, and boto3
/// sends a key by TLS alone.
#[must_use]
pub fn config_lines(listen: SocketAddr) -> Vec<ConfigLine> {
    let line = |client: &str, when: &str, file: &str, line: String| ConfigLine {
        client: client.to_owned(),
        file: file.to_owned(),
        line,
        when: when.to_owned(),
    };
    vec![
        line(
            "codex",
            "ignores OPENAI_BASE_URL and comes by HTTPS_PROXY; with an API key it may come by the gateway",
            "~/.codex/config.toml",
            format!("openai_base_url = \"http://{listen}/codex/v1\""),
        ),
        line(
            "google-genai",
            "may come by the gateway; gemini-cli too, if security.auth.selectedType is set in its settings",
            "its environment",
            format!("GOOGLE_GEMINI_BASE_URL=http://{listen}/gemini"),
        ),
        line(
            "@aws-sdk",
            "ignores HTTPS_PROXY and comes by the redirect; with an API key of Bedrock's it may come by the gateway, \
             if the settings name an upstream of bedrock",
            "its environment",
            format!("AWS_ENDPOINT_URL_BEDROCK_RUNTIME=http://{listen}/bedrock"),
        ),
        line(
            "AnthropicBedrock",
            "(and Claude Code that asks Bedrock) comes by HTTPS_PROXY or the redirect; with an API key of Bedrock's it \
             may come by the gateway, if the settings name an upstream of bedrock",
            "its environment",
            format!("ANTHROPIC_BEDROCK_BASE_URL=http://{listen}/bedrock"),
        ),
    ]
}

/// Who will read the variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// `export NAME='value'`, for sh, bash and zsh.
    Sh,
    /// `set -gx NAME 'value'`.
    Fish,
    /// `NAME=value`, for `docker run --env-file`.
    Dotenv,
}

/// One line a variable. `None` when a value cannot be written for that reader: an env file has no quoting, so
/// a value of more than one line has no form there.
#[must_use]
pub fn render(variables: &[(String, String)], shell: Shell) -> Option<String> {
    variables.iter().map(|(name, value)| line(name, value, shell)).collect()
}

/// Lines of configuration as comments, which every shell and an env file skip: what for, and indented below it the
/// line itself.
#[must_use]
pub fn render_config(lines: &[ConfigLine]) -> String {
    lines
        .iter()
        .map(|ConfigLine { client, file, line, when }| {
            format!("# {client} {when}, with this in {file}:\n#   {line}\n")
        })
        .collect()
}

fn line(name: &str, value: &str, shell: Shell) -> Option<String> {
    match shell {
        // within single quotes sh knows no escape: leave them, write a quote, enter again
        Shell::Sh => Some(format!("export {name}='{}'\n", value.replace('\'', r"'\''"))),
        // fish knows \\ and \' within single quotes
        Shell::Fish => {
            let value = value.replace('\\', r"\\").replace('\'', r"\'");
            Some(format!("set -gx {name} '{value}'\n"))
        }
        Shell::Dotenv => (!value.contains(['\n', '\r'])).then(|| format!("{name}={value}\n")),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const AWKWARD: &str = "a b'c\"d\\e$HOME`id`\\' \\\\ é\tend";

    fn awkward() -> Vec<(String, String)> {
        vec![("ENFORCER_TEST".to_owned(), AWKWARD.to_owned())]
    }

    /// What the shell hands on when it has read `script`.
    fn value_in(shell: &str, script: &str) -> String {
        let script = format!("{script}printenv ENFORCER_TEST");
        let output = Command::new(shell).arg("-c").arg(script).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim_end_matches('\n').to_owned()
    }

    #[test]
    fn sh_reads_back_what_was_written() {
        assert_eq!(value_in("sh", &render(&awkward(), Shell::Sh).unwrap()), AWKWARD);
    }

    #[test]
    fn fish_is_quoted_by_its_own_rules() {
        let lines = render(&[("N".to_owned(), r"a'b\c".to_owned())], Shell::Fish).unwrap();
        assert_eq!(lines, "set -gx N 'a\\'b\\\\c'\n");
        if Command::new("fish").arg("--version").output().is_ok() {
            assert_eq!(value_in("fish", &render(&awkward(), Shell::Fish).unwrap()), AWKWARD);
        }
    }

    #[test]
    fn an_env_file_holds_values_as_they_are_and_one_line_each() {
        let one = render(&awkward(), Shell::Dotenv).unwrap();
        assert_eq!(one, format!("ENFORCER_TEST={AWKWARD}\n"));
        assert_eq!(render(&[("N".to_owned(), "a\nB=c".to_owned())], Shell::Dotenv), None);
    }

    #[test]
    fn clients_are_sent_to_an_address_they_can_reach() {
        let of = |listen: &str| variables(listen.parse().unwrap(), Path::new("/c"), Path::new("/b"));
        let find = |of: Vec<(String, String)>, name: &str| of.into_iter().find(|(n, _)| n == name).unwrap().1;
        assert_eq!(find(of("[::1]:1"), "OPENAI_BASE_URL"), "http://[::1]:1/codex/v1");
        assert_eq!(find(of("10.0.0.1:2"), "https_proxy"), "http://10.0.0.1:2");
        assert_eq!(find(of("10.0.0.1:2"), "NODE_EXTRA_CA_CERTS"), "/c");
        assert_eq!(find(of("10.0.0.1:2"), "SSL_CERT_FILE"), "/b");
        assert_eq!(find(of("10.0.0.1:2"), "AWS_CA_BUNDLE"), "/b");
    }

    #[test]
    fn no_client_that_signs_is_sent_to_the_gateway() {
        let printed = variables("[::1]:1".parse().unwrap(), Path::new("/c"), Path::new("/b"));
        for shell in [Shell::Sh, Shell::Fish, Shell::Dotenv] {
            let lines = render(&printed, shell).unwrap();
            assert!(lines.contains("AWS_CA_BUNDLE") && !lines.contains("/bedrock"), "{lines}");
        }
        let comments = render_config(&config_lines("[::1]:1".parse().unwrap()));
        for variable in ["AWS_ENDPOINT_URL_BEDROCK_RUNTIME", "ANTHROPIC_BEDROCK_BASE_URL"] {
            assert!(comments.contains(&format!("\n#   {variable}=http://[::1]:1/bedrock\n")), "{comments}");
        }
    }

    #[test]
    fn what_is_no_variable_is_a_comment() {
        let lines = render_config(&config_lines("[::1]:1".parse().unwrap()));
        assert!(lines.lines().all(|line| line.starts_with("# ")), "{lines}");
        assert!(lines.contains("\n#   openai_base_url = \"http://[::1]:1/codex/v1\"\n"), "{lines}");
        assert!(lines.contains("\n#   GOOGLE_GEMINI_BASE_URL=http://[::1]:1/gemini\n"), "{lines}");
        assert_eq!(value_in("sh", &format!("{lines}export ENFORCER_TEST=set\n")), "set");
    }
}

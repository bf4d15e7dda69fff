//! `cargo xtask test --real-clients`: installs the clients that people use from their registries into `target/clients`,
//! and runs the tests that run them.
//!
//! Nothing is installed globally but, as root on Debian and Ubuntu, what runs them (Node, Python, curl). A client that
//! cannot be installed is named and fails the run; what the others do is tested all the same.
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::setup::{self, Tool, announce};
use crate::test;

/// What the clients are installed and run with, a shell for what `enforcer env` prints, and a terminal; curl is a
/// client itself.
const TOOLS: [Tool; 6] = [
    ("node", "nodejs"),
    ("npm", "npm"),
    ("python3", "python3-venv"),
    ("curl", "curl"),
    ("fish", "fish"),
    ("script", "bsdutils"),
];
/// Of npm's registry, by exact version: a plain install takes what suits the Node at hand, which may be years old.
const NODE_PACKAGES: [(&str, &str); 8] = [
    ("@anthropic-ai/claude-code", "2.1.330"),
    ("@openai/codex", "0.169.0"),
    ("@anthropic-ai/sdk", "1.12.0"),
    ("openai", "7.57.0"),
    ("@google/gemini-cli", "0.61.0"),
    ("@google/genai", "3.1.0"),
    ("@anthropic-ai/bedrock-sdk", "1.1.3"),
    ("@aws-sdk/client-bedrock-runtime", "3.1164.0"),
];
/// Of PyPI.
const PYTHON_PACKAGES: [(&str, &str); 4] =
    [("anthropic", "2.12.0"), ("openai", "3.54.0"), ("google-genai", "3.4.0"), ("boto3", "1.44.5")];
/// The tests end within this time after the build, or are killed.
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// Installs what is missing and says what it does, then runs the tests of real clients whose name contains `filter`.
///
/// # Errors
/// When this is not root, or when a client cannot be installed or a test fails.
pub fn run(filter: Option<&str>) -> Result<()> {
    ensure!(setup::is_root()?, "real clients are run in bottles, which takes root");
    setup::need(&TOOLS)?;
    let directory = setup::workspace()?.join("target/clients");
    let missing =
        [install_node(&directory.join("node"))?, install_python(&directory.join("python"))?].concat();
    // the tests start these binaries
    test::cargo(&["build", "--workspace"])?;
    let mut tests = Command::new("cargo");
    tests.args([
        "test",
        "--package",
        "enforcer-tests",
        "--test",
        "real_clients",
        "--",
        "--ignored",
        "--nocapture",
    ]);
    tests.args(filter).env("ENFORCER_CLIENTS", &directory);
    let tested = test::tallied(tests, LIMIT, 0);
    missing.iter().for_each(|client| eprintln!("not tested, for it cannot be installed: {client}"));
    tested?;
    ensure!(missing.is_empty(), "{} clients cannot be installed", missing.len());
    Ok(())
}

/// Installs each package below `prefix`; those that cannot be.
fn install_node(prefix: &Path) -> Result<Vec<String>> {
    std::fs::create_dir_all(prefix).with_context(|| format!("cannot make {}", prefix.display()))?;
    let install = |package: &str| {
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-audit", "--no-fund", "--loglevel=error", "--prefix"])
            .arg(prefix)
            .arg(package);
        announce(&mut npm)
    };
    let mut missing = Vec::new();
    for (name, version) in NODE_PACKAGES {
        let here = || node_version(prefix, name);
        if here().as_deref() != Some(version)
            && install(&format!("{name}@{version}")).or_else(|_| install(name)).is_err()
        {
            missing.push(format!("{name} (npm)"));
        } else {
            println!("setup: {name} {}", here().unwrap_or_default());
        }
    }
    Ok(missing)
}

/// Version of a package that is installed below `prefix`.
fn node_version(prefix: &Path, name: &str) -> Option<String> {
    let manifest = std::fs::read(prefix.join("node_modules").join(name).join("package.json")).ok()?;
    let manifest: Value = serde_json::from_slice(&manifest).ok()?;
    manifest["version"].as_str().map(str::to_owned)
}

/// Makes an environment at `prefix` and installs each package there; those that cannot be.
fn install_python(prefix: &Path) -> Result<Vec<String>> {
    let pip = prefix.join("bin/pip");
    if !pip.is_file() {
        announce(Command::new("python3").args(["-m", "venv"]).arg(prefix))?;
    }
    let install = |package: &str| {
        announce(Command::new(&pip).args(["install", "--quiet", "--disable-pip-version-check", package]))
    };
    let missing = PYTHON_PACKAGES
        .into_iter()
        .filter(|(name, version)| install(&format!("{name}=={version}")).or_else(|_| install(name)).is_err());
    Ok(missing.map(|(name, _)| format!("{name} (PyPI)")).collect())
}

//! The test programs that run in the machine, and the binaries that they start, as cargo builds them.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// Whose test programs all stand on the kernel.
const KERNEL_PLANE: &str = "enforcer";
/// The built binaries end to end; of these programs, what fits an emulated machine's pace.
const END_TO_END: (&str, &str) = ("enforcer-tests", "redirect");

/// What there is to put into the machine.
#[derive(Debug)]
pub struct Programs {
    /// Binaries that tests start.
    pub helpers: Vec<PathBuf>,
    suites: Vec<Suite>,
}

/// A test program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suite {
    /// `PACKAGE/PROGRAM`.
    pub name: String,
    package: &'static str,
    /// The program.
    pub program: PathBuf,
    /// Where it runs: the package's directory, as with `cargo test`.
    pub directory: PathBuf,
}

impl Programs {
    /// The suites of these packages.
    pub fn suites_of(&self, packages: &[&str]) -> Vec<&Suite> {
        self.suites.iter().filter(|suite| packages.contains(&suite.package)).collect()
    }
}

/// Builds all of it in the workspace at `root`.
///
/// # Errors
/// When the build fails, or a suite is not there.
pub fn build(root: &Path) -> Result<Programs> {
    // the whole workspace: a part of it would be built once more, with its own features
    let built = artifacts(&["build", "--workspace"])?;
    let helpers = built.iter().filter_map(|artifact| executable(artifact, "bin")).collect();
    let mut wanted: Vec<_> =
        test_programs(&root.join(KERNEL_PLANE))?.into_iter().map(|program| (KERNEL_PLANE, program)).collect();
    wanted.push((END_TO_END.0, END_TO_END.1.to_owned()));
    let mut arguments = vec!["test", "--workspace", "--no-run"];
    arguments.extend(wanted.iter().flat_map(|(_, program)| ["--test", program]));
    let built = artifacts(&arguments)?;
    let suites = wanted.iter().map(|(package, program)| {
        let found = built.iter().find_map(|artifact| suite(artifact, package, program));
        found.with_context(|| format!("{package} has no test program `{program}`"))
    });
    Ok(Programs { helpers, suites: suites.collect::<Result<_>>()? })
}

/// Names of a package's test programs, as cargo finds them: a file, or a directory with a `main.rs`.
fn test_programs(package: &Path) -> Result<Vec<String>> {
    let directory = package.join("tests");
    let unreadable = || format!("cannot read {}", directory.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(&directory).with_context(unreadable)? {
        let path = entry.with_context(unreadable)?.path();
        let is_program = path.extension().is_some_and(|kind| kind == "rs") || path.join("main.rs").is_file();
        names.extend(path.file_stem().filter(|_| is_program).map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort_unstable();
    Ok(names)
}

/// What cargo says that it has made, one JSON object each.
fn artifacts(arguments: &[&str]) -> Result<Vec<Value>> {
    let mut cargo = Command::new("cargo");
    cargo.args(arguments).args(["--quiet", "--message-format=json-render-diagnostics"]);
    let output = cargo.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    ensure!(output.status.success(), "`cargo {}` failed ({})", arguments.join(" "), output.status);
    let lines = output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).context("cannot read cargo's messages")).collect()
}

/// The path of an artifact that is a program of this kind.
fn executable(artifact: &Value, kind: &str) -> Option<PathBuf> {
    let is_kind = artifact["target"]["kind"].as_array()?.iter().any(|of| of == kind);
    artifact["executable"].as_str().filter(|_| is_kind).map(PathBuf::from)
}

fn suite(artifact: &Value, package: &'static str, program: &str) -> Option<Suite> {
    let path = executable(artifact, "test").filter(|_| artifact["target"]["name"] == program)?;
    // `path+file:///DIRECTORY#0.1.0` or, where the directory has another name, `…#NAME@0.1.0`
    let id = artifact["package_id"].as_str()?;
    let directory = Path::new(artifact["manifest_path"].as_str()?).parent()?.to_path_buf();
    let named = id.contains(&format!("#{package}@")) || id.contains(&format!("/{package}#"));
    named.then(|| Suite { name: format!("{package}/{program}"), package, program: path, directory })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_test_programs_are_those_of_cargo() {
        let names = test_programs(&Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("enforcer")).unwrap();
        assert!(
            ["kernel", "redirect"].iter().all(|name| names.iter().any(|found| found == name)),
            "{names:?}"
        );
        assert!(!names.iter().any(|name| name == "support"), "{names:?}");
    }

    #[test]
    fn a_suite_is_known_by_package_and_name() {
        let artifact = |id: &str, kind: &str| {
            json!({
                "reason": "compiler-artifact", "package_id": id, "manifest_path": "/w/enforcer/Cargo.toml",
                "target": { "kind": [kind], "name": "kernel" }, "executable": "/w/target/debug/deps/kernel-1",
            })
        };
        let own = artifact("path+file:///w/enforcer#0.1.0", "test");
        let found = suite(&own, "enforcer", "kernel").unwrap();
        assert_eq!((found.name.as_str(), found.directory.to_str()), ("enforcer/kernel", Some("/w/enforcer")));
        assert_eq!(found.program.to_str(), Some("/w/target/debug/deps/kernel-1"));
        assert_eq!(suite(&own, "enforcer", "redirect"), None);
        assert_eq!(suite(&own, "enforcer-tests", "kernel"), None);
        assert!(
            suite(&artifact("path+file:///w/tests#enforcer-tests@0.1.0", "test"), "enforcer-tests", "kernel")
                .is_some()
        );
        assert_eq!(suite(&artifact("path+file:///w/enforcer#0.1.0", "bench"), "enforcer", "kernel"), None);
        assert_eq!(
            suite(&json!({ "reason": "build-finished", "success": true }), "enforcer", "kernel"),
            None
        );
    }
}

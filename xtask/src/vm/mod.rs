//! `cargo xtask test --kernel SERIES`: the kernel plane's root tests on another kernel, in an emulated machine.
//!
//! The same test programs as on this host, at the same paths, on Debian's kernel of that series; they are root
//! there, nobody needs to be here. What the guest does is in `init.sh`, what its words mean in `console`.
mod console;
mod initramfs;
mod machine;
mod package;
mod programs;

use anyhow::{Result, ensure};

use crate::tally::Tally;
use crate::{setup, test};

/// What this task calls beside the build's own.
const TOOLS: [setup::Tool; 3] =
    [("qemu-system-x86_64", "qemu-system-x86"), ("busybox", "busybox-static"), ("cpio", "cpio")];
/// What the tests call where busybox's own would not do; copied into the guest.
const GUEST_TOOLS: [setup::Tool; 3] = [("bash", "bash"), ("setpriv", "util-linux"), ("ip", "iproute2")];

/// A start of the machine.
struct Boot {
    /// In reports and file names.
    name: &'static str,
    /// The kernel's arguments.
    arguments: &'static str,
    /// Packages whose suites run.
    packages: &'static [&'static str],
    /// Tests whose name contains this are left out.
    skip: Option<&'static str>,
}

/// Every suite on a kernel that has everything, then the kernel plane's own on one that gives as little as it may:
/// locked down, so that no program reads kernel memory, and without BPF among its security modules.
const BOOTS: [Boot; 2] = [
    Boot {
        name: "full",
        arguments: "lsm=lockdown,capability,yama,bpf",
        packages: &["enforcer", "enforcer-tests"],
        skip: None,
    },
    Boot {
        name: "restricted",
        arguments: "lsm=lockdown,capability,yama lockdown=confidentiality",
        packages: &["enforcer"],
        skip: Some("root_lsm_"),
    },
];

/// Builds the tests, boots the kernel and runs them there; their sum in one line is the last thing printed.
///
/// # Errors
/// When something is missing, the build or the machine fails, or a test does.
pub fn run(series: &str, filter: Option<&str>) -> Result<()> {
    ensure!(
        std::env::consts::ARCH == "x86_64",
        "the emulated machine runs x86-64 programs; this host has others"
    );
    setup::need(&[&TOOLS[..], &GUEST_TOOLS].concat())?;
    let workspace = setup::workspace()?;
    let work = workspace.join("target/vm");
    let kernel = package::fetch(series, &work)?;
    let mut programs = programs::build(&workspace)?;
    programs.helpers.extend(GUEST_TOOLS.iter().filter_map(|(tool, _)| setup::find(tool)));
    let mut tally = Tally::default();
    let mut complaints = Vec::new();
    for boot in &BOOTS {
        println!("vm: {} with {}", kernel.release, boot.arguments);
        let suites = programs.suites_of(boot.packages);
        let archive =
            initramfs::build(&work, &kernel, &programs.helpers, &suites, &words(filter, boot.skip))?;
        let console =
            machine::run(&kernel, &archive, boot.arguments, &work.join(format!("{}.log", boot.name)))?;
        tally += console.tally();
        let names = suites.iter().map(|suite| suite.name.as_str());
        complaints
            .extend(console.complaints(names).into_iter().map(|what| format!("boot {}: {what}", boot.name)));
    }
    complaints.iter().for_each(|complaint| println!("vm: {complaint}"));
    println!("{}", tally.summary(0));
    ensure!(
        complaints.is_empty(),
        "the tests on {} failed; its console is in {}",
        kernel.release,
        work.display()
    );
    ensure!(tally.passed > 0, "no test was run");
    Ok(())
}

/// Arguments of each test program. Several filters would add up, so the user's replaces the usual one.
fn words(filter: Option<&str>, skip: Option<&str>) -> Vec<String> {
    let mut words = vec![filter.unwrap_or(test::ROOT).to_owned(), "--test-threads=2".to_owned()];
    words.extend(skip.into_iter().flat_map(|skip| ["--skip".to_owned(), skip.to_owned()]));
    words
}

//! The programs of this build: those that are pinned, where this very build has loaded them, else loaded anew.
//!
//! A pinned program is trusted when it has the tag under which this build's was pinned: `<root>/build` tells a digest
//! over what this build would load and the kernel's tags of what it did load. Where anything is missing or differs,
//! all are loaded. Which cgroups they are attached to is `loader`'s business.
use std::os::fd::{AsFd as _, OwnedFd};

use aya::{Btf, EbpfLoader};
use ring::digest::{Context, SHA256};

use super::KernelError;
use super::families;
use super::hooks::{HOOKS, Hook, load_programs};
use super::log::{Log, Logged};
use super::pins::{Pins, remove_pin};
use super::refusal::{failed, refused};
use super::shapes::{HOMES, ORIGINALS, all_pinned};
use super::sys::{self, ProgramInfo};

/// Between the digest and why there is no optional hook, where the build is told.
const WITHOUT: &str = " without: ";
/// Most characters of that reason which are kept: bpffs has room for a path's length.
const REASON: usize = 500;

/// A loaded program.
pub struct Loaded {
    /// Its descriptor.
    pub fd: OwnedFd,
    /// The kernel's id of it.
    pub id: u32,
    /// The kernel's digest of its instructions.
    tag: [u32; 2],
}

impl Loaded {
    fn new(fd: OwnedFd) -> Result<Self, KernelError> {
        let info = sys::program_info(fd.as_fd());
        let ProgramInfo { id, tag, .. } = info
            .map_err(|source| KernelError::Io { what: "cannot read what a program is".to_owned(), source })?;
        Ok(Self { fd, id, tag })
    }

    /// The one that is pinned for a hook; `None` where none can be opened.
    fn pinned(pins: &Pins, hook: &Hook) -> Option<Self> {
        sys::open_pin(&pins.program(hook.program)).ok().and_then(|fd| Self::new(fd).ok())
    }
}

/// Every program that a bottle is given.
pub struct Programs {
    /// In the order of `HOOKS`.
    required: Vec<Loaded>,
    /// The optional hook's, or why there is none.
    families: Result<Loaded, String>,
    /// What they log.
    log: Log,
    /// Whether they were found pinned.
    found: bool,
}

impl Programs {
    /// Takes over what is pinned, or loads the programs. From here on every map is pinned.
    ///
    /// # Errors
    /// When the kernel refuses a program or a map.
    pub fn take(pins: &Pins, log: Log) -> Result<Self, KernelError> {
        if let Some(pinned) = Self::pinned(pins, log) {
            return Ok(pinned);
        }
        // until all is in its place again: a controller that dies meanwhile leaves what the next one loads anew
        pins.set_build(None)?;
        Self::load(pins, log)
    }

    /// The pinned programs, if this build has loaded them to log as much and nothing is missing.
    fn pinned(pins: &Pins, log: Log) -> Option<Self> {
        let build = pins.build()?;
        let (digest, families) = match build.split_once(WITHOUT) {
            Some((digest, why)) => (digest, Err(why.to_owned())),
            None => (&*build, Ok(Loaded::pinned(pins, &families::HOOK)?)),
        };
        let required = HOOKS.iter().map(|hook| Loaded::pinned(pins, hook)).collect::<Option<_>>()?;
        let programs = Self { required, families, log, found: true };
        let is_this_build = all_pinned(pins) && programs.digest() == digest;
        is_this_build.then_some(programs)
    }

    /// Loads the programs, and the maps that are not pinned yet.
    fn load(pins: &Pins, log: Log) -> Result<Self, KernelError> {
        // aya reads it too, and keeps it to itself; the optional hook needs it
        let btf = std::thread::spawn(|| Btf::from_sys_fs().ok());
        let mut ebpf = EbpfLoader::new()
            .default_map_pin_directory(pins.root())
            .map_pin_path(ORIGINALS, pins.root().join(ORIGINALS))
            .map_pin_path(HOMES, pins.root().join(HOMES))
            .load(log.object())
            .map_err(|error| refused("cannot load the kernel programs", &error))?;
        let required = load_programs(&mut ebpf)?.into_iter().map(Loaded::new).collect::<Result<_, _>>()?;
        let btf = btf.join().ok().flatten();
        let families = match families::load(&mut ebpf, btf.as_ref()) {
            Ok(program) => Ok(Loaded::new(program)?),
            Err(why) => Err(why.chars().take(REASON).collect()),
        };
        Ok(Self { required, families, log, found: false })
    }

    /// Pins them in place of earlier ones, if they are new. To be called when every link runs them: the next controller
    /// of this build takes them over as they are.
    ///
    /// # Errors
    /// When a pin cannot be removed or made.
    pub fn pin(&self, pins: &Pins) -> Result<(), KernelError> {
        if self.found {
            return Ok(());
        }
        for (hook, program) in self.each() {
            let path = pins.program(hook.program);
            remove_pin(&path)?;
            sys::pin(program.fd.as_fd(), &path).map_err(|source| failed("cannot pin", &path, source))?;
        }
        let digest = self.digest();
        let build =
            self.why_not_every_family().map_or(digest.clone(), |why| format!("{digest}{WITHOUT}{why}"));
        pins.set_build(Some(&build))
    }

    /// What a bottle is given: each hook and its program.
    pub fn each(&self) -> impl Iterator<Item = (&'static Hook, &Loaded)> {
        let optional = self.families.as_ref().ok().map(|program| (&families::HOOK, program));
        HOOKS.iter().zip(&self.required).chain(optional)
    }

    /// Why bottles are not given the optional hook.
    pub fn why_not_every_family(&self) -> Option<&str> {
        self.families.as_ref().err().map(String::as_str)
    }

    /// What they log; `None` where they log nothing.
    ///
    /// # Errors
    /// When the kernel does not give it out.
    pub fn logged(&self) -> Result<Option<Logged>, KernelError> {
        let program = self.required.first().filter(|_| self.log == Log::Drops);
        program.map(|program| Logged::of(program.id)).transpose()
    }

    /// A digest over what this build loads and where it attaches it, and over the tags of these programs.
    fn digest(&self) -> String {
        let mut digest = Context::new(&SHA256);
        digest.update(self.log.object());
        for (hook, program) in self.each() {
            digest.update(hook.pin.as_bytes());
            for word in [hook.attach_type, program.tag[0], program.tag[1]] {
                digest.update(&word.to_ne_bytes());
            }
        }
        digest.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

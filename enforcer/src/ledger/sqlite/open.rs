//! Opens the ledger's file: whose it is, whether it is whole, how it is kept, which schema it has.
use std::fs::{self, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::Uid;
use rusqlite::{Connection, OpenFlags};

use super::{database, shown};
use crate::ledger::LedgerError;

/// Oldest SQLite that is trusted: before it, a checkpoint racing a commit could damage a WAL database.
const MIN_SQLITE: i32 = 3_051_003;
/// How long a lock held by somebody else is waited for.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Statements kept prepared; more than `commit` and `queries` have.
const STATEMENTS: usize = 40;

/// The steps of the schema.
pub(super) mod schema {
    refinery::embed_migrations!("../migrations");
}

/// Opens for writing, makes the file when there is none, and migrates.
pub(super) fn writable(path: &Path) -> Result<Connection, LedgerError> {
    check_version(path)?;
    make_or_check(path)?;
    let mut connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    check_whole(&connection, path)?;
    keep_durably(&connection, path)?;
    migrate(&mut connection, path)?;
    check_files(path)?;
    Ok(connection)
}

/// Opens for queries alone.
pub(super) fn readable(path: &Path) -> Result<Connection, LedgerError> {
    check_files(path)?;
    connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
}

fn connect(path: &Path, access: OpenFlags) -> Result<Connection, LedgerError> {
    let flags = access | OpenFlags::SQLITE_OPEN_NOFOLLOW | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(|error| database(path, &error))?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(|error| database(path, &error))?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}

fn check_version(path: &Path) -> Result<(), LedgerError> {
    if rusqlite::version_number() < MIN_SQLITE {
        let what = format!("SQLite {} is too old, it may damage the file", rusqlite::version());
        return Err(unusable(path, what, "build with the bundled SQLite (3.51.3 or later)"));
    }
    Ok(())
}

/// Makes an empty file that only its owner can read, or checks the one that is there.
fn make_or_check(path: &Path) -> Result<(), LedgerError> {
    if fs::symlink_metadata(path).is_ok() {
        return check_files(path);
    }
    if let Some(stray) = companions(path).into_iter().find(|file| fs::symlink_metadata(file).is_ok()) {
        let what = format!("it is gone, but {} is still there", stray.display());
        return Err(unusable(path, what, "put the file back beside it, or move both away to start empty"));
    }
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    made.map(drop).map_err(|error| unusable(path, error.to_string(), "make its directory writable for root"))
}

/// The write-ahead log and its index, which SQLite keeps beside the file.
fn companions(path: &Path) -> [PathBuf; 2] {
    ["-wal", "-shm"].map(|suffix| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    })
}

/// Checks owner, kind and mode of the file and of those beside it.
fn check_files(path: &Path) -> Result<(), LedgerError> {
    for file in companions(path).iter().map(PathBuf::as_path).chain([path]) {
        match fs::symlink_metadata(file) {
            Ok(about) => check_file(file, &about)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound && file != path => {}
            Err(error) => return Err(unusable(file, error.to_string(), "make it readable for root")),
        }
    }
    Ok(())
}

fn check_file(file: &Path, about: &Metadata) -> Result<(), LedgerError> {
    if !about.is_file() {
        return Err(unusable(file, "it is a link or no file".to_owned(), "put the file itself there"));
    }
    if about.nlink() != 1 {
        return Err(unusable(file, "it has a second name (a hard link)".to_owned(), "remove the other name"));
    }
    let own = Uid::effective().as_raw();
    if about.uid() != own {
        let what = format!("it belongs to uid {}, not to uid {own}", about.uid());
        return Err(unusable(file, what, "find out who put it there; chown it if it is yours"));
    }
    let mode = about.mode() & 0o7777;
    if mode != 0o600 {
        return Err(unusable(file, format!("its mode is {mode:04o}, not 0600"), "chmod 600 it"));
    }
    Ok(())
}

/// Reads the whole file for damage, before anything is written to it.
fn check_whole(connection: &Connection, path: &Path) -> Result<(), LedgerError> {
    let found: String = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(|error| database(path, &error))?;
    if found != "ok" {
        let hint =
            "keep a copy, then restore it from a backup, or move it away to start with an empty ledger";
        return Err(unusable(path, format!("it is damaged: {}", found.replace('\n', " ")), hint));
    }
    Ok(())
}

/// A commit is on the disk when it returns, and readers never wait for it.
fn keep_durably(connection: &Connection, path: &Path) -> Result<(), LedgerError> {
    let mode: String = connection
        .query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))
        .map_err(|error| database(path, &error))?;
    if mode != "wal" {
        let what = format!("the file system allows no write-ahead log (journal mode {mode})");
        return Err(unusable(path, what, "keep the state directory on a local file system"));
    }
    connection
        .execute_batch("PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA recursive_triggers = ON;")
        .map_err(|error| database(path, &error))
}

/// Brings the schema up to date; each step and its record in the history table are one transaction.
fn migrate(connection: &mut Connection, path: &Path) -> Result<(), LedgerError> {
    let runner = schema::migrations::runner().set_grouped(true);
    match runner.run(connection) {
        Ok(_) => Ok(()),
        Err(error) => Err(match error.kind() {
            refinery::error::Kind::MissingVersion(newer) => {
                let what = format!("its schema has {newer}, which this version does not know");
                unusable(path, what, "use the version of enforcer that wrote it, or a later one")
            }
            refinery::error::Kind::DivergentVersion(found, ours) => {
                let what = format!("its schema step {found} is not this version's {ours}");
                unusable(path, what, "use the version of enforcer that wrote it")
            }
            _ => LedgerError::Database { path: shown(path), what: error.to_string() },
        }),
    }
}

fn unusable(path: &Path, what: String, hint: &str) -> LedgerError {
    LedgerError::Unusable { path: shown(path), what, hint: hint.to_owned() }
}

/// Makes the file as a version wrote it whose last schema step was this one.
#[cfg(test)]
pub(super) fn older(path: &Path, step: i32) -> Connection {
    make_or_check(path).unwrap();
    let mut connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap();
    let runner = schema::migrations::runner().set_target(refinery::Target::Version(step));
    runner.run(&mut connection).unwrap();
    connection
}

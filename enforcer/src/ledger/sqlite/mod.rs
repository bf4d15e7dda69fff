//! The ledger in one SQLite file. `open` makes sure of the file and its schema, `commit` writes entries, `load`
//! reads all that a new controller must know, `queries` answers `usage` and `audit` on a connection of its own.
mod commit;
mod load;
mod open;
mod queries;
mod rollup;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, Row, TransactionBehavior};

use super::{Entry, Ledger, LedgerError, Reader, Snapshot};

/// The name of the file in the state directory.
pub const FILE: &str = "bot-bottle.db";

/// The writing end: one connection, owned by the writer thread.
pub struct SqliteLedger {
    connection: Connection,
    path: PathBuf,
}

impl SqliteLedger {
    /// Opens the ledger at an absolute path without links in it, and brings its schema up to date. Makes the
    /// file when there is none; never replaces one.
    ///
    /// # Errors
    /// When the file is damaged, a link, somebody else's, of a newer schema, or SQLite itself is too old.
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        let connection = open::writable(path)?;
        Ok(Self { connection, path: path.to_owned() })
    }
}

impl Drop for SqliteLedger {
    /// Moves the log into the file, which is then whole by itself: for copies, and for the check at the next start.
    fn drop(&mut self) {
        let moved =
            self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0));
        // what stays in the log is as durable there
        match moved {
            Ok(0) => {}
            Ok(_) => tracing::debug!("a reader keeps the ledger's log from being moved into its file"),
            Err(error) => tracing::warn!(%error, "the ledger's log stays beside its file"),
        }
    }
}

impl Ledger for SqliteLedger {
    fn load(&mut self) -> Result<Snapshot, LedgerError> {
        // one transaction, so that every part of the snapshot is of the same moment
        let begun = self.connection.transaction();
        let snapshot = begun.and_then(|transaction| load::snapshot(&transaction));
        snapshot.map_err(|error| database(&self.path, &error))
    }

    fn commit(&mut self, entries: &[Entry]) -> Result<(), LedgerError> {
        let path = &self.path;
        let begun = self.connection.transaction_with_behavior(TransactionBehavior::Immediate);
        // dropped on an error, it rolls back
        let transaction = begun.map_err(|error| database(path, &error))?;
        for entry in entries {
            commit::entry(&transaction, entry)
                .map_err(|refusal| LedgerError::Database { path: shown(path), what: refusal.to_string() })?;
        }
        transaction.commit().map_err(|error| database(path, &error))
    }

    fn reader(&self) -> Result<Box<dyn Reader>, LedgerError> {
        let connection = open::readable(&self.path)?;
        Ok(Box::new(queries::SqliteReader::new(connection, self.path.clone())))
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// SQLite's refusal in the ledger's terms: damage is not a passing trouble.
fn database(path: &Path, error: &rusqlite::Error) -> LedgerError {
    let what = error.to_string();
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => LedgerError::Unusable {
            path: shown(path),
            what: format!("it is damaged: {what}"),
            hint: "keep a copy, then restore it from a backup, or move it away to start with an empty ledger"
                .to_owned(),
        },
        _ => LedgerError::Database { path: shown(path), what },
    }
}

/// A count that the schema keeps from being negative; NULL is 0.
fn count(row: &Row<'_>, column: &str) -> rusqlite::Result<u64> {
    let value: Option<i64> = row.get(column)?;
    let value = value.unwrap_or(0);
    u64::try_from(value).map_err(|_| unreadable(column, format!("{value} is negative")))
}

/// A JSON column.
fn json<T: serde::de::DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|error| unreadable(column, error.to_string()))
}

/// A JSON column that may be NULL.
fn optional_json<T: serde::de::DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<T>> {
    let text: Option<String> = row.get(column)?;
    text.map(|text| serde_json::from_str(&text).map_err(|error| unreadable(column, error.to_string())))
        .transpose()
}

/// A column that holds something else than this program writes into it.
fn unreadable(column: &str, what: String) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(
        0,
        rusqlite::types::Type::Null,
        format!("{column}: {what}").into(),
    )
}

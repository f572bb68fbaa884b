//! What can go wrong between us and the database.

use std::sync::Arc;
use std::time::Duration;

/// A failure of the database, sorted by what a caller can do about it.
///
/// It is cloned to every member of a group that failed together.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached or cannot write now; the same call may succeed later.
    #[error("the database is unavailable: {0}")]
    Unavailable(Arc<sqlx::Error>),
    /// The connection was lost while a write was committed, and the database could not be asked in
    /// time whether it was. It may have been written, or not.
    #[error("the database is unavailable; whether this was written is not known: {0}")]
    InDoubt(Arc<sqlx::Error>),
    /// The disk has hardly any room left, so that nothing new is written.
    #[error("there is no room on the disk: {0}")]
    NoRoom(String),
    /// What callers wait for is not answered.
    #[error("a write has not been answered for {} s; somebody else may hold a lock on its table", .0.as_secs())]
    Stalled(Duration),
    /// Somebody else keeps a table locked that calls need.
    #[error("what calls read and write has been locked by somebody else for {} s", .0.as_secs())]
    Locked(Duration),
    /// A transaction took longer than one may, and was rolled back.
    #[error("a write took longer than {0:?} and was cut off; nothing of it was written")]
    CutOff(Duration),
    /// What was to be written made our own code panic. Nothing of it was written.
    #[error("a write failed by a mistake of ours; nothing of it was written")]
    Panicked,
    /// A row of the same key exists.
    #[error("a row with the same key exists")]
    Duplicate,
    /// Another transaction was in the way; the same once more will do.
    #[error("another transaction was in the way")]
    Raced,
    /// What is to be changed is not what its maker had read.
    #[error("it was changed meanwhile")]
    Changed,
    /// The lease under which it was to be written is over; nothing of it was written.
    #[error("the lease under which this was to be written is over")]
    NotHeld,
    /// A text has a character that Postgres neither holds nor looks for.
    #[error("a text has a NUL (`\\u0000`), or another character that the database does not hold")]
    Unstorable,
    /// A row that no version of ours can have written.
    #[error("{table}.{column} of row {id} is not what it must be: {problem}")]
    Inconsistent {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
        /// The row's id.
        id: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A statement failed for a reason that trying again will not mend.
    #[error("a statement failed: {0}")]
    Statement(Arc<sqlx::Error>),
    /// The database cannot be used as it is; the text says what to do.
    #[error("{0}")]
    Unusable(String),
    /// The store is shutting down.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// Whether trying the same again later may help.
    pub fn is_unavailable(&self) -> bool {
        matches!(
            self,
            Self::Unavailable(_)
                | Self::InDoubt(_)
                | Self::NoRoom(_)
                | Self::CutOff(_)
                | Self::Stalled(_)
                | Self::Locked(_)
                | Self::Closed
        )
    }

    /// Whether what was to be written is at fault, and not the database: a plainer form of it may be
    /// taken. A code that nobody knows does not blame it: a server that refuses everything says many
    /// things.
    pub fn blames_value(&self) -> bool {
        // SQLite: TOOBIG, CONSTRAINT, MISMATCH, RANGE.
        const SQLITE: [u32; 4] = [18, 19, 20, 25];
        match self {
            Self::Duplicate | Self::Unstorable | Self::Inconsistent { .. } | Self::Panicked => true,
            Self::Statement(error) => match error.as_database_error() {
                // Postgres: a data exception, a broken rule, a limit of the program.
                Some(database) => database.code().is_some_and(|code| {
                    let is_sqlite = code
                        .parse()
                        .is_ok_and(|code: u32| SQLITE.contains(&(code & 0xff)));
                    match code.len() {
                        5 => ["22", "23", "54"].contains(&&code[..2]),
                        _ => is_sqlite,
                    }
                }),
                None => true,
            },
            _ => false,
        }
    }

    /// Whether it may have been written all the same.
    pub fn is_in_doubt(&self) -> bool {
        matches!(self, Self::InDoubt(_))
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        if let sqlx::Error::Database(database) = &error {
            if database.is_unique_violation() {
                return Self::Duplicate;
            }
            // Postgres: character_not_in_repertoire, untranslatable_character.
            if matches!(database.code().as_deref(), Some("22021" | "22P05")) {
                return Self::Unstorable;
            }
            // Postgres ended a deadlock, or could not order two transactions.
            if matches!(database.code().as_deref(), Some("40P01" | "40001")) {
                return Self::Raced;
            }
            if database.code().is_some_and(|code| says_unavailable(&code)) {
                return Self::Unavailable(Arc::new(error));
            }
            return Self::Statement(Arc::new(error));
        }
        match error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => Self::Unavailable(Arc::new(error)),
            _ => Self::Statement(Arc::new(error)),
        }
    }
}

/// That a server takes no writes now: a standby, say, to which a fail-over has led.
pub(super) fn read_only() -> StoreError {
    let error = std::io::Error::new(std::io::ErrorKind::ReadOnlyFilesystem, "it is read-only");
    StoreError::Unavailable(Arc::new(sqlx::Error::Io(error)))
}

/// Codes after which the same statement may succeed later. SQLite's are numbers whose low byte
/// is the primary code; Postgres's are five characters whose first two are the class.
fn says_unavailable(code: &str) -> bool {
    // SQLITE_PERM, BUSY, LOCKED, READONLY, IOERR, FULL, CANTOPEN, PROTOCOL
    const SQLITE: [u32; 8] = [3, 5, 6, 8, 10, 13, 14, 15];
    // Connection failures, a refused login, deadlock and serialisation failures, insufficient
    // resources (a full disk among them), operator intervention (a shutdown among them), I/O errors.
    const POSTGRES: [&str; 6] = ["08", "28", "40", "53", "57", "58"];
    // A read-only server, as after a fail-over; a transaction that was idle or took too long; a
    // statement that was prepared on another server; a lock that was not to be had.
    // A database that takes no connections, or a right that was taken away.
    const POSTGRES_CODES: [&str; 8] = [
        "25006", "25P03", "25P04", "26000", "3D000", "42501", "55000", "55P03",
    ];
    if code.len() == 5 && !code.starts_with(|c: char| c.is_ascii_digit() && c > '5') {
        return POSTGRES.contains(&&code[..2]) || POSTGRES_CODES.contains(&code);
    }
    code.parse::<u32>()
        .is_ok_and(|code| SQLITE.contains(&(code & 0xff)))
}

#[cfg(test)]
mod tests {
    use super::{StoreError, says_unavailable};

    #[test]
    fn a_full_disk_or_a_lost_server_is_unavailable_and_a_broken_rule_is_not() {
        for code in [
            "13", "5", "10", "778", "57P01", "53100", "08006", "40P01", "25006", "28000", "42501",
            "55000",
        ] {
            assert!(says_unavailable(code), "{code}");
        }
        for code in ["19", "1", "2067", "23505", "42601", "22P02"] {
            assert!(!says_unavailable(code), "{code}");
        }
    }

    #[test]
    fn only_a_value_is_told_in_a_plainer_form() {
        assert!(StoreError::Duplicate.blames_value() && StoreError::Panicked.blames_value());
        assert!(!StoreError::Raced.blames_value() && !StoreError::Closed.blames_value());
    }
}

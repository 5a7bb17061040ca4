//! Asking SQLite whether a database file is sound.
//!
//! A schema may name things that only its application has: collations, functions in indexes and checks,
//! tokenizers of full-text indexes, another engine's kinds of index. SQLite's check then ends with an error
//! before it has looked at everything, or counts an index as damaged that it cannot understand. That says
//! nothing about the file. So each table is checked by itself then: what can be checked must be sound, and
//! the rest is named. Its rows are read to their end, where SQLite can do that.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, ffi};

use super::codes;
use crate::error::{Error, Result};
use crate::types::IntegrityCheck;

const FAILED: &str = "integrity check failed";

/// Something that could not be checked without the application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unchecked {
    /// Table or index.
    pub name: String,
    /// SQLite's words.
    pub why: String,
    /// All rows of the table could be read.
    pub read: bool,
}

/// Runs the check on a file nobody else uses. The content is untrusted: no triggers, views or
/// functions of its schema run. Returns what needs the application to be checked.
///
/// # Errors
/// `Corrupt` with SQLite's first finding (`integrity check failed: …`); errors of opening.
pub fn integrity_check(path: &Path, check: IntegrityCheck) -> Result<Vec<Unchecked>> {
    let pragma = match check {
        IntegrityCheck::None => return Ok(Vec::new()),
        IntegrityCheck::Quick => "quick_check",
        IntegrityCheck::Full => "integrity_check",
    };
    let failed = |err| codes::error(FAILED, err);
    let open = || -> rusqlite::Result<Connection> {
        let conn =
            Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        conn.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        conn.execute_batch("PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON")?;
        Ok(conn)
    };
    let conn = open().map_err(failed)?;
    let checker = Checker { conn: &conn, pragma };
    match texts(&conn, &format!("PRAGMA {pragma}")) {
        Ok(found) if found == ["ok"] => Ok(Vec::new()),
        Ok(found) => {
            // Damage, unless it is only about indexes that cannot be understood here.
            let strange = checker.strange_indexes(None).map_err(failed)?;
            refuse(&found, &strange)?;
            Ok(strange)
        }
        Err(err) if needs_application(&err) => checker.each_table(),
        Err(err) => Err(failed(err)),
    }
}

struct Checker<'a> {
    conn: &'a Connection,
    pragma: &'static str,
}

impl Checker<'_> {
    /// Checks the tables one by one.
    fn each_table(&self) -> Result<Vec<Unchecked>> {
        let failed = |err| codes::error(FAILED, err);
        let tables = texts(self.conn, "SELECT name FROM sqlite_schema WHERE type = 'table'").map_err(failed)?;
        let mut unchecked = Vec::new();
        for table in tables {
            match texts(self.conn, &format!("PRAGMA {}({})", self.pragma, quoted(&table))) {
                Ok(found) if found == ["ok"] => {}
                Ok(found) => {
                    let strange = self.strange_indexes(Some(&table)).map_err(failed)?;
                    refuse(&found, &strange)?;
                    unchecked.extend(strange);
                }
                Err(err) if needs_application(&err) => {
                    let why = words(err);
                    let read = self.can_read(&table)?;
                    unchecked.push(Unchecked { name: table, why, read });
                }
                Err(err) => return Err(failed(err)),
            }
        }
        Ok(unchecked)
    }

    /// Indexes that SQLite could not fill without the application, of one table or all.
    fn strange_indexes(&self, table: Option<&str>) -> rusqlite::Result<Vec<Unchecked>> {
        let mut indexes = self.conn.prepare(
            "SELECT name FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL AND tbl_name = coalesce(?1, tbl_name)",
        )?;
        let names = indexes.query_map([table], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()?;
        let mut strange = Vec::new();
        for name in names {
            // Compiled, not run.
            match self.conn.prepare(&format!("EXPLAIN REINDEX {}", quoted(&name))) {
                Ok(_) => {}
                Err(err) if needs_application(&err) => {
                    strange.push(Unchecked { name, why: words(err), read: false });
                }
                Err(err) => return Err(err),
            }
        }
        Ok(strange)
    }

    /// Reads all rows of a table, past its indexes. `false` if even that needs the application.
    fn can_read(&self, table: &str) -> Result<bool> {
        let read = || -> rusqlite::Result<()> {
            let mut all = self.conn.prepare(&format!("SELECT * FROM {} NOT INDEXED", quoted(table)))?;
            let columns = all.column_count();
            let mut rows = all.query([])?;
            while let Some(row) = rows.next()? {
                // A long value lies on pages of its own, which are read only if it is asked for.
                (0..columns).try_for_each(|column| row.get_ref(column).map(drop))?;
            }
            Ok(())
        };
        match read() {
            Ok(()) => Ok(true),
            Err(err) if needs_application(&err) => Ok(false),
            Err(err) => Err(codes::error(FAILED, err)),
        }
    }
}

/// Fails with the first finding that is not about one of these indexes. SQLite tells the index in words only,
/// always at the end.
fn refuse(found: &[String], strange: &[Unchecked]) -> Result<()> {
    let excused = |text: &str| strange.iter().any(|index| text.ends_with(&format!(" index {}", index.name)));
    match found.iter().flat_map(|text| text.lines()).find(|text| !excused(text)) {
        None => Ok(()),
        Some(text) => Err(Error::corrupt(format!("{FAILED}: {text}"))),
    }
}

/// Whether a statement failed for want of something that the schema names: SQLite has a code of its own for
/// collations only, but statements of ours are in order, so nothing else is left.
fn needs_application(err: &rusqlite::Error) -> bool {
    match err {
        rusqlite::Error::SqliteFailure(failure, _) => failure.extended_code & 0xff == ffi::SQLITE_ERROR,
        rusqlite::Error::SqlInputError { error, .. } => error.extended_code & 0xff == ffi::SQLITE_ERROR,
        _ => false,
    }
}

/// SQLite's words, without the statement of ours that it speaks of.
fn words(err: rusqlite::Error) -> String {
    match err {
        rusqlite::Error::SqlInputError { error, msg, .. } => format!("{msg} ({})", error.extended_code),
        other => codes::error("", other).to_string(),
    }
}

/// First column of all rows.
fn texts(conn: &Connection, sql: &str) -> rusqlite::Result<Vec<String>> {
    conn.prepare(sql)?.query_map([], |row| row.get(0))?.collect()
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    const ROWS: &str = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 500) \
        INSERT INTO t(x) SELECT n || hex(zeroblob(40)) FROM c;";

    struct Database {
        _dir: tempfile::TempDir,
        path: std::path::PathBuf,
    }

    impl Database {
        /// A database whose schema is then edited: `from` becomes `to`, as if the application's own had made it.
        fn new(sql: &str, from: &str, to: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("db");
            let conn = Connection::open(&path).unwrap();
            conn.execute_batch(sql).unwrap();
            conn.execute_batch("CREATE TABLE plain(a UNIQUE, b); INSERT INTO plain VALUES (1, 2), (3, 4)").unwrap();
            conn.execute_batch("PRAGMA writable_schema = ON").unwrap();
            let edited = conn.execute("UPDATE sqlite_schema SET sql = replace(sql, ?1, ?2)", [from, to]).unwrap();
            assert!(edited > 0);
            Self { _dir: dir, path }
        }

        fn check(&self, check: IntegrityCheck) -> Result<Vec<Unchecked>> {
            integrity_check(&self.path, check)
        }

        /// Writes into the b-tree of a table or index: the start of its last page.
        fn damage(&self, name: &str) {
            let conn = Connection::open(&self.path).unwrap();
            conn.execute_batch("PRAGMA writable_schema = ON").unwrap();
            let page: u64 = conn
                .query_row("SELECT max(pageno) FROM dbstat WHERE name = ?1", [name], |row| row.get::<_, i64>(0))
                .unwrap()
                .try_into()
                .unwrap();
            drop(conn);
            let file = std::fs::File::options().write(true).open(&self.path).unwrap();
            file.write_all_at(&[0xaa; 600], (page - 1) * 4096).unwrap();
        }
    }

    fn names(unchecked: &[Unchecked]) -> Vec<(&str, bool)> {
        unchecked.iter().map(|unchecked| (unchecked.name.as_str(), unchecked.read)).collect()
    }

    /// What is not checked, and whether its rows could be read.
    type Names = Vec<(&'static str, bool)>;

    /// Schemas that need their application, and what cannot be checked of them: quickly, and in full.
    fn strange() -> Vec<(&'static str, Database, Names, Names)> {
        let table = |columns: &str, index: &str| format!("CREATE TABLE t({columns}); {ROWS} {index}");
        vec![
            (
                "collation",
                Database::new(&table("x COLLATE NOCASE", "CREATE INDEX i ON t(x)"), "NOCASE", "unicase"),
                vec![("t", true)],
                vec![("t", true)],
            ),
            (
                "collation of a primary key",
                Database::new(
                    &format!("CREATE TABLE t(x COLLATE NOCASE PRIMARY KEY) WITHOUT ROWID; {ROWS}"),
                    "NOCASE",
                    "unicase",
                ),
                vec![("t", false)],
                vec![("t", false)],
            ),
            (
                "function",
                Database::new(&table("x", "CREATE INDEX i ON t(lower(x))"), "lower", "norm"),
                vec![],
                vec![("t", true)],
            ),
            (
                "function of a check",
                Database::new(&table("x CHECK (lower(x) <> '')", ""), "lower", "norm"),
                vec![("t", true)],
                vec![("t", true)],
            ),
            (
                "another engine's index",
                Database::new(
                    &table("x", "CREATE INDEX i ON t(lower(x)) WHERE x > '3'"),
                    "lower(x)) WHERE x > '3'",
                    "vector_idx(x))",
                ),
                vec![("i", false)],
                vec![("t", true)],
            ),
            (
                "tokenizer",
                Database::new(
                    &format!(
                        "CREATE TABLE t(x); {ROWS} CREATE VIRTUAL TABLE f USING fts5(x, tokenize = porter); \
                         INSERT INTO f VALUES ('running')"
                    ),
                    "porter",
                    "mine",
                ),
                vec![("f", true)],
                vec![("f", true)],
            ),
        ]
    }

    #[test]
    fn what_needs_its_application_is_named_and_no_damage() {
        for (what, database, quick, full) in strange() {
            for (check, want) in [(IntegrityCheck::Quick, quick), (IntegrityCheck::Full, full)] {
                let unchecked = database.check(check).unwrap_or_else(|err| panic!("{what}, {check:?}: {err}"));
                assert_eq!(names(&unchecked), want, "{what}, {check:?}: {unchecked:?}");
            }
        }
    }

    #[test]
    fn damage_beside_it_is_still_damage() {
        for (what, database, ..) in strange() {
            database.damage("plain");
            for check in [IntegrityCheck::Quick, IntegrityCheck::Full] {
                let err = database.check(check).expect_err(what);
                assert_eq!(err.kind(), crate::error::ErrorKind::Corrupt, "{what}, {check:?}");
                assert!(err.to_string().starts_with("integrity check failed: "), "{what}: {err}");
            }
        }
    }

    #[test]
    fn damage_in_its_rows_is_still_damage() {
        for (what, database, quick, full) in strange() {
            if what.starts_with("collation of") {
                // SQLite cannot open this one at all.
                continue;
            }
            database.damage("t");
            for check in [IntegrityCheck::Quick, IntegrityCheck::Full] {
                let err = database.check(check).expect_err(what);
                assert_eq!(err.kind(), crate::error::ErrorKind::Corrupt, "{what}, {check:?}, {quick:?} {full:?}");
            }
        }
    }

    #[test]
    fn a_sound_database_is_checked_whole() {
        let database = Database::new(&format!("CREATE TABLE t(x); {ROWS} CREATE INDEX i ON t(x)"), "CREATE", "CREATE");
        for check in [IntegrityCheck::None, IntegrityCheck::Quick, IntegrityCheck::Full] {
            assert_eq!(database.check(check).unwrap(), []);
        }
        database.damage("i");
        assert!(database.check(IntegrityCheck::Quick).is_err());
    }
}

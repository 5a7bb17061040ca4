//! What commands print: tables, JSON, errors (`spec: cli` §1, §4).

use std::cell::RefCell;
use std::io::{self, Write};

use serde::Serialize;

use super::Failure;
use crate::error::Error;

thread_local! {
    /// Where what this thread prints goes instead, while it is caught.
    static CAUGHT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs a command and returns what it printed on either stream instead of printing it.
pub(super) fn captured<T>(command: impl FnOnce() -> T) -> (T, String) {
    CAUGHT.set(Some(String::new()));
    let result = command();
    (result, CAUGHT.take().unwrap_or_default())
}

fn catch(text: &str) -> bool {
    CAUGHT.with_borrow_mut(|caught| caught.as_mut().map(|caught| caught.push_str(text)).is_some())
}

/// Writes results to standard output. A reader who has gone away ends the command quietly.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    if catch(text) {
        return Ok(());
    }
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(err) if err.kind() == io::ErrorKind::BrokenPipe => Err(Failure::Quiet),
        Err(err) => Err(Error::io("write", err).at("standard output").into()),
    }
}

/// Writes diagnostics to standard error; when that fails there is nobody to tell.
pub(super) fn print_err(text: &str) {
    if catch(text) {
        return;
    }
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// JSON as Go indents it, with `<`, `>`, `&` and the two line separators escaped.
pub(super) fn json<T: Serialize>(value: &T) -> Result<String, Failure> {
    let plain = serde_json::to_string_pretty(value)
        .map_err(|err| Error::new(crate::error::ErrorKind::Internal, "encode result").caused_by(err))?;
    let mut out = crate::server::api::escape(&plain);
    out.push('\n');
    Ok(out)
}

/// Left-aligned columns, two spaces apart.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(|h| (*h).to_owned()).collect()] }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub(super) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width_of = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width_of).collect();
        let mut out = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:<width$}", width = width + 2));
            }
            out.push_str(line.trim_end_matches(' '));
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_longest_cell_and_the_last_is_not_padded() {
        let mut table = Table::new(&["path", "replica"]);
        table.row(["/tmp/é.db".to_owned(), "file".to_owned()]);
        assert_eq!(table.render(), "path       replica\n/tmp/é.db  file\n");
        assert_eq!(Table::new(&["path", "replica"]).render(), "path  replica\n");
    }

    #[test]
    fn json_is_indented_and_escaped_as_go_does() {
        assert_eq!(json(&Vec::<String>::new()).ok().as_deref(), Some("[]\n"));
        let text = json(&vec!["a<b>&\u{2028}\"é"]).ok();
        assert_eq!(text.as_deref(), Some("[\n  \"a\\u003cb\\u003e\\u0026\\u2028\\\"é\"\n]\n"));
    }
}

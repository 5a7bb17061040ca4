//! `litestream reset`: forget the local state of one database (`spec: cli` §5.4).

use std::path::{Path, PathBuf};

use tracing::info;

use super::flags::{CONFIG, CommandSpec, Flag, Matches, NO_EXPAND_ENV};
use super::{App, Failure, output};
use crate::config::{clean, default_meta_path};
use crate::db;
use crate::error::{Error, Result};
use crate::sys::{FileKind, Fs};

pub(super) static SPEC: CommandSpec = CommandSpec {
    name: "reset",
    summary: "clears the local state of a database",
    about: "The reset command removes the local LTX files of a database. The next sync begins with a whole image.\n\
            The database and its replica are not touched. Stop the daemon, or the database, before.",
    synopsis: &["[arguments] <path>"],
    flags: &[CONFIG, NO_EXPAND_ENV, Flag::switch("dry-run", &["Shows what would be removed."])],
    examples: &[
        ("Clear the local state of a database.", "litestream reset /path/to/db"),
        ("See what that would remove.", "litestream reset -dry-run /path/to/db"),
    ],
};

pub(super) fn run(app: &mut App, matches: &Matches) -> std::result::Result<(), Failure> {
    let path = match matches.positionals.as_slice() {
        [] => return Err(Failure::with_try("database path required", "litestream reset /path/to/db")),
        [path] => clean(&app.env.working_dir().join(path)),
        _ => return Err(Failure::new("too many arguments")),
    };
    let meta = meta_path(app, matches, &path)?;
    let fs = app.world.fs.as_ref();
    if fs.stat_opt(&path)?.is_none() {
        return Err(Failure::new(format!("database does not exist: {}", path.display())));
    }
    let (shown, ltx) = (path.display(), meta.join("ltx"));
    if fs.stat_opt(&meta)?.is_none() {
        return output::print(&format!(
            "No local state to reset for {shown}\nMeta directory does not exist: {}\n",
            meta.display()
        ));
    }
    if matches.on("dry-run") {
        return dry_run(fs, &path, &ltx);
    }
    output::print(&format!("Resetting local Litestream state for: {shown}\nRemoving: {}\n", ltx.display()))?;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    info!(db = %name, meta_path = %meta.display(), ltx_dir = %ltx.display(), "resetting local litestream state");
    db::reset(&app.world, &meta).map_err(|err| err.context("reset failed"))?;
    info!(db = %name, "local state reset complete, next sync will create fresh snapshot");
    output::print("Reset complete. Next replication sync will create a fresh snapshot.\n")
}

/// From the configuration, but only if one is named.
fn meta_path(app: &App, matches: &Matches, path: &Path) -> std::result::Result<PathBuf, Failure> {
    if matches.text("config").is_empty() {
        return Ok(default_meta_path(path));
    }
    let config = app.load_config(matches).map_err(|failure| failure.prefixed("cannot read config: "))?;
    let Some(entry) = config.find(path) else { return Ok(default_meta_path(path)) };
    let settings = entry.build(app.surroundings()).map_err(|err| err.context("cannot create database from config"))?;
    Ok(settings.meta_path)
}

fn dry_run(fs: &dyn Fs, path: &Path, ltx: &Path) -> std::result::Result<(), Failure> {
    let mut files = Vec::new();
    if fs.stat_opt(ltx)?.is_some() {
        walk(fs, ltx, &mut files)?;
    }
    let mut text = format!(
        "Dry run: local Litestream state would be reset for: {}\nWould remove: {}\n",
        path.display(),
        ltx.display()
    );
    if files.is_empty() {
        text.push_str("No local LTX files would be removed.\n");
    } else {
        text.push_str("Files that would be removed:\n");
        files.iter().for_each(|file| text.push_str(&format!("  {}\n", file.display())));
        text.push_str("No files were removed.\n");
    }
    output::print(&text)
}

fn walk(fs: &dyn Fs, dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let mut entries = fs.list(dir).map_err(|err: Error| err.context("list local ltx files"))?;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    for entry in entries {
        let path = dir.join(&entry.name);
        match entry.kind {
            FileKind::Dir => walk(fs, &path, files)?,
            FileKind::File | FileKind::Other => files.push(path),
        }
    }
    Ok(())
}

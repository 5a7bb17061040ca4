//! `restore -all`: every database of the configuration or below a URL, some at a time, one summary.

use std::path::{Component, Path, PathBuf};

use futures::stream::{self, StreamExt};
use serde::Serialize;

use super::{sqlite_check, timestamp};
use crate::cli::flags::Matches;
use crate::cli::{App, Failure, block_on, output};
use crate::config::{self, DbSettings, ReplicaSettings};
use crate::error::{Error, ErrorKind, Result};
use crate::replica;
use crate::restore::{self, Overwrite, Request, Target};

/// Databases restored at once. Each fetches several files at once already.
const AT_ONCE: usize = 4;

#[derive(Serialize)]
struct Line {
    db_path: String,
    output: String,
    result: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    txid: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    timestamp: String,
    bytes: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    error: String,
}

/// A database to be restored.
struct Wanted {
    /// Its path, or where its replica is.
    name: String,
    replica: ReplicaSettings,
    output: PathBuf,
}

/// Restores below `-output-dir`: the databases of the configuration, each below its whole path, or all
/// replicas below a URL, each below where it is from there on. Names never collide.
pub(super) fn run(app: &App, matches: &Matches, url: &str) -> std::result::Result<(), Failure> {
    let dir = matches.text("output-dir");
    if dir.is_empty() {
        return Err(Failure::with_try(
            "-output-dir is required with -all",
            "litestream restore -all -config litestream.yml -output-dir /path/to/dir",
        ));
    }
    for flag in ["o", "txid"] {
        if !matches.text(flag).is_empty() {
            return Err(Failure::new(format!("cannot use -all with -{flag}")));
        }
    }
    for flag in ["f", "dry-run", "salvage"] {
        if matches.on(flag) {
            return Err(Failure::new(format!("cannot use -all with -{flag}")));
        }
    }
    let (integrity, _) = super::integrity(matches)?;
    let target = timestamp(matches)?.map_or(Target::Latest, Target::Before);
    let wanted = match url {
        "" => of_configuration(app, matches, Path::new(dir))?,
        url => block_on(of_url(app, url, Path::new(dir)))?,
    };
    let requests = wanted.iter().map(|wanted| {
        let request = Request {
            target,
            integrity,
            overwrite: if matches.on("force") { Overwrite::Replace } else { Overwrite::Refuse },
            parallelism: super::parallelism(matches),
            ..Request::new(&wanted.output)
        };
        one(app, wanted, request, matches.on("if-db-not-exists"), matches.on("if-replica-exists"))
    });
    let lines: Vec<Line> = block_on(async { Ok(stream::iter(requests).buffered(AT_ONCE).collect().await) })?;
    report(&lines, matches.on("json"))
}

fn of_configuration(app: &App, matches: &Matches, dir: &Path) -> std::result::Result<Vec<Wanted>, Failure> {
    let databases = app.load_config(matches)?.build_all(app.surroundings())?;
    if databases.is_empty() {
        return Err(Failure::new("no databases in the configuration"));
    }
    let wanted = databases.into_iter().map(|DbSettings { path, replica, .. }| Wanted {
        name: path.display().to_string(),
        replica,
        output: below(dir, &path),
    });
    Ok(wanted.collect())
}

async fn of_url(app: &App, url: &str, dir: &Path) -> std::result::Result<Vec<Wanted>, Failure> {
    let settings = config::replica_from_url(url, app.surroundings())?;
    let root = replica::build(&settings, &app.world)?;
    root.client().init().await?;
    let location = root.client().location();
    let mut wanted = Vec::new();
    for key in replica::find_replicas(root.client().as_ref()).await? {
        let place = match &key {
            None => Some(settings.clone()),
            Some(key) => settings.below(key.as_str()),
        };
        let Some(replica) = place else { continue };
        // A URL that names a replica itself: what its last part is called.
        let names = key.as_ref().map_or_else(
            || Path::new(location.as_str()).file_name().map(Path::new),
            |key| Some(Path::new(key.as_str())),
        );
        let names = names.unwrap_or(Path::new("db"));
        let name =
            key.as_ref().map_or_else(|| location.clone(), |key| format!("{}/{key}", location.trim_end_matches('/')));
        wanted.push(Wanted { name, replica, output: below(dir, names) });
    }
    if wanted.is_empty() {
        return Err(Failure::new(format!("no replicas found below {location}")));
    }
    Ok(wanted)
}

async fn one(app: &App, wanted: &Wanted, request: Request, if_missing: bool, if_backup: bool) -> Line {
    let mut line = Line {
        db_path: wanted.name.clone(),
        output: request.output.display().to_string(),
        result: "restored",
        txid: String::new(),
        timestamp: String::new(),
        bytes: 0,
        error: String::new(),
    };
    if if_missing && !restore::holds_no_database(app.world.fs.as_ref(), &request.output) {
        line.result = "exists";
        return line;
    }
    let restored = async {
        let replica = replica::build(&wanted.replica, &app.world)?;
        replica.client().init().await?;
        if if_backup {
            let planned = restore::plan_for(&replica, request.target, false).await;
            if planned.is_err_and(|err| err.kind() == ErrorKind::NotFound) {
                return Result::<_, Error>::Ok(None);
            }
        }
        restore::run(&app.world, &replica, &request, sqlite_check()).await.map(Some)
    };
    match restored.await {
        Ok(Some(report)) => {
            line.txid = report.txid.map_or_else(String::new, |txid| txid.to_string());
            line.timestamp = report.timestamp.to_string();
            line.bytes = report.bytes;
        }
        Ok(None) => line.result = "no backup",
        Err(err) => {
            line.result = "failed";
            line.error = err.to_string();
        }
    }
    line
}

fn report(lines: &[Line], json: bool) -> std::result::Result<(), Failure> {
    if json {
        output::print(&output::json(&lines)?)?;
    } else {
        let mut table = output::Table::new(&["database", "result", "txid", "timestamp", "bytes", "output"]);
        for line in lines {
            let cells =
                [&line.db_path, line.result, &line.txid, &line.timestamp, &line.bytes.to_string(), &line.output];
            table.row(cells.map(str::to_owned));
        }
        output::print(&table.render())?;
    }
    let failed: Vec<String> = lines
        .iter()
        .filter(|line| !line.error.is_empty())
        .map(|line| format!("\n  {}: {}", line.db_path, line.error))
        .collect();
    if failed.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!("{} of {} databases were not restored:{}", failed.len(), lines.len(), failed.concat())))
}

/// `path` below `dir`: what would lead out of it is left out.
fn below(dir: &Path, path: &Path) -> PathBuf {
    let names = path.components().filter(|part| matches!(part, Component::Normal(_)));
    names.fold(dir.to_owned(), |dir, name| dir.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_database_gets_a_place_below_the_directory() {
        let place = |path: &str| below(Path::new("out"), Path::new(path));
        assert_eq!(place("/var/lib/app/app.db"), Path::new("out/var/lib/app/app.db"));
        assert_eq!(place("../../etc/x.db"), Path::new("out/etc/x.db"));
    }
}

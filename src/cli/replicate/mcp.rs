//! The tools of the MCP server: commands of this program, run in this process, with what they print
//! caught.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::super::{App, Failure, dispatch, output};
use crate::config::{McpSettings, clean, is_replica_url};
use crate::server::{TOOLS, ToolOutcome, Toolbox};

/// What the tools work with.
#[derive(Debug)]
pub(super) struct Commands {
    app: App,
    /// The daemon's own configuration, as typed.
    config: String,
    allow_changes: bool,
    /// Where files may be made or cleared, and where other configurations may be read.
    paths: Vec<PathBuf>,
}

impl Commands {
    pub(super) fn new(app: &App, config: &str, settings: &McpSettings) -> Self {
        let around = app.surroundings();
        let config = if config.is_empty() { crate::config::default_path(&around) } else { config };
        Self {
            app: app.embedded(),
            config: config.to_owned(),
            allow_changes: settings.allow_changes,
            paths: settings.paths.clone(),
        }
    }

    /// Runs a command line. What it says on both streams, and whether it failed.
    fn run(&self, args: &[String]) -> ToolOutcome {
        let mut app = self.app.embedded();
        let (result, said) = output::captured(|| dispatch(&mut app, args));
        let code = match result {
            Ok(code) => code,
            Err(Failure::Quiet) => 1,
            Err(Failure::Partly { message, code }) => return failed(format!("{said}Error: {message}"), code),
            Err(Failure::Said { message, advice }) => {
                let advice = advice.map_or_else(String::new, |advice| format!("\n{advice}"));
                return failed(format!("{said}Error: {message}{advice}"), 1);
            }
        };
        if code == 0 { ToolOutcome { text: said, failed: false } } else { failed(said, code) }
    }

    /// `-config` and its value: what is asked for, else the daemon's own.
    fn config_flag(&self, arguments: &Arguments<'_>) -> Result<[String; 2], ToolOutcome> {
        let Some(asked) = arguments.text("config") else { return Ok(["-config".to_owned(), self.config.clone()]) };
        let path = self.absolute(asked);
        let ours = path == self.absolute(&self.config);
        let exists = !matches!(self.app.world.fs.stat_opt(&path), Ok(None));
        if exists && !ours && !self.allows(&path) {
            return Err(refused(format!("reading {} is not allowed; mcp.paths does not cover it", path.display())));
        }
        Ok(["-config".to_owned(), asked.to_owned()])
    }

    fn absolute(&self, path: &str) -> PathBuf {
        self.app.surroundings().expand(path).unwrap_or_else(|_| clean(Path::new(path)))
    }

    /// Whether a path lies in a place that the configuration opens to tools, links resolved.
    fn allows(&self, path: &Path) -> bool {
        let parent = path.parent().map(std::fs::canonicalize);
        let (Some(Ok(parent)), Some(name)) = (parent, path.file_name()) else { return false };
        let real = std::fs::canonicalize(path).unwrap_or_else(|_| parent.join(name));
        self.paths.iter().filter_map(|allowed| std::fs::canonicalize(allowed).ok()).any(|dir| real.starts_with(dir))
    }

    /// Whether this may be changed.
    fn check_change(&self, tool: &str, path: &Path) -> Result<(), ToolOutcome> {
        if !self.allow_changes {
            return Err(refused(format!("{tool} changes things, which mcp.allow-changes does not allow")));
        }
        if !self.allows(path) {
            return Err(refused(format!("changing {} is not allowed; mcp.paths does not cover it", path.display())));
        }
        Ok(())
    }

    fn report(&self, arguments: &Arguments<'_>) -> Result<ToolOutcome, ToolOutcome> {
        let config = self.config_flag(arguments)?;
        let with_config = |command: &str, last: Option<&str>| -> Vec<String> {
            let mut args = vec![command.to_owned()];
            args.extend(config.clone());
            args.extend(last.map(str::to_owned));
            args
        };
        let version = self.run(&["version".to_owned()]).text;
        let databases = self.run(&with_config("databases", None));
        if databases.failed {
            return Err(refused("Failed to get databases info: exit status 1"));
        }
        let mut text = format!(
            "=== Litestream Status Report ===\n\nVersion Information:\n{version}\n\nCurrent Config Path:\n{}\n\n\
             Databases:\n{}\n\nLTX Files:\n",
            config[1], databases.text
        );
        for path in self.database_paths(&config[1]) {
            let path = path.display().to_string();
            let files = self.run(&with_config("ltx", Some(&path)));
            if files.failed {
                text.push_str(&format!("Failed to get LTX files for {path}: exit status 1\n{}\n", files.text));
            } else {
                text.push_str(&format!("Database: {path}\n{}\n\n", files.text));
            }
        }
        Ok(ToolOutcome { text, failed: false })
    }

    fn database_paths(&self, config: &str) -> Vec<PathBuf> {
        let around = self.app.surroundings();
        let loaded = crate::config::load(config, crate::config::ExpandEnv::Yes, around);
        let paths = loaded.map(|config| config.dbs.iter().filter_map(|db| db.path().map(Path::to_owned)).collect());
        paths.unwrap_or_default()
    }

    fn perform(&self, tool: &str, arguments: &Arguments<'_>) -> Result<ToolOutcome, ToolOutcome> {
        let path = arguments.text("path").unwrap_or_default();
        let mut args: Vec<String> = Vec::new();
        match tool {
            "litestream_version" => args.push("version".to_owned()),
            "litestream_databases" => {
                args.push("databases".to_owned());
                args.extend(self.config_flag(arguments)?);
            }
            "litestream_status" => {
                args.push("status".to_owned());
                args.extend(self.config_flag(arguments)?);
                args.extend(arguments.text("path").map(str::to_owned));
            }
            "litestream_ltx" => {
                args.push("ltx".to_owned());
                if !path.contains("://") {
                    args.extend(self.config_flag(arguments)?);
                }
                args.push("--".to_owned());
                args.push(path.to_owned());
            }
            "litestream_reset" => {
                self.check_change(tool, &self.absolute(path))?;
                args.push("reset".to_owned());
                args.extend(self.config_flag(arguments)?);
                args.push("--".to_owned());
                args.push(path.to_owned());
            }
            "litestream_restore" => {
                let output = arguments.text("o").unwrap_or(path);
                self.check_change(tool, &self.absolute(output))?;
                args.push("restore".to_owned());
                if !is_replica_url(path) {
                    args.extend(self.config_flag(arguments)?);
                }
                for flag in ["o", "txid", "timestamp", "parallelism"] {
                    args.extend(arguments.text(flag).map(|value| format!("-{flag}={value}")));
                }
                for (argument, flag) in
                    [("if_db_not_exists", "-if-db-not-exists"), ("if_replica_exists", "-if-replica-exists")]
                {
                    args.extend(arguments.on(argument).then(|| flag.to_owned()));
                }
                args.push("--".to_owned());
                args.push(path.to_owned());
            }
            _ => return self.report(arguments),
        }
        Ok(self.run(&args))
    }
}

impl Toolbox for Commands {
    fn call(&self, tool: &str, arguments: &Map<String, Value>) -> ToolOutcome {
        debug_assert!(TOOLS.iter().any(|known| known.name == tool), "{tool}");
        self.perform(tool, &Arguments(arguments)).unwrap_or_else(|refused| refused)
    }
}

/// Arguments of a call; those of another type than expected count as absent.
struct Arguments<'a>(&'a Map<String, Value>);

impl Arguments<'_> {
    fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).and_then(Value::as_str).filter(|text| !text.is_empty())
    }

    fn on(&self, name: &str) -> bool {
        self.0.get(name).and_then(Value::as_bool).unwrap_or(false)
    }
}

/// What a command that ended with an exit code came to.
fn failed(said: impl AsRef<str>, code: u8) -> ToolOutcome {
    ToolOutcome { text: format!("{}: exit status {code}", said.as_ref().trim_end()), failed: true }
}

fn refused(why: impl Into<String>) -> ToolOutcome {
    ToolOutcome { text: why.into(), failed: true }
}

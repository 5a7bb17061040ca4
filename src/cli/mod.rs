//! The command line: the only code that prints results, parses flags or chooses exit codes.
//!
//! A command is a `CommandSpec` (what can be said to it) and a function (what
//! it does); `COMMANDS` lists them in the order of the help text.

mod check;
mod client;
mod databases;
mod flags;
mod generate;
mod info;
mod list;
mod ltx;
mod output;
mod process;
mod register;
mod replicate;
mod reset;
mod restore;
mod service;
mod shellwords;
mod source;
mod start;
mod status;
mod stop;
mod sync;
mod unregister;
mod usage;
mod version;

use std::ffi::OsString;
use std::time::Duration;

use crate::config::{self, Config, Environment, ExpandEnv, LogFormat, LoggingSettings, Surroundings};
use crate::error::Error;
use crate::sys::World;
use crate::telemetry::{self, LogSettings, LogStream, Shape};
use flags::{CommandSpec, Matches, Parsed};

type Run = fn(&mut App, &Matches) -> Result<(), Failure>;

/// Every command, in the order of the help text.
static COMMANDS: [(&CommandSpec, Run); 15] = [
    (&check::SPEC, check::run),
    (&databases::SPEC, databases::run),
    (&info::SPEC, info::run),
    (&list::SPEC, list::run),
    (&ltx::SPEC, ltx::run),
    (&register::SPEC, register::run),
    (&replicate::SPEC, replicate::run),
    (&reset::SPEC, reset::run),
    (&restore::SPEC, restore::run),
    (&start::SPEC, start::run),
    (&status::SPEC, status::run),
    (&stop::SPEC, stop::run),
    (&sync::SPEC, sync::run),
    (&unregister::SPEC, unregister::run),
    (&version::SPEC, version::run),
];

/// What every command works with.
#[derive(Debug)]
struct App {
    world: World,
    env: Environment,
    /// Runs inside a daemon, whose log is not to be changed.
    embedded: bool,
}

impl App {
    /// For commands that are run inside a daemon.
    fn embedded(&self) -> Self {
        Self { world: self.world.clone(), env: self.env.clone(), embedded: true }
    }

    fn surroundings(&self) -> Surroundings<'_> {
        Surroundings { env: &self.env, fs: self.world.fs.as_ref() }
    }

    /// Loads the configuration named by `-config` and logs from now on as it says.
    fn load_config(&self, matches: &Matches) -> Result<Config, Failure> {
        let expand = if matches.on("no-expand-env") { ExpandEnv::No } else { ExpandEnv::Yes };
        let config = config::load(matches.text("config"), expand, self.surroundings())?;
        self.log_as(&config.logging);
        Ok(config)
    }

    fn log_as(&self, logging: &LoggingSettings) {
        if !self.embedded {
            self.set_log(logging);
        }
    }

    /// Changes the log of the process.
    fn set_log(&self, logging: &LoggingSettings) {
        let settings = LogSettings {
            level: telemetry::parse_level(&logging.level),
            shape: match logging.format {
                LogFormat::Text => Shape::Text,
                LogFormat::Json => Shape::Json,
                LogFormat::Pretty => Shape::Pretty,
            },
            stream: if logging.stderr { LogStream::Stderr } else { LogStream::Stdout },
            source: logging.source,
        };
        telemetry::init(settings, self.world.clock.clone(), self.env.get("TZ"));
    }

    /// Logs as before any configuration is read: text, INFO unless `LOG_LEVEL` says otherwise.
    fn log_to(&self, stream: LogStream) {
        if self.embedded {
            return;
        }
        let level = telemetry::parse_level(self.env.get("LOG_LEVEL").unwrap_or_default());
        telemetry::init(
            LogSettings { level, stream, ..LogSettings::default() },
            self.world.clock.clone(),
            self.env.get("TZ"),
        );
    }
}

/// Runs the asynchronous part of a command.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    block_on_within(Duration::from_secs(3), work)
}

/// The same, with a limit for steps that are still at work when the command has ended: they may tidy up, but one that
/// hangs must not keep the program.
fn block_on_within<T>(limit: Duration, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // Threads for file work come and go with it: an idle daemon keeps none.
        .thread_keep_alive(Duration::from_millis(500))
        .build()
        .map_err(|err| Error::io("start runtime", err))?;
    let done = runtime.block_on(async {
        process::outlive_stray_signals()?;
        work.await
    });
    runtime.shutdown_timeout(limit);
    done
}

/// Why a command did not succeed.
#[derive(Debug)]
enum Failure {
    /// `Error: …`, and a line of advice in full.
    Said { message: String, advice: Option<String> },
    /// The same with an exit code of its own.
    Partly { message: String, code: u8 },
    /// Nobody is left to read what we print.
    Quiet,
}

impl Failure {
    fn new(message: impl Into<String>) -> Self {
        Self::Said { message: message.into(), advice: None }
    }

    /// The same, after a few words.
    fn prefixed(self, words: &str) -> Self {
        match self {
            Self::Said { message, advice } => Self::Said { message: format!("{words}{message}"), advice },
            Self::Partly { message, code } => Self::Partly { message: format!("{words}{message}"), code },
            Self::Quiet => Self::Quiet,
        }
    }

    /// The same with other advice.
    fn advise(self, advice: impl std::fmt::Display) -> Self {
        match self {
            Self::Said { message, .. } => Self::Said { message, advice: Some(format!("Hint: {advice}")) },
            other => other,
        }
    }

    /// An error that ends with a command to try.
    fn with_try(message: impl Into<String>, command: impl std::fmt::Display) -> Self {
        Self::Said { message: message.into(), advice: Some(format!("Try: {command}")) }
    }
}

impl From<Error> for Failure {
    fn from(err: Error) -> Self {
        Self::Said { message: err.to_string(), advice: err.hint_text().map(|hint| format!("Hint: {hint}")) }
    }
}

/// Runs the program: arguments (with the program's own name first) in, exit code out.
pub fn run(args: impl IntoIterator<Item = OsString>) -> u8 {
    let mut app = App { world: World::system(), env: Environment::capture(), embedded: false };
    app.log_to(LogStream::Stdout);
    let outcome = args
        .into_iter()
        .skip(1)
        .map(|arg| arg.into_string().map_err(|bad| Failure::new(format!("argument is not valid UTF-8: {bad:?}"))))
        .collect::<Result<Vec<String>, Failure>>()
        .and_then(|args| dispatch(&mut app, &args));
    match outcome {
        Ok(code) => code,
        Err(Failure::Quiet) => 1,
        Err(Failure::Partly { message, code }) => {
            output::print_err(&format!("Error: {message}\n"));
            code
        }
        Err(Failure::Said { message, advice }) => {
            let advice = advice.map_or_else(String::new, |advice| format!("{advice}\n"));
            output::print_err(&format!("Error: {message}\n{advice}"));
            1
        }
    }
}

/// The literal spellings that make a request for help a success (`spec: cli` §2).
fn asks_for_help(args: &[String]) -> bool {
    args.iter().any(|arg| matches!(arg.as_str(), "-h" | "-help" | "--help"))
}

fn dispatch(app: &mut App, args: &[String]) -> Result<u8, Failure> {
    let help_code = u8::from(!asks_for_help(args));
    let (word, rest) = match args {
        [word, rest @ ..] => (word.as_str(), rest),
        [] => ("", args),
    };
    if word == "help" || word.is_empty() || word.starts_with('-') {
        let specs: Vec<&CommandSpec> = COMMANDS.iter().map(|(spec, _)| *spec).collect();
        output::print(&usage::top(&specs))?;
        return Ok(if word == "help" { 0 } else { help_code });
    }
    let name = match word {
        "wal" => {
            output::print_err("Warning: 'wal' command is deprecated, please use 'ltx' instead\n");
            "ltx"
        }
        other => other,
    };
    let hidden: [(&CommandSpec, Run); 1] = [(&generate::SPEC, generate::run)];
    let Some((spec, run)) = COMMANDS.iter().chain(&hidden).find(|(spec, _)| spec.name == name) else {
        return Err(Failure::new(format!("litestream {word}: unknown command")));
    };
    let usage = || usage::command(spec, crate::config::default_path(&app.surroundings()));
    match flags::parse(spec, rest) {
        Parsed::Matched(matches) => run(app, &matches).map(|()| 0),
        Parsed::Help => output::print(&usage()).map(|()| help_code),
        Parsed::Wrong(message) => {
            // The reference says it twice, around the help text.
            output::print_err(&format!("{message}\n"));
            output::print(&usage())?;
            Err(Failure::new(message))
        }
    }
}

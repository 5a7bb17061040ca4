//! Signals and child processes of a daemon.

use std::ffi::OsString;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal as RawSignal, WaitOptions, getpid, kill_process, wait, waitpid};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::service;
use crate::config::Environment;
use crate::error::{Error, Result};
use crate::sys::{TaskGroup, restore_descriptor_limit};

/// A signal that asks the daemon to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caught {
    /// SIGINT
    Interrupt,
    /// SIGTERM
    Terminate,
}

impl Caught {
    /// The name that log lines use.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "interrupt",
            Self::Terminate => "terminated",
        }
    }

    fn raw(self) -> RawSignal {
        match self {
            Self::Interrupt => RawSignal::INT,
            Self::Terminate => RawSignal::TERM,
        }
    }
}

/// Signals that are meant for somebody else, and reach us because they are sent to our whole process group, end the
/// program no longer. They are caught and not ignored: what is ignored would stay so in the application of `-exec`. The
/// broken pipe is ignored from the start, and `std` sees to it for children.
///
/// Must be called inside the runtime.
pub(super) fn outlive_stray_signals() -> Result<()> {
    for kind in [SignalKind::user_defined1(), SignalKind::user_defined2(), SignalKind::alarm()] {
        // What catches them stays when this is dropped.
        drop(signal(kind).map_err(|err| Error::io("catch signals", err))?);
    }
    Ok(())
}

/// SIGINT and SIGTERM, from the moment this is made: they no longer end the process.
#[derive(Debug)]
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Must be called inside the runtime.
    pub(super) fn catch() -> Result<Self> {
        let catch = |kind| signal(kind).map_err(|err| Error::io("catch signals", err));
        Ok(Self { interrupt: catch(SignalKind::interrupt())?, terminate: catch(SignalKind::terminate())? })
    }

    /// The next one. May be dropped and called again.
    pub(super) async fn next(&mut self) -> Caught {
        tokio::select! {
            _ = self.interrupt.recv() => Caught::Interrupt,
            _ = self.terminate.recv() => Caught::Terminate,
        }
    }
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended(ExitStatus);

impl Ended {
    /// With status 0.
    pub(super) fn well(self) -> bool {
        self.0.success()
    }

    /// Made up, for tests.
    #[cfg(test)]
    pub(super) fn of(text: &str) -> Self {
        let number = text.strip_prefix("exit status ").and_then(|n| n.parse::<i32>().ok());
        Self(ExitStatus::from_raw(number.map_or(15, |n| n << 8)))
    }

    /// By a signal, whoever sent it.
    pub(super) fn by_signal(self) -> bool {
        self.0.signal().is_some()
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.0.code(), self.0.signal()) {
            (Some(code), _) => write!(f, "exit status {code}"),
            (None, signal) => {
                write!(f, "signal: {}", signal_name(signal.unwrap_or(0)))?;
                f.write_str(if self.0.core_dumped() { " (core dumped)" } else { "" })
            }
        }
    }
}

/// As the reference's language names them.
fn signal_name(number: i32) -> String {
    let name = match number {
        1 => "hangup",
        2 => "interrupt",
        3 => "quit",
        4 => "illegal instruction",
        5 => "trace/breakpoint trap",
        6 => "aborted",
        7 => "bus error",
        8 => "floating point exception",
        9 => "killed",
        10 => "user defined signal 1",
        11 => "segmentation fault",
        12 => "user defined signal 2",
        13 => "broken pipe",
        14 => "alarm clock",
        15 => "terminated",
        n => return format!("signal {n}"),
    };
    name.to_owned()
}

/// The application that runs beside the daemon (`-exec`).
#[derive(Debug)]
pub(super) struct Child {
    pid: Pid,
    ended: watch::Receiver<Option<Ended>>,
}

impl Child {
    /// Starts a program with its arguments. It gets no input, our output, and our environment with what
    /// we add to it; what the service manager tells us alone is kept from it.
    ///
    /// # Errors
    /// `cannot start exec command: …`
    pub(super) fn start(words: &[String], env: &Environment, reaper: &mut Reaper) -> Result<Self> {
        let start = || {
            let Some((name, args)) = words.split_first().filter(|(name, _)| !name.is_empty()) else {
                return Err(Error::invalid("exec: no command"));
            };
            let program = find(name, env)?;
            let mut command = Command::new(&program);
            command.arg0(name).args(args).stdin(Stdio::null());
            for variable in service::VARIABLES {
                command.env_remove(variable);
            }
            command.envs(env.additions().iter().map(|(name, value)| (name, value)));
            let restore = || {
                restore_descriptor_limit();
                Ok(())
            };
            // SAFETY: between fork and exec it reads a static and makes one system call; it neither allocates
            // nor takes a lock.
            unsafe { command.pre_exec(restore) };
            let child = command.spawn().map_err(|err| Error::io(format!("fork/exec {}", program.display()), err))?;
            // Never zero and always in range: it comes from the kernel.
            let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            pid.ok_or_else(|| Error::invalid("no process id"))
        };
        let pid = start().map_err(|err| err.context("cannot start exec command"))?;
        Ok(Self { pid, ended: reaper.watch(pid) })
    }

    /// Passes a signal on; one who is gone gets none.
    pub(super) fn signal(&self, caught: Caught) {
        if let Err(err) = kill_process(self.pid, caught.raw())
            && err != rustix::io::Errno::SRCH
        {
            warn!(error = %std::io::Error::from(err), "cannot signal exec process");
        }
    }

    /// Waits for its end. May be dropped and called again.
    pub(super) async fn ended(&mut self) -> Ended {
        match self.ended.wait_for(Option::is_some).await.ok().and_then(|ended| *ended) {
            Some(ended) => ended,
            // The reaper is gone, which happens only when nobody waits any more.
            None => std::future::pending().await,
        }
    }
}

/// A name without a slash is looked for in `PATH`.
///
/// # Errors
/// `exec: "<name>": executable file not found in $PATH`
pub(super) fn find(name: &str, env: &Environment) -> Result<PathBuf> {
    if name.contains('/') {
        return Ok(PathBuf::from(name));
    }
    let dirs = std::env::split_paths(&OsString::from(env.get("PATH").unwrap_or_default())).collect::<Vec<_>>();
    let found = dirs.iter().map(|dir| dir.join(name)).find(|path| is_executable(path));
    found.ok_or_else(|| {
        let quoted = super::flags::go_quote(name);
        Error::invalid(format!("exec: {quoted}: executable file not found in $PATH"))
    })
}

fn is_executable(path: &Path) -> bool {
    rustix::fs::stat(path).is_ok_and(|stat| {
        rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile
            && stat.st_mode & 0o111 != 0
    })
}

/// Collects children that have ended. As the first process of a container we also collect those whose
/// parents have gone: nobody else will, and each would stay in the process table.
#[derive(Debug)]
pub(super) struct Reaper {
    tasks: TaskGroup,
    child: Option<(Pid, watch::Sender<Option<Ended>>)>,
    adopts: bool,
}

impl Reaper {
    /// Collects orphans if we are process 1.
    pub(super) fn new() -> Self {
        Self { tasks: TaskGroup::default(), child: None, adopts: getpid().is_init() }
    }

    fn watch(&mut self, pid: Pid) -> watch::Receiver<Option<Ended>> {
        let (send, receive) = watch::channel(None);
        self.child = Some((pid, send));
        receive
    }

    /// Starts to collect. Must be called inside the runtime, after the child was started.
    pub(super) fn run(&mut self) -> Result<()> {
        let child = self.child.take();
        if child.is_none() && !self.adopts {
            return Ok(());
        }
        let mut hint = signal(SignalKind::child()).map_err(|err| Error::io("catch signals", err))?;
        let adopts = self.adopts;
        self.tasks.spawn("reaper", move |stop: CancellationToken| async move {
            loop {
                // First, for those who ended before the signal was caught.
                collect(child.as_ref(), adopts);
                tokio::select! {
                    () = stop.cancelled() => return,
                    _ = hint.recv() => {}
                }
            }
        });
        Ok(())
    }

    /// Ends collecting.
    pub(super) async fn stop(mut self) {
        self.tasks.stop().await;
    }
}

/// Takes everybody who has ended.
fn collect(child: Option<&(Pid, watch::Sender<Option<Ended>>)>, adopts: bool) {
    loop {
        let taken = match child {
            _ if adopts => wait(WaitOptions::NOHANG),
            Some((pid, ended)) if ended.borrow().is_none() => waitpid(Some(*pid), WaitOptions::NOHANG),
            _ => return,
        };
        // An error means that there is nobody to wait for.
        let Ok(Some((pid, status))) = taken else { return };
        if let Some((ours, ended)) = child
            && *ours == pid
        {
            ended.send_replace(Some(Ended(ExitStatus::from_raw(status.as_raw()))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(raw: i32) -> Ended {
        Ended(ExitStatus::from_raw(raw))
    }

    #[test]
    fn ends_are_told_in_the_words_of_the_reference() {
        for (raw, want) in [
            (0x0700, "exit status 7"),
            (9, "signal: killed"),
            (15, "signal: terminated"),
            (0x80 | 11, "signal: segmentation fault (core dumped)"),
            (40, "signal: signal 40"),
        ] {
            assert_eq!(ended(raw).to_string(), want);
        }
    }

    #[tokio::test]
    async fn a_child_is_waited_for_and_signalled() {
        let env = Environment::capture();
        let words: Vec<String> = ["sleep", "60"].map(str::to_owned).into();
        let mut reaper = Reaper::new();
        let mut child = Child::start(&words, &env, &mut reaper).unwrap();
        reaper.run().unwrap();
        child.signal(Caught::Terminate);
        let end = child.ended().await;
        assert!(end.by_signal() && !end.well(), "{end}");
        assert_eq!(child.ended().await, end, "it stays ended");
        child.signal(Caught::Terminate);
        reaper.stop().await;
    }

    #[test]
    fn programs_that_cannot_be_started_say_why() {
        let env = Environment::capture();
        for (words, want) in [
            (&[][..], "cannot start exec command: exec: no command"),
            (
                &["no-such-command-xyz"],
                "cannot start exec command: exec: \"no-such-command-xyz\": executable file not found in $PATH",
            ),
            (&["/no/such"], "cannot start exec command: fork/exec /no/such: no such file or directory"),
            (&["/etc/passwd"], "cannot start exec command: fork/exec /etc/passwd: permission denied"),
        ] {
            let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
            let err = Child::start(&words, &env, &mut Reaper::new()).unwrap_err();
            assert_eq!(err.to_string(), want);
        }
    }
}

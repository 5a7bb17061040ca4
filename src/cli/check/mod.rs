//! `litestream check`: everything that would stop or surprise a run, without running. Ours; the reference
//! has no such command.

mod host;

use serde::Serialize;

use super::flags::{CONFIG, CommandSpec, Flag, Matches, NO_EXPAND_ENV};
use super::{App, Failure, output};
use crate::config::{self, ExpandEnv, Finding, Severity};

pub(super) static SPEC: CommandSpec = CommandSpec {
    name: "check",
    summary: "examines the configuration file and what it names",
    about: "The check command reports everything in the configuration file that would stop or surprise a run:\n\
            settings that are unknown, have no effect or contradict each other, databases and directories that\n\
            cannot be used, replicas that would overwrite each other. Nothing is changed and no server is contacted.\n\n\
            The exit code is 1 if there is an error, 0 if there are only warnings or nothing.",
    synopsis: &["[arguments]"],
    flags: &[CONFIG, Flag::switch("json", &["Prints JSON instead of text."]), NO_EXPAND_ENV],
    examples: &[
        ("Examine the default configuration file.", "litestream check"),
        ("Refuse to deploy a faulty one.", "litestream check -config ./litestream.yml && ./deploy"),
    ],
};

#[derive(Serialize)]
struct Report {
    config: String,
    ok: bool,
    errors: usize,
    warnings: usize,
    findings: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    severity: &'static str,
    line: Option<u64>,
    setting: String,
    message: String,
    hint: Option<String>,
}

pub(super) fn run(app: &mut App, matches: &Matches) -> Result<(), Failure> {
    if !matches.positionals.is_empty() {
        return Err(Failure::new("too many arguments"));
    }
    let expand = if matches.on("no-expand-env") { ExpandEnv::No } else { ExpandEnv::Yes };
    let inspection = config::inspect(matches.text("config"), expand, app.surroundings())?;
    let mut findings = inspection.findings.clone();
    if let Some(config) = &inspection.config {
        findings.extend(host::examine(app, config).into_iter().map(|finding| inspection.located(finding)));
        findings.sort_by_key(|finding| finding.line);
    }
    let count = |severity| findings.iter().filter(|f| f.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let path = inspection.path.display().to_string();
    let text = if matches.on("json") {
        let findings = findings.into_iter().map(row).collect();
        output::json(&Report { config: path, ok: errors == 0, errors, warnings, findings })?
    } else {
        let lines: String = findings.iter().map(|finding| line(&path, finding)).collect();
        format!("{lines}{}\n", summary(errors, warnings))
    };
    output::print(&text)?;
    if errors == 0 { Ok(()) } else { Err(Failure::Quiet) }
}

fn row(finding: Finding) -> Row {
    let Finding { severity, line, setting, message, hint } = finding;
    Row { severity: severity.name(), line, setting, message, hint }
}

/// `path:line: severity: setting: message`, as compilers write it.
fn line(path: &str, finding: &Finding) -> String {
    let mut out = path.to_owned();
    if let Some(line) = finding.line {
        out.push_str(&format!(":{line}"));
    }
    out.push_str(&format!(": {}: ", finding.severity.name()));
    if !finding.setting.is_empty() {
        out.push_str(&format!("{}: ", finding.setting));
    }
    out.push_str(&format!("{}\n", finding.message));
    if let Some(hint) = &finding.hint {
        out.push_str(&format!("    Hint: {hint}\n"));
    }
    out
}

fn summary(errors: usize, warnings: usize) -> String {
    let counted = |n: usize, word: &str| format!("{n} {word}{}", if n == 1 { "" } else { "s" });
    match (errors, warnings) {
        (0, 0) => "no problems found".to_owned(),
        _ => format!("{}, {}", counted(errors, "error"), counted(warnings, "warning")),
    }
}

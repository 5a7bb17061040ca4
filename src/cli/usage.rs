//! All help text (`spec: cli` §10), made from the tables of the commands.

use super::flags::CommandSpec;

/// `litestream help`: the list of commands.
pub(super) fn top(commands: &[&CommandSpec]) -> String {
    let mut out = String::from(
        "litestream streams every commit of your SQLite databases to storage, and restores them from there.\n\n\
         Usage:\n\n\tlitestream <command> [arguments]\n\nThe commands are:\n\n",
    );
    for command in commands {
        out.push_str(&format!("\t{:<13}{}\n", command.name, command.summary));
    }
    out.push('\n');
    out
}

/// The help of one command. `config` is where the configuration is looked for.
pub(super) fn command(spec: &CommandSpec, config: &str) -> String {
    if spec.synopsis.iter().any(|form| form.starts_with("[OPTIONS]")) {
        return daemon_command(spec);
    }
    let mut out = format!("{}\n\nUsage:\n\n", spec.about);
    for form in spec.synopsis {
        out.push_str(&format!("\tlitestream {} {form}\n\n", spec.name));
    }
    out.push_str("Arguments:\n\n");
    for flag in spec.flags {
        let meta = if flag.meta.is_empty() { String::new() } else { format!(" {}", flag.meta) };
        out.push_str(&format!("\t-{}{meta}\n", flag.name));
        for line in flag.help {
            out.push_str(&format!("\t    {}\n", line.replace("{config}", config)));
        }
        out.push('\n');
    }
    if !spec.examples.is_empty() {
        out.push_str("Examples:\n\n");
        for (comment, line) in spec.examples {
            out.push_str(&format!("\t# {comment}\n\t$ {line}\n\n"));
        }
    }
    out
}

/// The help of a command that talks to a daemon, which is laid out in another way.
fn daemon_command(spec: &CommandSpec) -> String {
    let mut out = String::new();
    for form in spec.synopsis {
        out.push_str(&format!("usage: litestream {} {form}\n\n", spec.name));
    }
    out.push_str(&format!("{}\n\n", spec.about));
    if spec.synopsis.iter().any(|form| form.ends_with("DB_PATH")) {
        out.push_str("Arguments:\n\n  DB_PATH\n      Path of the database file, as the daemon sees it.\n\n");
    }
    out.push_str("Options:\n\n");
    for flag in spec.flags {
        let meta = if flag.meta.is_empty() { String::new() } else { format!(" {}", flag.meta) };
        out.push_str(&format!("  -{}{meta}\n", flag.name));
        for line in flag.help {
            out.push_str(&format!("      {line}\n"));
        }
        out.push('\n');
    }
    out.push_str("Examples:\n\n");
    for (comment, line) in spec.examples {
        out.push_str(&format!("  # {comment}\n  $ {line}\n\n"));
    }
    out
}

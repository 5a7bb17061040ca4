//! `litestream generate`: manual page and shell completions, made from the same tables as the help texts and
//! the parser. For those who build packages; not in the list of commands.

use super::flags::{CommandSpec, Flag, Kind, Matches};
use super::version::VERSION;
use super::{App, COMMANDS, Failure, output};
use crate::config::defaults;

pub(super) static SPEC: CommandSpec = CommandSpec {
    name: "generate",
    summary: "prints the manual page or shell completions",
    about: "The generate command prints the manual page, or completions for a shell, for packages to install.",
    synopsis: &["man", "bash", "zsh", "fish"],
    flags: &[],
    examples: &[
        ("Install the manual page.", "litestream generate man > /usr/share/man/man1/litestream.1"),
        ("Complete in bash.", "litestream generate bash > /usr/share/bash-completion/completions/litestream"),
    ],
};

pub(super) fn run(_app: &mut App, matches: &Matches) -> Result<(), Failure> {
    let commands: Vec<&CommandSpec> = COMMANDS.iter().map(|(spec, _)| *spec).collect();
    let text = match matches.positionals.as_slice() {
        [what] if what == "man" => man(&commands),
        [what] if what == "bash" => bash(&commands),
        [what] if what == "zsh" => zsh(&commands),
        [what] if what == "fish" => fish(&commands),
        _ => return Err(Failure::with_try("specify one of man, bash, zsh, fish", "litestream generate man")),
    };
    output::print(&text)
}

/// Values a flag is known to take.
fn choices(flag: &Flag) -> &'static [&'static str] {
    match (flag.name, flag.kind) {
        ("log-level", _) => &["trace", "debug", "info", "warn", "error"],
        ("integrity-check", _) => &["none", "quick", "full"],
        (_, Kind::Level) => &["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "all"],
        _ => &[],
    }
}

/// Whether the value is a file.
fn takes_file(flag: &Flag) -> bool {
    matches!(flag.meta, "PATH" | "FILE")
}

fn help_of(flag: &Flag) -> String {
    flag.help.join(" ").replace("{config}", defaults::CONFIG_PATH)
}

// --- manual page -------------------------------------------------------------------------------------------

fn man(commands: &[&CommandSpec]) -> String {
    let mut out = format!(".TH LITESTREAM 1 \"\" \"litestream {VERSION}\" \"User Commands\"\n");
    out.push_str(".SH NAME\nlitestream \\- replicate SQLite databases and restore them\n.SH SYNOPSIS\n");
    out.push_str(".B litestream\n.I command\n[arguments]\n.SH DESCRIPTION\n");
    out.push_str(
        "Follows SQLite databases while applications write to them, streams every commit to a replica, and restores \
         any of the replicated states.\n.SH COMMANDS\n",
    );
    for command in commands {
        out.push_str(&format!(".SS {}\n", roff(command.name)));
        for form in command.synopsis {
            out.push_str(&format!(".B litestream {}\n{}\n.br\n", roff(command.name), roff(form)));
        }
        out.push_str(&format!(".PP\n{}\n", roff(&command.about.replace("\n\n", "\n").replace('\n', " "))));
        for flag in command.flags {
            let meta = if flag.meta.is_empty() { String::new() } else { format!(" \\fI{}\\fR", roff(flag.meta)) };
            out.push_str(&format!(".TP\n\\fB\\-{}\\fR{meta}\n{}\n", roff(flag.name), roff(&help_of(flag))));
        }
        for (comment, line) in command.examples {
            out.push_str(&format!(".PP\n{}\n.PP\n.RS 4\n{}\n.RE\n", roff(comment), roff(line)));
        }
    }
    out.push_str(&format!(
        ".SH FILES\n.TP\n{}\nThe configuration, unless \\-config or LITESTREAM_CONFIG names another.\n",
        roff(defaults::CONFIG_PATH)
    ));
    out.push_str(".SH ENVIRONMENT\n");
    for (name, text) in ENVIRONMENT {
        out.push_str(&format!(".TP\n{}\n{}\n", roff(name), roff(text)));
    }
    out.push_str(".SH EXIT STATUS\n0 on success, 1 on every error.\n");
    out
}

const ENVIRONMENT: [(&str, &str); 4] = [
    ("LITESTREAM_CONFIG", "Where the configuration is, unless -config says so."),
    ("LOG_LEVEL", "Overrides the configured log level."),
    ("LITESTREAM_ACCESS_KEY_ID, LITESTREAM_SECRET_ACCESS_KEY", "Stand in for the AWS_* variables that are not set."),
    ("LITESTREAM_AZURE_ACCOUNT_KEY, LITESTREAM_AZURE_SAS_TOKEN", "Credentials for Azure Blob Storage."),
];

/// Text in which nothing is a command to the formatter.
fn roff(text: &str) -> String {
    let escaped = text.replace('\\', "\\e").replace('-', "\\-");
    match escaped.starts_with(['.', '\'']) {
        true => format!("\\&{escaped}"),
        false => escaped,
    }
}

// --- completions -------------------------------------------------------------------------------------------

fn names(commands: &[&CommandSpec]) -> String {
    commands.iter().map(|c| c.name).collect::<Vec<_>>().join(" ")
}

fn bash(commands: &[&CommandSpec]) -> String {
    let mut out =
        String::from("# bash completion for litestream; made by `litestream generate bash`\n_litestream() {\n");
    out.push_str("    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} flags=\n");
    out.push_str("    if (( COMP_CWORD == 1 )); then\n");
    out.push_str(&format!(
        "        COMPREPLY=($(compgen -W \"{} help\" -- \"$cur\"))\n        return\n    fi\n",
        names(commands)
    ));
    out.push_str("    case ${COMP_WORDS[1]}:$prev in\n");
    for command in commands {
        for flag in command.flags.iter().filter(|flag| flag.kind != Kind::Switch) {
            let with = match (choices(flag), takes_file(flag)) {
                ([], true) => "compgen -f -- \"$cur\"".to_owned(),
                ([], false) => "true".to_owned(),
                (words, _) => format!("compgen -W \"{}\" -- \"$cur\"", words.join(" ")),
            };
            let name = flag.name;
            out.push_str(&format!(
                "        {}:-{name}|{}:--{name}) COMPREPLY=($({with})); return ;;\n",
                command.name, command.name
            ));
        }
    }
    out.push_str("    esac\n    case ${COMP_WORDS[1]} in\n");
    for command in commands {
        let flags: Vec<String> = command.flags.iter().map(|flag| format!("-{}", flag.name)).collect();
        out.push_str(&format!("        {}) flags=\"{} -h\" ;;\n", command.name, flags.join(" ")));
    }
    out.push_str("    esac\n    if [[ $cur == -* ]]; then\n        COMPREPLY=($(compgen -W \"$flags\" -- \"$cur\"))\n");
    out.push_str("    else\n        COMPREPLY=($(compgen -f -- \"$cur\"))\n    fi\n}\n");
    out.push_str("complete -o filenames -F _litestream litestream\n");
    out
}

fn zsh(commands: &[&CommandSpec]) -> String {
    let mut out = String::from("#compdef litestream\n# made by `litestream generate zsh`\n_litestream() {\n");
    out.push_str("    local -a commands=(\n");
    for command in commands {
        out.push_str(&format!("        {}\n", zsh_quote(&format!("{}:{}", command.name, command.summary))));
    }
    out.push_str(
        "    )\n    if (( CURRENT == 2 )); then\n        _describe command commands\n        return\n    fi\n",
    );
    out.push_str("    local command=$words[2]\n    shift words\n    (( CURRENT-- ))\n    case $command in\n");
    for command in commands {
        out.push_str(&format!("        {})\n            _arguments", command.name));
        for flag in command.flags {
            let text = help_of(flag).replace(['[', ']'], "").replace(':', "\\:");
            let value = match (flag.kind, choices(flag), takes_file(flag)) {
                (Kind::Switch, ..) => String::new(),
                (_, [], true) => format!(":{}:_files", flag.meta),
                (_, [], false) => format!(":{}:", flag.meta),
                (_, words, _) => format!(":{}:({})", flag.meta, words.join(" ")),
            };
            out.push_str(&format!(" \\\n                {}", zsh_quote(&format!("-{}[{text}]{value}", flag.name))));
        }
        out.push_str(" \\\n                '*:file:_files'\n            ;;\n");
    }
    out.push_str("    esac\n}\n_litestream \"$@\"\n");
    out
}

fn zsh_quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn fish(commands: &[&CommandSpec]) -> String {
    let quote = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
    let mut out = String::from("# fish completion for litestream; made by `litestream generate fish`\n");
    for command in commands {
        out.push_str(&format!(
            "complete -c litestream -n __fish_use_subcommand -f -a {} -d {}\n",
            command.name,
            quote(command.summary)
        ));
        for flag in command.flags {
            let value = match (flag.kind, choices(flag), takes_file(flag)) {
                (Kind::Switch, ..) => String::new(),
                (_, [], true) => " -r -F".to_owned(),
                (_, [], false) => " -x".to_owned(),
                (_, words, _) => format!(" -x -a {}", quote(&words.join(" "))),
            };
            out.push_str(&format!(
                "complete -c litestream -n '__fish_seen_subcommand_from {}' -o {}{value} -d {}\n",
                command.name,
                flag.name,
                quote(&help_of(flag))
            ));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commands() -> Vec<&'static CommandSpec> {
        COMMANDS.iter().map(|(spec, _)| *spec).collect()
    }

    #[test]
    fn every_flag_of_every_command_is_everywhere() {
        let commands = commands();
        let (man, bash, zsh, fish) = (man(&commands), bash(&commands), zsh(&commands), fish(&commands));
        for command in &commands {
            assert!(man.contains(&format!(".SS {}\n", command.name)));
            for flag in command.flags {
                let name = flag.name;
                assert!(man.contains(&format!("\\fB\\-{}\\fR", roff(name))), "man: {name}");
                assert!(bash.contains(&format!("-{name}")), "bash: {name}");
                assert!(zsh.contains(&format!("'-{name}[")), "zsh: {name}");
                assert!(fish.contains(&format!(" {}' -o {name}", command.name)), "fish: {name}");
            }
        }
    }

    #[test]
    fn no_line_of_text_is_a_command_to_the_formatter() {
        assert_eq!(roff(".SH x-y"), "\\&.SH x\\-y");
        assert_eq!(roff("'quoted"), "\\&'quoted");
        assert_eq!(roff("a\\b"), "a\\eb");
    }
}

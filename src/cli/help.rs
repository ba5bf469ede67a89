//! Help as wide as the terminal: clap wraps words, and commands are broken here, so that they can
//! still be pasted.

use crate::report::table::broken;
use clap::Command;

/// The widest that help becomes.
const MOST_COLUMNS: usize = 100;
const USAGE: &str = "Usage: ";
/// Spaces between a command and what it is for.
const BEFORE_COMMENT: usize = 3;

/// The command, its verbs and their examples, for `width` columns.
pub(super) fn laid_out(command: Command, width: usize) -> Command {
    let width = width.min(MOST_COLUMNS);
    let mut command = command.term_width(width);
    command.build();
    within(command, width)
}

fn within(command: Command, width: usize) -> Command {
    let command = match command.get_after_help().map(ToString::to_string) {
        Some(help) => command.after_help(fitted(&help, width)),
        None => command,
    };
    narrow_usage(command, width).mut_subcommands(|verb| within(verb, width))
}

/// clap breaks every line but that of the usage.
fn narrow_usage(mut command: Command, width: usize) -> Command {
    let usage = command.render_usage().to_string();
    if usage.chars().count() <= width {
        return command;
    }
    let usage = usage.trim_start_matches("Usage: ");
    let lines = filled(usage, width - USAGE.len(), "", "  ", "");
    command.override_usage(lines.join(&format!("\n{}", " ".repeat(USAGE.len()))))
}

/// A command to paste and what it is for.
#[derive(Debug, PartialEq)]
struct Example {
    command: String,
    comment: String,
}

/// The first example in a verb's help that is a command of that verb.
pub(super) fn first_example(help: &str, path: &str) -> Option<String> {
    let start = format!("{path} ");
    let commands = parsed(help).1.into_iter().map(|example| example.command);
    commands.into_iter().find(|command| command.starts_with(&start))
}

/// The text around the examples (in front, behind), and the examples.
fn parsed(help: &str) -> ((String, String), Vec<Example>) {
    let (mut front, mut behind, mut examples) = (String::new(), String::new(), Vec::new());
    let mut lines = help.lines();
    while let Some(line) = lines.next() {
        if !line.starts_with("  ") {
            let text = if examples.is_empty() { &mut front } else { &mut behind };
            *text += line;
            text.push('\n');
            continue;
        }
        let mut whole = line.trim().to_string();
        while let Some(begun) = whole.strip_suffix('\\') {
            whole = format!("{} {}", begun.trim_end(), lines.next().unwrap_or_default().trim());
        }
        let gap = " ".repeat(BEFORE_COMMENT);
        let (command, comment) = whole.split_once(&gap).unwrap_or((&whole, ""));
        let (command, comment) = (command.to_string(), comment.trim().to_string());
        examples.push(Example { command, comment });
    }
    ((front, behind.trim_end().to_string()), examples)
}

/// Examples with their comments beside them where all of it fits, else above them.
fn fitted(help: &str, width: usize) -> String {
    let ((front, behind), examples) = parsed(help);
    let commented = || examples.iter().filter(|e| !e.comment.is_empty());
    let column = commented().map(|e| e.command.len()).max().unwrap_or(0) + BEFORE_COMMENT;
    let beside = commented().all(|e| 2 + column + e.comment.len() <= width);
    let mut out = front.replace("Examples:", "\x1b[1m\x1b[4mExamples:\x1b[0m");
    for Example { command, comment } in &examples {
        if !beside && !comment.is_empty() {
            for line in broken(comment, width - 4) {
                out += &format!("  # {line}\n");
            }
        }
        let lines = pasteable(command, width);
        let one = lines.len() == 1;
        out += &lines.join(" \\\n");
        if beside && one && !comment.is_empty() {
            out += &format!("{}{comment}", " ".repeat(column - command.len()));
        }
        out.push('\n');
    }
    out + &behind
}

/// The lines of a command, to be joined by backslashes; a flag stays with its value.
fn pasteable(command: &str, width: usize) -> Vec<String> {
    if command.len() + 2 <= width {
        return vec![format!("  {command}")];
    }
    filled(command, width, "  ", "      ", " \\")
}

/// Lines of at most `width` columns from the words of a command; `end` is to follow each but the
/// last.
fn filled(command: &str, width: usize, first: &str, next: &str, end: &str) -> Vec<String> {
    let (mut lines, mut line) = (Vec::new(), String::new());
    for word in units(command) {
        if line.is_empty() {
            line = format!("{first}{word}");
        } else if line.len() + 1 + word.len() + end.len() > width {
            lines.push(std::mem::replace(&mut line, format!("{next}{word}")));
        } else {
            line.push(' ');
            line += &word;
        }
    }
    lines.push(line);
    lines
}

/// The words of a command: what stands in quotes is one, and so is a flag with what follows it.
fn units(command: &str) -> Vec<String> {
    let (mut words, mut quote) = (vec![String::new()], None);
    for c in command.chars() {
        match (c, quote) {
            (' ', None) => words.push(String::new()),
            (c @ ('"' | '\''), None) => quote = Some(c),
            (c, Some(q)) if c == q => quote = None,
            _ => {}
        }
        if let (Some(word), true) = (words.last_mut(), c != ' ' || quote.is_some()) {
            word.push(c);
        }
    }
    let mut units: Vec<String> = Vec::new();
    for word in words {
        match units.last_mut() {
            // `eslm-kd distill` stays together, too.
            Some(last)
                if !word.starts_with('-')
                    && !last.contains(' ')
                    && (last.starts_with("--") || last == "eslm-kd") =>
            {
                *last = format!("{last} {word}");
            }
            _ => units.push(word),
        }
    }
    units
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::CommandFactory;

    /// The text of a help page without its styles.
    fn pages(command: &Command, pages: &mut Vec<String>) {
        pages.push(command.clone().render_long_help().to_string());
        command.get_subcommands().for_each(|verb| self::pages(verb, pages));
    }

    fn examples(text: &str) -> Vec<Vec<String>> {
        let plain = text.replace("\x1b[1m\x1b[4m", "").replace("\x1b[0m", "");
        let (_, examples) = parsed(&plain);
        let commands = examples.into_iter().map(|e| e.command).filter(|c| !c.starts_with('#'));
        commands.map(|c| shlex::split(&c).unwrap()).collect()
    }

    #[test]
    fn help_fits_the_terminal_and_its_examples_stay_the_same_commands() {
        let whole = |command: &Command| -> Vec<String> {
            let own = command.get_after_help().map(ToString::to_string).into_iter();
            let verbs = command.get_subcommands().flat_map(|verb| {
                let own = verb.get_after_help().map(ToString::to_string);
                let inner = verb.get_subcommands().filter_map(|c| c.get_after_help());
                own.into_iter().chain(inner.map(ToString::to_string)).collect::<Vec<_>>()
            });
            own.chain(verbs).collect()
        };
        let wanted = whole(&Cli::command());
        for width in [60, 80, 100] {
            let command = laid_out(Cli::command(), width);
            for (narrow, wide) in whole(&command).iter().zip(&wanted) {
                assert_eq!(examples(narrow), examples(wide), "{width}");
            }
            let mut all = Vec::new();
            let mut built = command;
            built.build();
            pages(&built, &mut all);
            assert!(all.len() > 15);
            for line in all.iter().flat_map(|page| page.lines()) {
                assert!(line.chars().count() <= width, "{width}: {line}");
            }
        }
    }

    #[test]
    fn commands_break_between_flags() {
        let command = "eslm-kd prepare --input a b --out 'my data' --valid-fraction 0.01";
        assert_eq!(
            pasteable(command, 40),
            [
                "  eslm-kd prepare --input a b",
                "      --out 'my data'",
                "      --valid-fraction 0.01"
            ]
        );
        assert_eq!(pasteable(command, 100), [format!("  {command}")]);
    }
}

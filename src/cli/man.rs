//! `man`: manual pages, made from what `--help` says.

use super::{Cli, Printer};
use crate::error::{Error, Result};
use crate::files::{create_folder, write_atomic};
use crate::report::text::quoted;
use clap::{Command, CommandFactory};
use clap_mangen::Man;
use serde::Serialize;
use std::path::PathBuf;

/// Print the manual page, or write a page for each verb into a folder
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct ManArgs {
    /// Folder for the pages of all verbs; without it the main page goes to stdout
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  eslm-kd man | man -l -
  eslm-kd man --out ~/.local/share/man/man1         then: man eslm-kd-distill";

/// What was written.
#[derive(Debug, Serialize)]
struct Report {
    folder: PathBuf,
    pages: Vec<String>,
}

/// Runs the verb.
pub fn run(args: &ManArgs, ui: &Printer) -> Result<()> {
    let pages = pages()?;
    let Some(folder) = &args.out else {
        let main = pages.into_iter().next().map(|(_, text)| text).unwrap_or_default();
        return ui.document(&main);
    };
    create_folder(folder)?;
    let mut report = Report { folder: folder.clone(), pages: Vec::new() };
    for (name, text) in pages {
        let path = folder.join(&name);
        write_atomic(&path, |w| {
            w.write_all(text.as_bytes()).map_err(|e| Error::io("write", &path, e))
        })?;
        report.pages.push(name);
    }
    ui.result(&report, |_| {
        let first = quoted(&folder.join(&report.pages[0]));
        format!("{} pages in {}\nnext: man -l {first}", report.pages.len(), folder.display())
    })
}

/// File names and pages, the main one first.
pub(super) fn pages() -> Result<Vec<(String, String)>> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    collect(&command, super::NAME, &mut pages)
        .map_err(|e| Error::internal(format!("cannot write a manual page: {e}")))?;
    Ok(pages)
}

fn collect(
    command: &Command,
    name: &str,
    pages: &mut Vec<(String, String)>,
) -> std::io::Result<()> {
    let man = Man::new(command.clone())
        .title(name)
        .source(concat!("eslm-kd ", env!("CARGO_PKG_VERSION")))
        .manual("eslm-kd");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.get_subcommands().any(|verb| !verb.is_hide_set()) {
        man.render_subcommands_section(&mut page)?;
    }
    let mut page = String::from_utf8_lossy(&page).into_owned();
    let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    page += &verbatim(examples.trim_start_matches("Examples:\n"));
    pages.push((format!("{name}.1"), page));
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        collect(verb, &format!("{name}-{}", verb.get_name()), pages)?;
    }
    Ok(())
}

/// Lines that must not be filled, as a section; clap_mangen would make one paragraph of them.
fn verbatim(text: &str) -> String {
    let mut section = String::from(".SH EXAMPLES\n.nf\n");
    for line in text.lines() {
        let line = line.replace('\\', "\\e").replace('-', "\\-");
        // A line that begins like a request is text all the same.
        let guard = if line.starts_with(['.', '\'']) { "\\&" } else { "" };
        section += &format!("{guard}{line}\n");
    }
    section + ".fi\n"
}

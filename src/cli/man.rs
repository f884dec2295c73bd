//! Man pages of both programs and of every command, from the definitions of the arguments.
//! Out of scope: installing them (Makefile).

use std::fs;
use std::io;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::args::Args;
use super::failure::Failure;
use super::footer::Footer;
use super::sliced;

/// Writes all pages to the subdirectories `man1` and `man8` of a directory, which are created.
pub fn write(dir: &Path) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::one(format!("{}: {error}", dir.display()));
    for section in ["man1", "man8"] {
        fs::create_dir_all(dir.join(section)).map_err(failed)?;
    }
    for (name, text) in pages().map_err(failed)? {
        fs::write(dir.join(name), text).map_err(failed)?;
    }
    Ok(())
}

/// All pages: the path of the file, such as `man1/slicectl.1`, and its text.
///
/// # Errors
/// An error of the writer.
pub fn pages() -> io::Result<Vec<(String, String)>> {
    let mut slicectl = Args::command().disable_help_subcommand(true);
    slicectl.build();
    let mut pages = Vec::new();
    add(&slicectl, &mut pages)?;
    pages.push(page(&sliced::Args::command(), "8")?);
    Ok(pages)
}

fn add(command: &Command, pages: &mut Vec<(String, String)>) -> io::Result<()> {
    pages.push(page(command, "1")?);
    let shown = command
        .get_subcommands()
        .filter(|inner| !inner.is_hide_set());
    shown.into_iter().try_for_each(|inner| add(inner, pages))
}

fn page(command: &Command, section: &str) -> io::Result<(String, String)> {
    let man = Man::new(command.clone())
        .section(section)
        .source(concat!("slicectl ", env!("CARGO_PKG_VERSION")))
        .manual("slicectl manual");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    let footer = Footer::of(command);
    let mut roff = Roff::default();
    for paragraph in &footer.prose {
        roff.control("PP", []);
        roff.text([roman(paragraph.as_str())]);
    }
    roff.to_writer(&mut text)?;
    man.render_options_section(&mut text)?;
    if command.get_subcommands().any(|inner| !inner.is_hide_set()) {
        man.render_subcommands_section(&mut text)?;
    }
    let mut roff = Roff::default();
    for (heading, lines) in &footer.blocks {
        roff.control("SH", [heading.to_uppercase().as_str()]);
        // Lines are not filled.
        roff.control("nf", []);
        for line in lines {
            roff.text([roman(line.as_str())]);
        }
        roff.control("fi", []);
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman(see_also(&man.get_filename()))]);
    roff.to_writer(&mut text)?;
    let text = String::from_utf8_lossy(&text).into_owned();
    Ok((format!("man{section}/{}", man.get_filename()), text))
}

fn see_also(name: &str) -> &'static str {
    match name {
        "sliced.8" => "slicectl(1)",
        "slicectl.1" => "sliced(8)",
        _ => "slicectl(1), sliced(8)",
    }
}

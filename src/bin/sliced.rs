//! `sliced`: see [`slicectl::daemon`].
//! Not here: anything else.

use clap::Parser;

fn main() -> std::process::ExitCode {
    slicectl::daemon::main(slicectl::cli::sliced::Args::parse())
}

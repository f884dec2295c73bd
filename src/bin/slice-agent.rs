//! `slice-agent`: see [`slicectl::guest::agent`].
//! Out of scope: anything else.

use clap::Parser;

fn main() -> std::process::ExitCode {
    slicectl::guest::agent::main(slicectl::guest::agent::Args::parse())
}

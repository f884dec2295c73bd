//! `sliced`: see [`slicectl::daemon`].
//! Out of scope: anything else.

use clap::Parser;

/// Setting up a VM allocates some thousand small pieces, on whichever thread has time: glibc's allocator takes a tenth of the CPU then.
/// Without huge pages: of those the kernel clears 2 MiB where a few kB are needed, which doubles what the daemon takes.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    slicectl::daemon::main(slicectl::cli::sliced::Args::parse())
}

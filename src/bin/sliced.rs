//! `sliced`: see [`slicectl::daemon`], [`slicectl::vsock`] for the process beside QEMU, and [`slicectl::fleet::fence`] for the guard.
//! Out of scope: anything else.

use clap::Parser;

/// Setting up a VM makes some thousand small allocations on all worker threads: glibc's allocator takes a tenth of the CPU time for them.
/// Huge pages are off: the kernel would clear 2 MiB where a few kB are needed, which doubles the memory of the daemon.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    if let Some(ended) = slicectl::vsock::main() {
        return ended;
    }
    if let Some(ended) = slicectl::fleet::fence::main() {
        return ended;
    }
    slicectl::daemon::main(slicectl::cli::sliced::Args::parse())
}

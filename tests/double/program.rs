//! Doubles of Firecracker, its jailer and Cloud Hypervisor, for machines that can run neither: strict about every word that they are told,
//! with a guest of a few lines behind the TAP.
//! Out of scope: virtual machines.
//!
//! The program's name says which one it is, and of which version: `firecracker-1.10`, `cloud-hypervisor-38`; without a number
//! it is the newest that is known here. What they take and what they answer is told by `firecracker.yaml` and
//! `cloud-hypervisor.yaml` (OpenAPI) of those programs; `tests/vmm/api.rs` compares them with the real ones.

mod cloud_hypervisor;
mod firecracker;
mod guest;
mod jailer;
mod server;
mod vsock;

use std::path::Path;

/// Major and minor.
pub type Version = (u32, u32);

fn main() {
    let mut words = std::env::args();
    let program = words.next().unwrap_or_default();
    let name = Path::new(&program).file_name().unwrap_or_default();
    let name = name.to_string_lossy();
    let (kind, version) = match name.rsplit_once('-').map(|(kind, v)| (kind, parse(v))) {
        Some((kind, Some(version))) => (kind.to_owned(), Some(version)),
        Some((_, None)) | None => (name.into_owned(), None),
    };
    let words: Vec<String> = words.collect();
    match kind.as_str() {
        "firecracker" => firecracker::main(version.unwrap_or((1, 17)), &words),
        "cloud-hypervisor" => cloud_hypervisor::main(version.unwrap_or((54, 0)), &words),
        "jailer" => jailer::main(version.unwrap_or((1, 17)), &words),
        _ => fail(
            2,
            "call it firecracker-VERSION, cloud-hypervisor-VERSION or jailer-VERSION",
        ),
    }
}

/// `1.10`, or `38` alone.
fn parse(text: &str) -> Option<Version> {
    let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Ends like a VMM that cannot go on: the reason, then the exit status.
pub fn fail(status: i32, why: &str) -> ! {
    guest::print(&format!("{why}\n"));
    std::process::exit(status)
}

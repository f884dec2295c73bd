//! Dozens of real VMs at once, and VMs that misbehave: the tiny guest of `tests/guest` in QEMU, under the real `sliced`.
//! Out of scope: a Linux guest (`tests/e2e/guests.rs`); the Vmm stage alone (`tests/vmm`).
//!
//! | file | what it tests |
//! |---|---|
//! | `console` | talking with it |
//! | `disk` | a disk of its own |
//! | `guest` | the guest itself |
//! | `instead` | what is to replace it |
//! | `jail` | Firecracker's jailer |
//! | `life` | stopped, paused, restarted, ended: by people, by themselves, while nobody looks |
//! | `many` | 32 of them |
//! | `manners` | good and bad behaviour |

mod console;
mod disk;
mod guest;
mod instead;
mod jail;
mod life;
mod manners;
mod many;

//! The file system and capabilities of Firecracker's jailer, which continues the confinement.
//! Out of scope: its command line (`crate::reconcile::vmm`); the file system of a process without a jailer (`confine`).
//!
//! # How
//! The new root contains what the jailer needs: the host's programs, the jailer, and the program that it starts. The jail is a small tmpfs
//! in it, in which everything that the program may see is already mounted, at the same paths as on the host. The jailer creates devices
//! there, makes it its root (the mounts below move with it, all others are detached) and becomes the user.
//! The jail contains nothing of the host's programs, `/proc` or `/sys`.
//!
//! # Remaining capabilities
//! The bounding set contains only the capabilities that the jailer needs. The jailer does not empty that set, in contrast to `confine`; it
//! is of no use to a process without capabilities that cannot gain any (no_new_privs).
//!
//! # Why the source of the root contains the labels
//! The jailer clears its environment, by which a process is found (`census`). So the file system that becomes the root has the same
//! variables in its source, which `/proc/<pid>/mountinfo` shows and only a process that may mount can set.

use std::io;
use std::path::Path;

use rustix::fs::Mode;
use rustix::mount::MountFlags;

use super::confine::{Cell, LOCKED_DOWN};
use super::confinement::{Confine, Jail, Reach};
use super::step::{Below, Step, c_string};

/// Size and inode limits of the jail: it contains mount points, devices and the program's PID file. The copied program is mounted.
const JAIL_OPTIONS: &str = "mode=0755,size=1m,nr_inodes=8k";
/// The directory of the program's copy: the only executable file of a jail is in it.
const COPY: &str = "/copy";

impl Cell {
    /// Adds the jail and the files that the jailer needs. `labels` identifies the process.
    pub(super) fn add_jail(
        &mut self,
        what: &Confine<'_>,
        jail: &Jail<'_>,
        labels: &str,
    ) -> io::Result<()> {
        for tool in [jail.tool, jail.program] {
            self.show(&Reach {
                path: tool.real(),
                writable: false,
                named: Some(tool),
                map: None,
            })?;
        }
        let copy = self.add_program_copy(jail)?;
        let quiet = MountFlags::NOSUID | MountFlags::NOEXEC;
        self.fresh(("tmpfs", labels), jail.root, quiet, JAIL_OPTIONS)?;
        self.go_below(jail.root);
        let to = self.target_path(jail.home)?;
        self.steps.push(Step::Dir(to.clone()));
        self.steps.push(Step::Bind {
            from: c_string(what.home)?,
            to,
            flags: LOCKED_DOWN | MountFlags::NOEXEC,
            below: Below::Nothing,
        });
        for reach in what.reach {
            self.show_at(reach, MountFlags::RDONLY | MountFlags::NOEXEC)?;
        }
        // Last: the jailer writes to this file, even if another one is mounted at the same path.
        let name = Path::new("/").join(jail.program.real().file_name().unwrap_or_default());
        let to = self.target_path(&name)?;
        self.steps
            .push(Step::File(to.clone(), Mode::from_raw_mode(0o600)));
        self.steps.push(Step::Bind {
            from: copy,
            to,
            flags: LOCKED_DOWN,
            below: Below::Nothing,
        });
        self.home = c"/".to_owned();
        Ok(())
    }

    /// The file that the jailer writes the program to. It is executable from the start: older jailers do not change its mode.
    fn add_program_copy(&mut self, jail: &Jail<'_>) -> io::Result<std::ffi::CString> {
        let bytes = jail.program.metadata()?.len();
        // Plus the unused part of the last page, and the directory.
        let options = format!("mode=0700,size={},nr_inodes=4", bytes + (64 << 10));
        self.fresh(("tmpfs", "slice"), Path::new(COPY), LOCKED_DOWN, &options)?;
        let copy = self.target_path(&Path::new(COPY).join("program"))?;
        self.steps
            .push(Step::File(copy.clone(), Mode::from_raw_mode(0o755)));
        Ok(copy)
    }
}

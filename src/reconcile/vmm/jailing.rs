//! Resources that Firecracker's jailer needs to be started confined.
//! Out of scope: its command line (`jailer`), the mounts and capabilities ([`crate::host::process::Jail`]).

use std::os::fd::BorrowedFd;
use std::path::Path;

use super::Desired;
use super::opened::OpenFiles;
use crate::host::Error;
use crate::host::named::Named;
use crate::host::process::{Jail, Keep, StderrReader};
use crate::vmm::jailer::{self, JAIL_RUN_DIR, JailerCommand};
use crate::vmm::{ConfinedBy, Launch};

/// The resources for one start.
pub(super) struct JailerLaunch<'a> {
    command: JailerCommand,
    jailer: &'a Named,
    program: &'a Named,
    file_limit: u64,
    keep: Keep,
}

impl<'a> JailerLaunch<'a> {
    /// The locks of the disks, `held`, are held by the VMM through its standard error. `None`: this VMM is not started by a jailer.
    pub(super) fn of(
        desired: &Desired,
        launch: &Launch,
        opened: Option<&'a OpenFiles>,
        locked: &[BorrowedFd<'_>],
        file_limit: u64,
    ) -> Result<Option<Self>, Error> {
        let (ConfinedBy::Jailer(jailer), Some(confined), Some(opened)) =
            (&launch.confined_by, &desired.confined, opened)
        else {
            return Ok(None);
        };
        let Some(tool) = &opened.jailer else {
            return Ok(None);
        };
        let program = &opened.program;
        let copy = program
            .metadata()
            .map_err(|error| Error::io("stat", program.real().display().to_string(), error))?;
        Ok(Some(Self {
            command: jailer::jailer_command(
                jailer,
                launch,
                program.real(),
                confined.user,
                file_limit,
            ),
            jailer: tool,
            program,
            // The jailer sets the final limit after it has copied the program.
            file_limit: file_limit.max(copy.len()),
            keep: Keep::of(locked)?,
        }))
    }

    /// The file of the jailer.
    pub(super) fn jailer(&self) -> &'a Named {
        self.jailer
    }

    pub(super) fn jail(&self) -> Jail<'_> {
        Jail {
            root: &self.command.root,
            tool: self.jailer,
            program: self.program,
            home: Path::new(JAIL_RUN_DIR),
            errors: self.keep.standard_error(),
        }
    }

    pub(super) fn argv(&self) -> &[String] {
        &self.command.argv
    }

    /// The limit that applies until the jailer sets the final one.
    pub(super) fn file_limit(&self) -> u64 {
        self.file_limit
    }

    /// Releases the resources after the start has succeeded or failed. Returns the standard error of the process.
    pub(super) fn release(self) -> StderrReader {
        self.keep.let_go()
    }
}

//! What Firecracker's jailer needs to be started in our confinement.
//! Out of scope: its command line (`jailer`), the mounts and capabilities ([`crate::host::process::Jail`]).

use std::os::fd::BorrowedFd;
use std::path::Path;

use super::jailer::{self, HOME, Jailed};
use super::opened::Opened;
use super::{ConfinedBy, Desired, Launch};
use crate::host::Error;
use crate::host::named::Named;
use crate::host::process::{Jail, Keep, Words};

/// All of it, for one start.
pub(super) struct Jailing<'a> {
    jailed: Jailed,
    tool: &'a Named,
    program: &'a Named,
    file_limit: u64,
    keep: Keep,
}

impl<'a> Jailing<'a> {
    /// The disks, `held`, are held by the VMM through its standard error. None: no jailer starts this one.
    pub(super) fn of(
        desired: &Desired,
        launch: &Launch,
        opened: Option<&'a Opened>,
        held: &[BorrowedFd<'_>],
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
            .map_err(|error| Error::io("look at", program.real().display().to_string(), error))?;
        Ok(Some(Self {
            jailed: jailer::jailed(jailer, launch, program.real(), confined.user, file_limit),
            tool,
            program,
            // The jailer itself sets it as it is meant, when it has made its copy.
            file_limit: file_limit.max(copy.len()),
            keep: Keep::of(held)?,
        }))
    }

    /// The jailer's own file.
    pub(super) fn tool(&self) -> &'a Named {
        self.tool
    }

    pub(super) fn jail(&self) -> Jail<'_> {
        Jail {
            root: &self.jailed.root,
            tool: self.tool,
            program: self.program,
            home: Path::new(HOME),
            errors: self.keep.standard_error(),
        }
    }

    pub(super) fn argv(&self) -> &[String] {
        &self.jailed.argv
    }

    /// Until the jailer sets another.
    pub(super) fn file_limit(&self) -> u64 {
        self.file_limit
    }

    /// It is started, or could not be.
    pub(super) fn let_go(self) -> Words {
        self.keep.let_go()
    }
}

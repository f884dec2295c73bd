//! The VMMs of all VMs: preflight checks, the desired process, and notification when a process ends.
//! Out of scope: starting and stopping (the Vmm stage).

mod disks;
mod files;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use self::files::{confined, kernel, user_files};

use crate::api::allowed::AllowedDirectories;
use crate::api::meta::{Name, Uid};
use crate::api::network::Connection;
use crate::api::vm::{Hypervisor, VmSpec};
use crate::api::vmm_ids::IdRange;
use crate::engine::Key;
use crate::host;
use crate::host::process::{self, Identity, ProcessState, Record};
use crate::owner::{self, Label, RunDir};
use crate::reconcile::storage::{self, Disks};
use crate::reconcile::vmm::{self, Desired, Vmm};
use crate::runtime::controller::Enqueuer;
use crate::vmm::{
    Accel, ConfinedBy, FileAccess, Launch, Machine, Machines, Program, Programs, Slot, Sys,
    has_serial_port, machine_of, recipe,
};

const KVM: &str = "/dev/kvm";

/// Why a VMM is not run.
#[derive(Debug, thiserror::Error)]
pub enum NotRunnable {
    /// This host cannot run it, as text for users. Only a new spec or a change of the host can help.
    #[error("{0}")]
    Invalid(String),
    /// It could not be read how the running VMM was started.
    #[error(transparent)]
    Unobserved(#[from] host::Error),
}

impl From<String> for NotRunnable {
    fn from(reason: String) -> Self {
        Self::Invalid(reason)
    }
}

/// The VMMs of a daemon.
pub struct Processes {
    /// The reconciler of the Vmm stage.
    pub stage: Vmm,
    run_dir: RunDir,
    disk_dir: PathBuf,
    waker: Enqueuer<Key>,
    files: FileAccess,
    programs: Programs,
    machines: Machines,
    watches: Mutex<HashMap<Uid, Watch>>,
}

struct Watch {
    identity: Identity,
    _task: AbortOnDropHandle<()>,
}

impl Processes {
    /// Creates an empty set. `disk_dir` contains the disks of the VMs, `allowed` the directories of files that manifests name.
    pub fn new(
        run_dir: RunDir,
        disk_dir: PathBuf,
        allowed: AllowedDirectories,
        waker: Enqueuer<Key>,
    ) -> Self {
        let files = FileAccess {
            allowed,
            disk_dir: disk_dir.clone(),
            sliced: PathBuf::new(),
            agents: Vec::new(),
            initrd_dir: PathBuf::new(),
        };
        Self {
            stage: Vmm::new(files.clone()),
            run_dir,
            disk_dir,
            waker,
            programs: Programs::new(files.clone()),
            files,
            machines: Machines::default(),
            watches: Mutex::default(),
        }
    }

    /// Sets the range from which VMMs get their users.
    pub fn with_user_range(self, range: IdRange) -> Self {
        Self {
            stage: self.stage.with_users(range),
            ..self
        }
    }

    /// Sets the program `sliced`, where `slice-agent` for `agent: inject` may be, and the directory of the initrds with it.
    pub fn with_programs(
        mut self,
        sliced: PathBuf,
        agents: Vec<PathBuf>,
        initrd_dir: PathBuf,
    ) -> Self {
        self.files.sliced = sliced;
        self.files.agents = agents;
        self.files.initrd_dir = initrd_dir;
        Self {
            stage: self.stage.with_files(self.files.clone()),
            ..self
        }
    }

    /// Returns the desired process of a VM.
    ///
    /// # Errors
    /// The reason why this host cannot run it, as text for users.
    pub async fn desired(
        &self,
        spec: &VmSpec,
        name: &Name,
        label: &Label,
        connection: &Connection,
        disks: &Disks,
        user: Option<u32>,
    ) -> Result<Desired, NotRunnable> {
        let no_process = self.nothing(label);
        if spec.hypervisor == Hypervisor::None {
            return Ok(no_process);
        }
        let kernel = kernel(spec)?;
        let mut slot = Slot {
            name: name.clone(),
            dir: no_process.dir.clone(),
            connection: connection.clone(),
            disks: disks.all.clone(),
            sys: user.map_or(Sys::Host, |_| Sys::Own),
            confined_by: ConfinedBy::default(),
            has_serial_port: false,
        };
        let running_argv = self.running_argv(no_process.uid);
        slot.has_serial_port = running_argv.as_deref().is_some_and(has_serial_port);
        // A process of a version without users for VMMs is kept unchanged until it ends.
        if let (None, Some(argv)) = (user, running_argv) {
            return Ok(Desired {
                launch: Some(Launch::kept(argv, &slot)),
                disks: disks.all.clone(),
                ..no_process
            });
        }
        let is_running = self.running(no_process.uid).is_some();
        let (program, machine) = self.found(spec, &no_process, kernel).await?;
        if user.is_some() {
            slot.confined_by = self.confinement(spec, &no_process, &program).await?;
        }
        let mut new_launch =
            recipe(spec, &slot, &program, &machine).map_err(|reason| reason.to_string())?;
        let confinement = user.map(|user| confined(spec, &slot, user));
        if !is_running {
            // The VM's own disk is created later.
            let own_disk = disks.own.disk();
            let files = confinement.iter();
            let files = files.flat_map(|_| user_files(spec, &slot.disks));
            self.check_readable(files.filter(|file| file.path != own_disk))
                .await?;
        }
        if let (None, Some(launch)) = (&confinement, &mut new_launch) {
            // The process has ended since it was decided that it needs no user: the next run assigns one.
            launch.only_kept = true;
        }
        Ok(Desired {
            launch: new_launch,
            confined: confinement,
            disks: disks.all.clone(),
            ..no_process
        })
    }

    /// Preflight check: whether this host could run this spec in place of an existing VM, with the connection of that VM, if it is known.
    ///
    /// # Errors
    /// The reason why it could not, as text for users.
    pub async fn preflight(
        &self,
        spec: &VmSpec,
        name: &Name,
        label: &Label,
        connection: Option<&Connection>,
    ) -> Result<(), String> {
        let disks = self
            .disks_blocking(
                &spec.storage,
                name,
                label,
                None,
                storage::disks_for_replacement,
            )
            .await?;
        if spec.hypervisor == Hypervisor::None {
            return Ok(());
        }
        let (program, machine) = self
            .current_program_and_machine(spec, kernel(spec)?)
            .await?;
        let confined_by = self.current_confinement(spec, &program).await?;
        if let Some(connection) = connection {
            let slot = Slot {
                name: name.clone(),
                dir: self.nothing(label).dir,
                connection: connection.clone(),
                disks: disks.all.clone(),
                sys: Sys::Own,
                confined_by,
                has_serial_port: false,
            };
            recipe(spec, &slot, &program, &machine).map_err(|reason| reason.to_string())?;
        }
        let own_disk = disks.own.disk();
        self.check_readable(user_files(spec, &disks.all).filter(|file| file.path != own_disk))
            .await
    }

    /// The program and the machine with which a VM would be started now.
    async fn current_program_and_machine(
        &self,
        spec: &VmSpec,
        kernel: &Path,
    ) -> Result<(Program, Machine), String> {
        let configured = spec.lifecycle.program.as_deref();
        let program = self.programs.get(spec.hypervisor, configured).await?;
        self.check_boot_files(spec, kernel).await?;
        let machine = self.machine(spec.hypervisor, &program).await?;
        Ok((program, machine))
    }

    /// The program and the machine of a VM. A running VM keeps those it was started with, even if programs were installed, moved or removed
    /// since.
    async fn found(
        &self,
        spec: &VmSpec,
        vm: &Desired,
        kernel: &Path,
    ) -> Result<(Program, Machine), NotRunnable> {
        let hypervisor = spec.hypervisor;
        let started_as = vmm::started_as(&vm.dir)?;
        let program = match started_as {
            Some(program) => program,
            None => {
                let configured = spec.lifecycle.program.as_deref();
                self.programs.get(hypervisor, configured).await?
            }
        };
        let machine = match self.running(vm.uid).is_some() {
            true => {
                self.machine_of_running(hypervisor, vm.uid, &program)
                    .await?
            }
            false => {
                self.check_boot_files(spec, kernel).await?;
                self.machine(hypervisor, &program).await?
            }
        };
        Ok((program, machine))
    }

    /// The confinement of a VM. A running VM keeps the one it was started with.
    async fn confinement(
        &self,
        spec: &VmSpec,
        vm: &Desired,
        program: &Program,
    ) -> Result<ConfinedBy, NotRunnable> {
        let running = match spec.hypervisor {
            Hypervisor::Firecracker => vmm::confined_by(&vm.dir)?,
            Hypervisor::None | Hypervisor::Qemu | Hypervisor::CloudHypervisor => None,
        };
        match running {
            Some(confined_by) => Ok(confined_by),
            None => Ok(self.current_confinement(spec, program).await?),
        }
    }

    /// The confinement with which a VM would be started now. Only Firecracker has a jailer.
    async fn current_confinement(
        &self,
        spec: &VmSpec,
        program: &Program,
    ) -> Result<ConfinedBy, String> {
        let configured = spec.lifecycle.jailer.as_deref();
        match spec.hypervisor {
            Hypervisor::Firecracker => self.programs.confinement(configured, program).await,
            Hypervisor::None | Hypervisor::Qemu | Hypervisor::CloudHypervisor => {
                Ok(ConfinedBy::default())
            }
        }
    }

    /// The machine of a running VM, read from its command line: the program may have been upgraded or removed since.
    async fn machine_of_running(
        &self,
        hypervisor: Hypervisor,
        uid: Uid,
        program: &Program,
    ) -> Result<Machine, String> {
        let default = Machine {
            accel: Accel::Kvm,
            tsc_khz: None,
        };
        if hypervisor != Hypervisor::Qemu {
            return Ok(default);
        }
        match self.running_argv(uid) {
            Some(argv) => Ok(machine_of(&argv)),
            // The process has just ended.
            None => self.machine(hypervisor, program).await,
        }
    }

    /// The machine of a new VM. QEMU runs guests with or without KVM; the other VMMs need KVM.
    async fn machine(&self, hypervisor: Hypervisor, qemu: &Program) -> Result<Machine, String> {
        if hypervisor != Hypervisor::Qemu {
            return match Path::new(KVM).exists() {
                true => Ok(Machine {
                    accel: Accel::Kvm,
                    tsc_khz: None,
                }),
                false => Err(format!(
                    "hypervisor {hypervisor} needs {KVM}, which was not found: enable virtualization in the firmware or use hypervisor qemu"
                )),
            };
        }
        let file = self.programs.open(qemu)?;
        let machine = self.machines.machine(&self.run_dir.0, &file).await;
        machine.map_err(|error| error.to_string())
    }

    /// Whether VMs with this VMM can be started, as far as programs and devices are concerned.
    pub fn can_start(&self, hypervisor: Hypervisor) -> bool {
        let has_machine = match hypervisor {
            Hypervisor::None | Hypervisor::Qemu => true,
            Hypervisor::Firecracker | Hypervisor::CloudHypervisor => Path::new(KVM).exists(),
        };
        has_machine && !self.programs.is_absent(hypervisor)
    }

    /// The directories of programs and images.
    pub fn files(&self) -> &FileAccess {
        &self.files
    }

    /// Restores owners of users' files that an earlier daemon or an earlier boot left changed. A file that cannot be restored does not keep
    /// the daemon from starting.
    pub fn recover_owners(&self) {
        if let Err(error) = vmm::recover_owners(&self.run_dir, &self.disk_dir) {
            warn!(%error, "cannot restore the owners of disks that an earlier version has changed");
        }
    }

    /// Removes initrds with `slice-agent` that an earlier daemon has built.
    pub fn clear_injected(&self) {
        if let Err(error) = self.files.clear_injected() {
            warn!(%error, "cannot remove initrds of an earlier daemon");
        }
    }

    /// The empty desired state: no process.
    pub fn nothing(&self, label: &Label) -> Desired {
        let uid = owner::uid_of(label);
        Desired {
            label: label.clone(),
            uid,
            dir: self.run_dir.vmm_dir(uid),
            launch: None,
            disks: Vec::new(),
            confined: None,
            grace: Default::default(),
            forced: false,
            left: Default::default(),
            guest: Default::default(),
            evaluated_exits: Default::default(),
        }
    }

    /// Whether a VMM runs for this VM, by its record. It also counts as running if the record cannot be read, e.g. while it is written.
    pub fn may_be_running(&self, uid: Uid) -> bool {
        match process::read_record(&self.run_dir.vm_dir(uid).join(vmm::RECORD)) {
            Ok(Record::Of(identity)) => {
                matches!(
                    process::open(&identity),
                    Ok(ProcessState::Alive(_)) | Err(_)
                )
            }
            Ok(Record::None | Record::Unborn) => false,
            Err(_) => true,
        }
    }

    /// What confines the VMM that runs for this VM, as text for users. None: no VMM runs, or it runs as root.
    pub fn confined_by(&self, uid: Uid) -> Option<String> {
        let confinement = vmm::confined_by(&self.run_dir.vmm_dir(uid)).ok().flatten();
        confinement.map(|by| by.to_string())
    }

    /// The VMM that runs for this VM, by its record.
    pub fn running(&self, uid: Uid) -> Option<Identity> {
        vmm::running(&self.run_dir.vmm_dir(uid)).ok().flatten()
    }

    fn running_argv(&self, uid: Uid) -> Option<Vec<String>> {
        let argv = process::argv(self.running(uid)?.pid).ok()?;
        (!argv.is_empty()).then_some(argv)
    }

    /// Enqueues the VM's key when this process ends. Has no effect if the process is watched already.
    pub fn watch(&self, uid: Uid, identity: Option<&Identity>) {
        let mut watches = self.watches.lock();
        let Some(identity) = identity else {
            watches.remove(&uid);
            return;
        };
        drop(watches);
        self.watch_as(Key::Vm(uid), uid, identity);
    }

    /// As [`Self::watch`], with this key: that of an orphan is not the key of a VM.
    pub fn watch_as(&self, key: Key, uid: Uid, identity: &Identity) {
        let mut watches = self.watches.lock();
        if watches.get(&uid).is_some_and(|w| w.identity == *identity) {
            return;
        }
        let (waker, dir, watched) = (
            self.waker.clone(),
            self.run_dir.vmm_dir(uid),
            identity.clone(),
        );
        let task = tokio::spawn(async move {
            if let Err(error) = vmm::watch(&watched, &dir).await {
                debug!(%uid, %error, "cannot watch a VMM");
            }
            waker.enqueue(key);
        });
        let watch = Watch {
            identity: identity.clone(),
            _task: AbortOnDropHandle::new(task),
        };
        watches.insert(uid, watch);
    }
}

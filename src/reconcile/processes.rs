//! The VMMs of all VMs: what this host can do for one, and who is notified when one ends.
//! Out of scope: starting and stopping (the Vmm stage).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use super::disk;
use super::engine::Key;
use super::places::{Places, off_thread};
use super::storage::{self, Disks, Whose};
use super::vmm::{
    self, Accel, Access, Confined, ConfinedBy, Desired, Disk, Launch, Machine, Machines, Program,
    Programs, Slot, Sys, Vmm,
};
use crate::api::allowed::Allowed;
use crate::api::meta::{Name, Uid};
use crate::api::network::Connection;
use crate::api::storage::Storage;
use crate::api::vm::{Hypervisor, VmSpec};
use crate::api::vmm_ids::IdRange;
use crate::host::fs;
use crate::host::process::{self, Identity, Life, Record};
use crate::owner::{self, Label, Owner, RunDir};
use crate::runtime::controller::Waker;

const KVM: &str = "/dev/kvm";

/// One for the daemon.
pub struct Processes {
    /// The rung.
    pub rung: Vmm,
    run_dir: RunDir,
    disk_dir: PathBuf,
    waker: Waker<Key>,
    places: Places,
    programs: Programs,
    machines: Machines,
    watches: Mutex<HashMap<Uid, Watch>>,
}

struct Watch {
    identity: Identity,
    _task: AbortOnDropHandle<()>,
}

impl Processes {
    /// None is known yet. Their disks lie in `disk_dir`, what manifests name lies below what is `allowed`.
    pub fn new(run_dir: RunDir, disk_dir: PathBuf, allowed: Allowed, waker: Waker<Key>) -> Self {
        let places = Places {
            allowed,
            disk_dir: disk_dir.clone(),
        };
        Self {
            rung: Vmm::new(places.clone()),
            run_dir,
            disk_dir,
            waker,
            programs: Programs::new(places.clone()),
            places,
            machines: Machines::default(),
            watches: Mutex::default(),
        }
    }

    /// The same, for VMMs whose users are given out of this range.
    pub fn with_users(self, range: IdRange) -> Self {
        Self {
            rung: self.rung.with_users(range),
            ..self
        }
    }

    /// What is to run for a VM.
    ///
    /// # Errors
    /// Why this host cannot run it, in words.
    pub async fn desired(
        &self,
        spec: &VmSpec,
        name: &Name,
        label: &Label,
        connection: &Connection,
        disks: &Disks,
        user: Option<u32>,
    ) -> Result<Desired, String> {
        let nothing = self.nothing(label);
        if spec.hypervisor == Hypervisor::None {
            return Ok(nothing);
        }
        let kernel = kernel(spec)?;
        let mut slot = Slot {
            name: name.clone(),
            dir: nothing.dir.clone(),
            connection: connection.clone(),
            disks: disks.all.clone(),
            sys: user.map_or(Sys::Host, |_| Sys::Own),
            confined_by: ConfinedBy::default(),
        };
        // One from before there were users for VMMs is wanted as it is until it ends.
        if let (None, Some(argv)) = (user, self.running_argv(nothing.uid)) {
            return Ok(Desired {
                want: Some(Launch::kept(argv, &slot)),
                disks: disks.all.clone(),
                ..nothing
            });
        }
        let runs = self.running(nothing.uid).is_some();
        let (program, machine) = self.found(spec, &nothing, kernel).await?;
        if user.is_some() {
            slot.confined_by = self.confinement(spec, &nothing, &program).await?;
        }
        let mut want =
            vmm::recipe(spec, &slot, &program, &machine).map_err(|unfit| unfit.to_string())?;
        let confined = user.map(|user| confined(spec, &slot, user));
        if !runs {
            // Its own disk is still to be made.
            let own = disks.own.disk();
            let files = confined.iter().flat_map(|confined| &confined.files);
            let files = files.filter(|file| file.path != own).cloned();
            self.all_readable(files).await?;
        }
        if let (None, Some(launch)) = (&confined, &mut want) {
            // It has ended since it was decided that it needs no user: the next look gives it one.
            launch.only_kept = true;
        }
        Ok(Desired {
            want,
            confined,
            disks: disks.all.clone(),
            ..nothing
        })
    }

    /// Whether this host could run that, were it to be started in the place of a VM that stands; connected like that one, if
    /// it is known how.
    ///
    /// # Errors
    /// What is in the way, in words.
    pub async fn fits(
        &self,
        spec: &VmSpec,
        name: &Name,
        label: &Label,
        connection: Option<&Connection>,
    ) -> Result<(), String> {
        let disks = self
            .of_storage(&spec.storage, name, label, None, storage::anew)
            .await?;
        if spec.hypervisor == Hypervisor::None {
            return Ok(());
        }
        let (program, machine) = self.fresh(spec, kernel(spec)?).await?;
        let confined_by = self.fresh_confinement(spec, &program).await?;
        if let Some(connection) = connection {
            let slot = Slot {
                name: name.clone(),
                dir: self.nothing(label).dir,
                connection: connection.clone(),
                disks: disks.all.clone(),
                sys: Sys::Own,
                confined_by,
            };
            vmm::recipe(spec, &slot, &program, &machine).map_err(|unfit| unfit.to_string())?;
        }
        let own = disks.own.disk();
        self.all_readable(opened(spec, &disks.all).filter(|file| file.path != own))
            .await
    }

    /// With what it would be started now, on what.
    async fn fresh(&self, spec: &VmSpec, kernel: &Path) -> Result<(Program, Machine), String> {
        let named = spec.life.program.as_deref();
        let program = self.programs.get(spec.hypervisor, named).await?;
        self.are_there([Some(kernel), spec.initrd_file.as_deref()])
            .await?;
        let machine = self.machine(spec.hypervisor, &program).await?;
        Ok((program, machine))
    }

    /// With what it is run, on what. What runs goes on as what it was started as, whatever has been installed, moved or removed since.
    async fn found(
        &self,
        spec: &VmSpec,
        vm: &Desired,
        kernel: &Path,
    ) -> Result<(Program, Machine), String> {
        let hypervisor = spec.hypervisor;
        let started_as = vmm::started_as(&vm.dir).map_err(|error| error.to_string())?;
        let program = match started_as {
            Some(program) => program,
            None => {
                let named = spec.life.program.as_deref();
                self.programs.get(hypervisor, named).await?
            }
        };
        let machine = match self.running(vm.uid).is_some() {
            true => {
                self.machine_of_what_runs(hypervisor, vm.uid, &program)
                    .await?
            }
            false => {
                self.are_there([Some(kernel), spec.initrd_file.as_deref()])
                    .await?;
                self.machine(hypervisor, &program).await?
            }
        };
        Ok((program, machine))
    }

    /// What is to confine it. What runs is confined as it was started.
    async fn confinement(
        &self,
        spec: &VmSpec,
        vm: &Desired,
        program: &Program,
    ) -> Result<ConfinedBy, String> {
        let running = match spec.hypervisor {
            Hypervisor::Firecracker => vmm::confined_by(&vm.dir).map_err(|e| e.to_string())?,
            Hypervisor::None | Hypervisor::Qemu | Hypervisor::CloudHypervisor => None,
        };
        match running {
            Some(by) => Ok(by),
            None => self.fresh_confinement(spec, program).await,
        }
    }

    /// What would confine it, were it started now: nobody but Firecracker has a jailer.
    async fn fresh_confinement(
        &self,
        spec: &VmSpec,
        program: &Program,
    ) -> Result<ConfinedBy, String> {
        let named = spec.life.jailer.as_deref();
        match spec.hypervisor {
            Hypervisor::Firecracker => self.programs.confinement(named, program).await,
            Hypervisor::None | Hypervisor::Qemu | Hypervisor::CloudHypervisor => {
                Ok(ConfinedBy::default())
            }
        }
    }

    /// It runs, and how is in its own words: a program that was upgraded or removed since is not tried for it.
    async fn machine_of_what_runs(
        &self,
        hypervisor: Hypervisor,
        uid: Uid,
        program: &Program,
    ) -> Result<Machine, String> {
        let found = Machine {
            accel: Accel::Kvm,
            tsc_khz: None,
        };
        if hypervisor != Hypervisor::Qemu {
            return Ok(found);
        }
        match self.running_argv(uid) {
            Some(argv) => Ok(vmm::machine_of(&argv)),
            // It has just ended.
            None => self.machine(hypervisor, program).await,
        }
    }

    /// QEMU runs guests with or without KVM; the others with it, or not at all.
    async fn machine(&self, hypervisor: Hypervisor, qemu: &Program) -> Result<Machine, String> {
        if hypervisor != Hypervisor::Qemu {
            return match Path::new(KVM).exists() {
                true => Ok(Machine {
                    accel: Accel::Kvm,
                    tsc_khz: None,
                }),
                false => Err(format!(
                    "hypervisor {hypervisor} needs {KVM}, which is not there: switch virtualisation on, or use hypervisor qemu"
                )),
            };
        }
        let file = self.programs.open(qemu)?;
        let machine = self.machines.machine(&self.run_dir.0, &file).await;
        machine.map_err(|error| format!("{error}: {}", error.source))
    }

    /// Where programs and images may lie.
    pub fn places(&self) -> &Places {
        &self.places
    }

    async fn are_there(&self, files: [Option<&Path>; 2]) -> Result<(), String> {
        self.places.are_there(files).await
    }

    async fn all_readable(&self, files: impl Iterator<Item = Disk>) -> Result<(), String> {
        self.places.all_readable(files.collect()).await
    }

    /// What an earlier daemon, or an earlier boot, has left changed of users' files. A disk that cannot be given back is no reason
    /// not to start.
    pub fn recover_owners(&self) {
        if let Err(error) = vmm::recover_owners(&self.run_dir, &self.disk_dir) {
            warn!(%error, source = %error.source, "owners of disks that an earlier version has changed are not recorded");
        }
    }

    /// Nothing may run.
    pub fn nothing(&self, label: &Label) -> Desired {
        let uid = owner::uid_of(label);
        Desired {
            label: label.clone(),
            uid,
            dir: self.run_dir.vmm_dir(uid),
            want: None,
            disks: Vec::new(),
            confined: None,
            grace: Default::default(),
            forced: false,
            left: Default::default(),
            guest: Default::default(),
            judged: Default::default(),
        }
    }

    /// Which disks a VM is to have.
    ///
    /// # Errors
    /// Why it cannot have them, in words.
    pub async fn disks(
        &self,
        storage: &Storage,
        name: &Name,
        label: &Label,
    ) -> Result<Disks, String> {
        let running = self.running(owner::uid_of(label));
        let user = running.map(|running| running.pid);
        if storage.image.is_none() && storage.disks.is_empty() {
            return storage::disks(storage, &self.whose(name, label, user)?);
        }
        self.of_storage(storage, name, label, user, storage::disks)
            .await
    }

    /// On a thread that may block: an image may lie on a file system whose server does not answer.
    async fn of_storage(
        &self,
        storage: &Storage,
        name: &Name,
        label: &Label,
        user: Option<u32>,
        look: fn(&Storage, &Whose<'_>) -> Result<Disks, String>,
    ) -> Result<Disks, String> {
        let boot = fs::boot_id().map_err(|error| error.to_string())?;
        let (dir, storage) = (self.disk_dir.clone(), storage.clone());
        let places = self.places.clone();
        let (name, label) = (name.clone(), label.clone());
        let key = format!("storage of {label} {storage:?}");
        off_thread(key, move || {
            let whose = Whose {
                dir: &dir,
                boot,
                name: &name,
                label: &label,
                user,
                places: &places,
            };
            look(&storage, &whose)
        })
        .await
    }

    fn whose<'a>(
        &'a self,
        name: &'a Name,
        label: &'a Label,
        user: Option<u32>,
    ) -> Result<Whose<'a>, String> {
        Ok(Whose {
            dir: &self.disk_dir,
            boot: fs::boot_id().map_err(|error| error.to_string())?,
            name,
            label,
            user,
            places: &self.places,
        })
    }

    /// No disk is wanted any more. None: the label is no VM's.
    pub fn no_disk(&self, label: &Label) -> Option<disk::Desired> {
        let Owner::Vm { name, .. } = &label.owner else {
            return None;
        };
        let whose = Whose {
            dir: &self.disk_dir,
            boot: "",
            name,
            label,
            user: None,
            places: &self.places,
        };
        Some(whose.nothing())
    }

    /// `<state>/disks`.
    pub fn disk_dir(&self) -> &Path {
        &self.disk_dir
    }

    /// Whether a VMM runs for this VM, by its record. One whose record is just being written does, too.
    pub fn runs(&self, uid: Uid) -> bool {
        match process::read_record(&self.run_dir.vm_dir(uid).join(vmm::RECORD)) {
            Ok(Record::Of(identity)) => {
                matches!(process::look(&identity), Ok(Life::Alive(_)) | Err(_))
            }
            Ok(Record::None | Record::Unborn) => false,
            Err(_) => true,
        }
    }

    /// What confines the VMM that runs for this VM, for people. None: none runs, or as root.
    pub fn confined_by(&self, uid: Uid) -> Option<String> {
        let found = vmm::confined_by(&self.run_dir.vmm_dir(uid)).ok().flatten();
        found.map(|by| by.to_string())
    }

    /// The VMM that runs for this VM, by its record.
    fn running(&self, uid: Uid) -> Option<Identity> {
        vmm::running(&self.run_dir.vmm_dir(uid)).ok().flatten()
    }

    fn running_argv(&self, uid: Uid) -> Option<Vec<String>> {
        let argv = process::argv(self.running(uid)?.pid).ok()?;
        (!argv.is_empty()).then_some(argv)
    }

    /// Tells the VM's key when this process ends. Watching the one that is watched already changes nothing.
    pub fn watch(&self, uid: Uid, identity: Option<&Identity>) {
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(identity) = identity else {
            watches.remove(&uid);
            return;
        };
        drop(watches);
        self.watch_for(Key::Vm(uid), uid, identity);
    }

    /// The same, and tells this key: of a VM that is no object any more, it is another.
    pub fn watch_for(&self, key: Key, uid: Uid, identity: &Identity) {
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
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
                debug!(%uid, %error, "a VMM cannot be watched");
            }
            waker.nudge(key);
        });
        let watch = Watch {
            identity: identity.clone(),
            _task: AbortOnDropHandle::new(task),
        };
        watches.insert(uid, watch);
    }
}

fn kernel(spec: &VmSpec) -> Result<&Path, String> {
    let hypervisor = spec.hypervisor;
    let kernel = spec.kernel_file.as_deref();
    kernel.ok_or_else(|| format!("hypervisor {hypervisor} needs a `kernel_file`"))
}

fn confined(spec: &VmSpec, slot: &Slot, user: u32) -> Confined {
    Confined {
        user,
        vcpu: spec.vcpu,
        ram_bytes: spec.ram_bytes,
        files: opened(spec, &slot.disks).collect(),
    }
}

/// What a VMM opens beside its own things.
fn opened<'a>(spec: &'a VmSpec, disks: &'a [Disk]) -> impl Iterator<Item = Disk> + 'a {
    let read = |path: &PathBuf| Disk {
        path: path.clone(),
        access: Access::ReadOnly,
    };
    let boot = spec.kernel_file.iter().chain(&spec.initrd_file).map(read);
    boot.chain(disks.iter().cloned())
}

//! Cloud Hypervisor: its command line, its API (`vmm/src/api/openapi/cloud-hypervisor.yaml`).
//! Out of scope: hot plug, snapshots, migration: whoever asks for them is refused.

mod words;

use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use self::words::Words;
use crate::firecracker::parse_mac;
use crate::guest::{End, Guest, Setup, Traffic, open_tap, print};
use crate::server::{Answer, Service, serve};
use crate::{Version, fail};

pub fn main(version: Version, words: &[String]) -> ! {
    if words == ["--version"] {
        print(&format!("cloud-hypervisor v{}.{}\n", version.0, version.1));
        std::process::exit(0);
    }
    let words =
        Words::parse(version, words).unwrap_or_else(|why| fail(1, &format!("error: {why}")));
    // It takes a stale socket away itself only since it has a lock beside it.
    if version >= (53, 0) {
        let _ = std::fs::remove_file(&words.api_socket);
    }
    let listener = UnixListener::bind(&words.api_socket)
        .unwrap_or_else(|error| fail(1, &format!("Error binding API server socket: {error}")));
    let config = words.config.clone();
    let vmm = Arc::new(Mutex::new(Vmm {
        version,
        vm: Vm::None,
    }));
    if let Some(config) = config {
        let created = lock(&vmm).create(config);
        let booted = created.and_then(|()| boot(&vmm));
        booted.unwrap_or_else(|why| fail(1, &format!("Error booting VM: {}", why.join(": "))));
    }
    serve(listener, Arc::new(Mutex::new(Api(vmm))))
}

/// A virtual machine's configuration, as far as it matters here (`VmConfig`).
#[derive(Clone)]
pub struct VmConfig {
    pub kernel: std::path::PathBuf,
    pub initramfs: Option<std::path::PathBuf>,
    pub cmdline: String,
    pub tap: String,
    pub mac: String,
    pub disks: Vec<(std::path::PathBuf, bool)>,
    pub memory: u64,
    pub vsock: Option<std::path::PathBuf>,
}

enum Vm {
    None,
    Created(VmConfig),
    Booted(Box<Booted>),
}

struct Booted {
    config: VmConfig,
    guest: Guest,
    paused: bool,
    _held: Vec<std::fs::File>,
}

struct Vmm {
    version: Version,
    vm: Vm,
}

/// From the outermost to the cause.
type Causes = Vec<String>;

fn causes(words: &[&str]) -> Causes {
    words.iter().map(ToString::to_string).collect()
}

fn lock(vmm: &Arc<Mutex<Vmm>>) -> std::sync::MutexGuard<'_, Vmm> {
    vmm.lock().expect("nobody panics")
}

impl Vmm {
    fn create(&mut self, config: VmConfig) -> Result<(), Causes> {
        match self.vm {
            Vm::None => {
                self.vm = Vm::Created(config);
                Ok(())
            }
            Vm::Created(_) | Vm::Booted(_) => Err(causes(&[
                "The VM could not be created",
                "VM is already created",
            ])),
        }
    }

    fn pause(&mut self, hold: bool) -> Result<(), Causes> {
        let what = match hold {
            true => "The VM could not be paused",
            false => "The VM could not be resumed",
        };
        match &mut self.vm {
            Vm::None | Vm::Created(_) => Err(causes(&[what, "VM is not running"])),
            Vm::Booted(vm) if vm.paused == hold => {
                Err(causes(&[what, "Invalid VM state transition"]))
            }
            Vm::Booted(vm) => {
                vm.guest.hold(hold);
                vm.paused = hold;
                Ok(())
            }
        }
    }

    fn press(&self) -> Result<(), Causes> {
        match &self.vm {
            Vm::Booted(vm) => {
                vm.guest.press();
                Ok(())
            }
            Vm::None | Vm::Created(_) => Err(causes(&[
                "Error triggering power button",
                "VM is not running",
            ])),
        }
    }

    /// What is left is a VM that could be booted again.
    fn shutdown(&mut self) -> Result<(), Causes> {
        match std::mem::replace(&mut self.vm, Vm::None) {
            Vm::Booted(vm) => {
                vm.guest.unplug();
                if let Some(path) = &vm.config.vsock {
                    let _ = std::fs::remove_file(path);
                }
                self.vm = Vm::Created(vm.config);
                Ok(())
            }
            other => {
                self.vm = other;
                Err(causes(&["The VM could not shutdown", "VM is not running"]))
            }
        }
    }

    fn info(&self) -> Result<Value, Causes> {
        let (config, state) = match &self.vm {
            Vm::None => {
                return Err(causes(&[
                    "The VM info is not available",
                    "VM is not created",
                ]));
            }
            Vm::Created(config) => (config, "Created"),
            Vm::Booted(vm) if vm.paused => (&vm.config, "Paused"),
            Vm::Booted(vm) => (&vm.config, "Running"),
        };
        Ok(json!({
            "config": {
                "memory": { "size": config.memory },
                "payload": { "kernel": config.kernel, "initramfs": config.initramfs, "cmdline": config.cmdline },
                "net": [{ "tap": config.tap, "mac": config.mac }],
            },
            "state": state,
            "memory_actual_size": config.memory,
        }))
    }
}

/// Opens everything, and lets the guest go.
fn boot(vmm: &Arc<Mutex<Vmm>>) -> Result<(), Causes> {
    let wrap =
        |what: &str, why: String| vec!["The VM could not boot".to_owned(), what.to_owned(), why];
    let mut locked = lock(vmm);
    let config = match &locked.vm {
        Vm::Created(config) => config.clone(),
        Vm::None => return Err(causes(&["The VM could not boot", "VM config is missing"])),
        Vm::Booted(_) => return Err(causes(&["The VM could not boot", "VM is already created"])),
    };
    let image =
        std::fs::read(&config.kernel).map_err(|e| wrap("Cannot load kernel", e.to_string()))?;
    let bz_image = locked.version >= (39, 0) && image.get(0x202..0x206) == Some(b"HdrS");
    if !image.starts_with(b"\x7fELF") && !bz_image {
        return Err(wrap(
            "Cannot load kernel",
            "Kernel lacks PVH header".to_owned(),
        ));
    }
    let initrd = match &config.initramfs {
        None => String::new(),
        Some(path) => {
            let bytes =
                std::fs::read(path).map_err(|e| wrap("Cannot load initramfs", e.to_string()))?;
            String::from_utf8(bytes).unwrap_or_default()
        }
    };
    let mut held = Vec::new();
    for (path, read_only) in &config.disks {
        let file = std::fs::File::options()
            .read(true)
            .write(!read_only)
            .open(path);
        held.push(file.map_err(|e| wrap("Cannot open disk path", e.to_string()))?);
    }
    let vsock = config.vsock.as_ref().map(UnixListener::bind).transpose();
    let vsock = vsock.map_err(|e| wrap("Cannot create virtio-vsock backend", e.to_string()))?;
    let setup = Setup {
        tap: open_tap(&config.tap).map_err(|why| wrap("Cannot create virtio-net device", why))?,
        mac: parse_mac(&config.mac).map_err(|why| wrap("Cannot create virtio-net device", why))?,
        words: format!("{} {initrd}", config.cmdline),
        vsock,
    };
    let again = Arc::clone(vmm);
    let guest = Guest::boot("vcpu0", setup, move |end| match end {
        End::PowerOff => leave(&again),
        // A triple fault is a reset, and a reset happens within the process.
        End::Crash => {
            std::thread::sleep(std::time::Duration::from_millis(20));
            let vm = std::mem::replace(&mut lock(&again).vm, Vm::None);
            if let Vm::Booted(vm) = vm {
                let _ = vm.config.vsock.as_ref().map(std::fs::remove_file);
                let created = lock(&again).create(vm.config);
                let booted = created.and_then(|()| boot(&again));
                booted.unwrap_or_else(|why| fail(1, &why.join(": ")));
            }
        }
    });
    locked.vm = Vm::Booted(Box::new(Booted {
        config,
        guest,
        paused: false,
        _held: held,
    }));
    Ok(())
}

/// Takes the vsock's socket away on its way out, as it should.
fn leave(vmm: &Arc<Mutex<Vmm>>) -> ! {
    if let Vm::Booted(vm) = &lock(vmm).vm
        && let Some(path) = &vm.config.vsock
    {
        let _ = std::fs::remove_file(path);
    }
    std::process::exit(0)
}

struct Api(Arc<Mutex<Vmm>>);

impl Api {
    fn put(&self, verb: &str, body: &[u8]) -> Result<Answer, (u16, Causes)> {
        let known = [
            "vm.create",
            "vm.boot",
            "vm.pause",
            "vm.resume",
            "vm.shutdown",
            "vm.reboot",
            "vm.delete",
            "vm.power-button",
            "vmm.shutdown",
        ];
        if !known.contains(&verb) {
            return Err((404, causes(&["Not Found"])));
        }
        if verb != "vm.create" && !body.is_empty() {
            return Err((400, causes(&["Bad Request", "Body is not empty"])));
        }
        let mut vmm = lock(&self.0);
        let not_created = match vmm.version >= (53, 0) {
            true => 404,
            false => 500,
        };
        let status = match vmm.vm {
            Vm::None => not_created,
            Vm::Created(_) | Vm::Booted(_) => 500,
        };
        let done = match verb {
            "vm.create" => {
                let config = words::config(body).map_err(|why| (400, vec![why]))?;
                return vmm
                    .create(config)
                    .map(|()| Answer::empty(204))
                    .map_err(|why| (500, why));
            }
            "vm.boot" => {
                drop(vmm);
                return boot(&self.0)
                    .map(|()| Answer::empty(204))
                    .map_err(|why| (status, why));
            }
            "vm.pause" => vmm.pause(true).map_err(|why| (500, why)),
            "vm.resume" => vmm.pause(false).map_err(|why| (500, why)),
            "vm.power-button" => vmm.press().map_err(|why| (500, why)),
            "vmm.shutdown" => {
                drop(vmm);
                let vmm = Arc::clone(&self.0);
                std::thread::spawn(move || {
                    // The answer goes first.
                    std::thread::sleep(std::time::Duration::from_millis(50));
                    leave(&vmm)
                });
                return Ok(Answer::empty(200));
            }
            "vm.shutdown" => vmm.shutdown().map_err(|why| (status, why)),
            "vm.delete" => {
                // Shuts down what runs; nothing to delete is no error.
                let _ = vmm.shutdown();
                vmm.vm = Vm::None;
                Ok(())
            }
            "vm.reboot" => {
                vmm.shutdown().map_err(|why| (status, why))?;
                drop(vmm);
                boot(&self.0).map_err(|why| (500, why))
            }
            _ => Err((404, causes(&["Not Found"]))),
        };
        done.map(|()| Answer::empty(204))
    }

    fn get(&self, verb: &str) -> Result<Answer, (u16, Causes)> {
        let vmm = lock(&self.0);
        match verb {
            "vmm.ping" => Ok(Answer::json(
                200,
                &json!({
                    "build_version": format!("v{}.{}", vmm.version.0, vmm.version.1),
                    "version": format!("{}.0.0", vmm.version.0),
                    "pid": std::process::id(),
                    "features": ["kvm"],
                }),
            )),
            "vm.info" => {
                let missing = match vmm.version >= (53, 0) {
                    true => 404,
                    false => 500,
                };
                let info = vmm.info().map_err(|why| (missing, why))?;
                Ok(Answer::json(200, &info))
            }
            "vm.counters" => match &vmm.vm {
                Vm::None | Vm::Created(_) => {
                    Err((500, causes(&["Error from API", "VM is not running"])))
                }
                Vm::Booted(vm) => Ok(Answer::json(200, &counters(&vm.guest.traffic))),
            },
            _ => Err((404, causes(&["Not Found"]))),
        }
    }
}

fn counters(traffic: &Traffic) -> Value {
    let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let Traffic { sent, received } = traffic;
    json!({ "_net0": {
        "rx_bytes": count(&received.bytes), "rx_frames": count(&received.frames),
        "tx_bytes": count(&sent.bytes), "tx_frames": count(&sent.frames),
    }})
}

impl Service for Api {
    const HEARS_SIGTERM: bool = true;

    fn answer(&mut self, method: &str, path: &str, body: &[u8]) -> Answer {
        let answer = match (method, path.strip_prefix("/api/v1/")) {
            (_, None) => Err((404, causes(&["Not Found"]))),
            ("GET", Some("vmm.ping" | "vm.info" | "vm.counters")) if !body.is_empty() => {
                Err((400, causes(&["Bad Request"])))
            }
            ("GET", Some(verb)) => self.get(verb),
            ("PUT", Some("vmm.ping" | "vm.info" | "vm.counters")) => {
                Err((400, causes(&["Bad Request"])))
            }
            ("PUT", Some(verb)) => self.put(verb, body),
            _ => Err((400, causes(&["Bad Request"]))),
        };
        let version = lock(&self.0).version;
        answer.unwrap_or_else(|(status, why)| match version >= (47, 0) {
            true => Answer::json(status, &json!(why)),
            false => Answer {
                status,
                body: why.join(": "),
            },
        })
    }

    fn leave(&mut self) -> ! {
        leave(&self.0)
    }
}

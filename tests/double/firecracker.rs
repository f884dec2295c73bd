//! Firecracker: its arguments, its configuration file, its API (`src/firecracker/swagger/firecracker.yaml`).
//! Out of scope: metrics but its card's, snapshots, balloon, hot plug, MMDS: whoever asks for them is refused.

mod arguments;
mod config;

use std::io::{LineWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use self::arguments::Arguments;
use self::config::{
    Action, BootSource, Config, Drive, Entropy, Logger, MachineConfig, MachinePatch, Metrics,
    NetworkInterface, Resume, Serial, Vm, Vsock,
};
use crate::guest::{self, End, Guest, Setup, Traffic, open_tap, print};
use crate::server::{Answer, Service, serve};
use crate::{Version, fail};

/// Exit statuses (`src/vmm/src/lib.rs`, `FcExitCode`).
const GENERIC_ERROR: i32 = 1;
const BAD_ARGUMENTS: i32 = 153;

pub fn main(version: Version, words: &[String]) -> ! {
    let arguments = Arguments::parse(words).unwrap_or_else(|why| fail(BAD_ARGUMENTS, &why));
    if arguments.version {
        print(&format!("Firecracker v{}.{}.0\n\n", version.0, version.1));
        std::process::exit(0);
    }
    let listener = arguments.api_sock.as_ref().map(|path| {
        UnixListener::bind(path).unwrap_or_else(|error| {
            let why = format!(
                "Failed to open the API socket at: {}. Check that it is not already used. {error}",
                path.display()
            );
            fail(GENERIC_ERROR, &why)
        })
    });
    let mut vmm = Vmm::new(version, arguments.id);
    if let Some(path) = &arguments.config_file {
        let booted = vmm.boot_from(path);
        booted.unwrap_or_else(|why| fail(GENERIC_ERROR, &format!("RunWithoutApiError: {why}")));
    }
    match listener {
        Some(listener) => serve(listener, Arc::new(Mutex::new(vmm))),
        // The guest ends the process.
        None => loop {
            std::thread::park();
        },
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    NotStarted,
    Running,
    Paused,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::NotStarted => "Not started",
            Self::Running => "Running",
            Self::Paused => "Paused",
        }
    }
}

struct Vmm {
    version: Version,
    id: String,
    state: State,
    config: Config,
    /// Opened, and held, as soon as they are told.
    tap: Option<std::os::fd::OwnedFd>,
    vsock: Option<UnixListener>,
    drives: Vec<std::fs::File>,
    guest: Option<Guest>,
    metrics: Option<LineWriter<std::fs::File>>,
    /// What it has told of its guest's traffic.
    told: [u64; 4],
}

/// What is wrong with a request.
type Fault = String;

impl Vmm {
    fn new(version: Version, id: String) -> Self {
        Self {
            version,
            id,
            state: State::NotStarted,
            config: Config::default(),
            tap: None,
            vsock: None,
            drives: Vec::new(),
            guest: None,
            metrics: None,
            told: [0; 4],
        }
    }

    /// `--config-file`: each part as if it were told to the API, then the start.
    fn boot_from(&mut self, path: &std::path::Path) -> Result<(), Fault> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("Unable to open or read {}: {error}", path.display()))?;
        let config: Config = serde_json::from_str(&text)
            .map_err(|error| format!("Configuration from one single json failed: {error}"))?;
        self.set_machine(config.machine_config)?;
        if let Some(source) = config.boot_source {
            self.set_boot_source(source)?;
        }
        for drive in config.drives {
            self.add_drive(drive)?;
        }
        for card in config.network_interfaces {
            self.add_card(card)?;
        }
        if let Some(vsock) = config.vsock {
            self.set_vsock(vsock)?;
        }
        self.config.entropy = config.entropy;
        self.config.logger = config.logger;
        if let Some(metrics) = config.metrics {
            self.set_metrics(&metrics)?;
        }
        self.start()
    }

    fn set_machine(&mut self, machine: MachineConfig) -> Result<(), Fault> {
        self.config.machine_config = machine.valid(self.version)?;
        Ok(())
    }

    fn set_boot_source(&mut self, source: BootSource) -> Result<(), Fault> {
        let files = [Some(&source.kernel_image_path), source.initrd_path.as_ref()];
        for path in files.into_iter().flatten() {
            std::fs::File::open(path).map_err(|error| {
                format!(
                    "The kernel file cannot be opened: {}: {error}",
                    path.display()
                )
            })?;
        }
        if source
            .boot_args
            .as_ref()
            .is_some_and(|words| words.len() > 2048)
        {
            return Err("The kernel command line is invalid: it is too long".to_owned());
        }
        self.config.boot_source = Some(source);
        Ok(())
    }

    fn add_drive(&mut self, drive: Drive) -> Result<(), Fault> {
        device_id(&drive.drive_id)?;
        let roots = self.config.drives.iter().filter(|d| d.is_root_device);
        if drive.is_root_device && roots.count() > 0 {
            return Err("A root block device already exists!".to_owned());
        }
        let path = drive
            .path_on_host
            .as_ref()
            .ok_or("missing `path_on_host`")?;
        let file = std::fs::File::options()
            .read(true)
            .write(!drive.is_read_only.unwrap_or(false))
            .open(path)
            .map_err(|error| format!("Unable to open {}: {error}", path.display()))?;
        self.drives.push(file);
        self.config.drives.push(drive);
        Ok(())
    }

    fn add_card(&mut self, card: NetworkInterface) -> Result<(), Fault> {
        device_id(&card.iface_id)?;
        if card.mtu.is_some() && self.version < (1, 16) {
            return Err("unknown field `mtu`".to_owned());
        }
        let mac = card.guest_mac.as_deref();
        mac.map(parse_mac).transpose()?;
        self.tap = Some(open_tap(&card.host_dev_name)?);
        self.config.network_interfaces.push(card);
        Ok(())
    }

    fn set_vsock(&mut self, vsock: Vsock) -> Result<(), Fault> {
        // A second one takes the place of the first.
        if self.vsock.take().is_some() {
            let _ = std::fs::remove_file(&vsock.uds_path);
        }
        let socket = UnixListener::bind(&vsock.uds_path)
            .map_err(|error| format!("Cannot create backend for vsock device: {error}"))?;
        self.vsock = Some(socket);
        self.config.vsock = Some(vsock);
        Ok(())
    }

    fn set_metrics(&mut self, metrics: &Metrics) -> Result<(), Fault> {
        let mut file = std::fs::OpenOptions::new();
        let opened = file
            .read(true)
            .write(true)
            .create(self.version >= (1, 14))
            .truncate(false)
            .custom_flags(libc::O_NONBLOCK)
            .open(&metrics.metrics_path);
        let opened = opened.map_err(|error| error.to_string())?;
        match self.metrics.replace(LineWriter::new(opened)) {
            None => Ok(()),
            Some(_) => Err("Reinitialization of metrics not allowed.".to_owned()),
        }
    }

    /// A line of what has happened since the line before; what does not fit is lost, as in the real one.
    fn flush_metrics(&mut self, guest: &Traffic) -> Result<(), Fault> {
        let Some(file) = &mut self.metrics else {
            return Ok(());
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let Traffic { sent, received } = guest;
        let ways = [&received.bytes, &received.frames, &sent.bytes, &sent.frames];
        let total = ways.map(|way| way.load(Ordering::Relaxed));
        let [rx_bytes, rx_frames, tx_bytes, tx_frames] =
            std::array::from_fn(|way| total[way] - self.told[way]);
        self.told = total;
        let card = json!({
            "rx_bytes_count": rx_bytes, "rx_packets_count": rx_frames, "rx_fails": 0,
            "tx_bytes_count": tx_bytes, "tx_packets_count": tx_frames, "tx_fails": 0,
        });
        let line =
            json!({ "vmm": { "panic_count": 0 }, "net": card, "net_eth0": card }).to_string();
        let now = now.expect("after 1970").as_millis();
        let line = format!("{{\"utc_timestamp_ms\":{now},{}\n", &line[1..]);
        file.write_all(line.as_bytes())
            .map_err(|error| format!("Flush metrics failed: {error}"))
    }

    /// An ELF kernel, or the reason.
    fn start(&mut self) -> Result<(), Fault> {
        let source = self.config.boot_source.clone();
        let source = source.ok_or("Cannot start microvm without kernel configuration.")?;
        let image = std::fs::read(&source.kernel_image_path).map_err(|e| e.to_string())?;
        if !image.starts_with(b"\x7fELF") {
            return Err("Cannot load kernel due to invalid memory configuration or invalid kernel image: Invalid Elf magic number".to_owned());
        }
        let initrd = source.initrd_path.as_ref().map(std::fs::read_to_string);
        let initrd = initrd.and_then(Result::ok).unwrap_or_default();
        let words = format!("{} {initrd}", source.boot_args.unwrap_or_default());
        let card = self.config.network_interfaces.first();
        let mac = card.and_then(|card| card.guest_mac.as_deref());
        let mac = mac
            .map(parse_mac)
            .transpose()?
            .unwrap_or([6, 0, 0, 0, 0, 1]);
        let Some(tap) = self.tap.take() else {
            return Err("this double has no guest without a network".to_owned());
        };
        let vsock = self.vsock.as_ref().map(UnixListener::try_clone);
        let setup = Setup {
            tap,
            mac,
            words,
            vsock: vsock.transpose().map_err(|error| error.to_string())?,
        };
        let guest = Guest::boot("fc_vcpu 0", setup, |end| match end {
            // Through the keyboard controller: there is no other way for a guest.
            End::PowerOff => std::process::exit(0),
            End::Crash => std::process::exit(GENERIC_ERROR),
        });
        self.guest = Some(guest);
        guest::listen();
        self.state = State::Running;
        Ok(())
    }

    fn act(&mut self, action: Action) -> Result<(), Fault> {
        match (action, &self.guest) {
            (Action::InstanceStart, None) => self.start(),
            (Action::InstanceStart, Some(_)) => Err(AFTER.to_owned()),
            (Action::FlushMetrics | Action::SendCtrlAltDel, None) => Err(BEFORE.to_owned()),
            (Action::FlushMetrics, Some(guest)) => {
                let traffic = Arc::clone(&guest.traffic);
                self.flush_metrics(&traffic)
            }
            (Action::SendCtrlAltDel, Some(guest)) => {
                guest.press();
                Ok(())
            }
        }
    }

    fn resume_or_pause(&mut self, vm: &Vm) -> Result<(), Fault> {
        let guest = self.guest.as_ref().ok_or(BEFORE)?;
        let hold = vm.state == Resume::Paused;
        guest.hold(hold);
        self.state = match hold {
            true => State::Paused,
            false => State::Running,
        };
        Ok(())
    }

    fn before_start(&self) -> Result<(), Fault> {
        match self.guest {
            None => Ok(()),
            Some(_) => Err(AFTER.to_owned()),
        }
    }

    fn put(&mut self, path: &[&str], body: &[u8]) -> Result<(), Fault> {
        match path {
            ["actions"] => return self.act(read::<config::ActionInfo>(body)?.action_type),
            ["logger"] => {
                self.config.logger = Some(read::<Logger>(body)?);
                return Ok(());
            }
            _ => {}
        }
        self.before_start()?;
        match path {
            ["machine-config"] => self.set_machine(read(body)?),
            ["boot-source"] => self.set_boot_source(read(body)?),
            ["drives", id] => {
                let drive: Drive = read(body)?;
                same_id(id, &drive.drive_id)?;
                self.add_drive(drive)
            }
            ["network-interfaces", id] => {
                let card: NetworkInterface = read(body)?;
                same_id(id, &card.iface_id)?;
                self.add_card(card)
            }
            ["vsock"] => self.set_vsock(read(body)?),
            ["entropy"] => {
                self.config.entropy = Some(read::<Entropy>(body)?);
                Ok(())
            }
            ["serial"] if self.version >= (1, 14) => read::<Serial>(body).map(drop),
            ["metrics"] => self.set_metrics(&read(body)?),
            _ => Err(unknown("PUT", path)),
        }
    }

    fn patch(&mut self, path: &[&str], body: &[u8]) -> Result<(), Fault> {
        match path {
            ["vm"] => self.resume_or_pause(&read(body)?),
            ["machine-config"] => {
                let patch: MachinePatch = read(body)?;
                self.before_start()?;
                let patched = patch.over(&self.config.machine_config, self.version)?;
                self.set_machine(patched)
            }
            _ => Err(unknown("PATCH", path)),
        }
    }

    fn get(&self, path: &[&str]) -> Result<Value, Fault> {
        let version = format!("{}.{}.0", self.version.0, self.version.1);
        match path {
            [] => Ok(json!({
                "id": self.id, "state": self.state.word(), "vmm_version": version, "app_name": "Firecracker",
            })),
            ["version"] => Ok(json!({ "firecracker_version": version })),
            ["machine-config"] => Ok(json!(self.config.machine_config)),
            ["vm", "config"] => Ok(json!(self.config)),
            _ => Err(unknown("GET", path)),
        }
    }
}

const BEFORE: &str = "The requested operation is not supported before starting the microVM.";
const AFTER: &str = "The requested operation is not supported after starting the microVM.";

impl Service for Vmm {
    const HEARS_SIGTERM: bool = false;

    fn answer(&mut self, method: &str, path: &str, body: &[u8]) -> Answer {
        let path: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let answer = match (method, body.is_empty()) {
            ("GET", true) => self.get(&path).map(|found| Answer::json(200, &found)),
            ("GET", false) => Err("GET request cannot have a body.".to_owned()),
            ("PUT" | "PATCH", true) => Err(format!("Empty {method} request.")),
            ("PUT", false) => self.put(&path, body).map(|()| Answer::empty(204)),
            ("PATCH", false) => self.patch(&path, body).map(|()| Answer::empty(204)),
            _ => Err("Unsupported HTTP method.".to_owned()),
        };
        answer.unwrap_or_else(|fault| Answer::json(400, &json!({ "fault_message": fault })))
    }

    fn leave(&mut self) -> ! {
        std::process::exit(0)
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Fault> {
    serde_json::from_slice(body).map_err(|error| {
        format!("An error occurred when deserializing the json body of a request: {error}.")
    })
}

fn unknown(method: &str, path: &[&str]) -> Fault {
    format!(
        "Invalid request method and/or path: {method} /{}.",
        path.join("/")
    )
}

fn same_id(path: &str, body: &str) -> Result<(), Fault> {
    match path == body {
        true => Ok(()),
        false => Err(format!(
            "The id from the path [{path}] does not match the id from the body [{body}]!"
        )),
    }
}

fn device_id(id: &str) -> Result<(), Fault> {
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '_';
    match !id.is_empty() && id.chars().all(valid) {
        true => Ok(()),
        false => Err(
            "API Resource IDs can only contain alphanumeric characters and underscores.".to_owned(),
        ),
    }
}

/// Six bytes in hexadecimal.
pub fn parse_mac(text: &str) -> Result<[u8; 6], Fault> {
    let bytes: Result<Vec<u8>, _> = text.split(':').map(|b| u8::from_str_radix(b, 16)).collect();
    let bytes = bytes.map_err(|error| format!("invalid MAC address {text}: {error}"))?;
    bytes
        .try_into()
        .map_err(|_| format!("invalid MAC address {text}"))
}

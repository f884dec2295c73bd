//! Cloud Hypervisor's command line, word by word, and the body of `vm.create`. A word that a version does not know is an error.
//! Out of scope: what they do.

use std::collections::HashMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::VmConfig;
use crate::Version;

/// All that was said.
pub struct Words {
    pub api_socket: PathBuf,
    /// None: a VM is to be created through the API.
    pub config: Option<VmConfig>,
}

/// `key=value,key=value`, with the keys that are known.
fn list(option: &str, text: &str, known: &[&str]) -> Result<HashMap<String, String>, String> {
    let mut found = HashMap::new();
    for part in text.split(',') {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        if !known.contains(&key) {
            return Err(format!("Error parsing {option}: unknown option: {key}"));
        }
        if found.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(format!("Error parsing {option}: {key} is there twice"));
        }
    }
    Ok(found)
}

fn one_of(option: &str, text: &str, known: &[&str]) -> Result<(), String> {
    match known.contains(&text) {
        true => Ok(()),
        false => Err(format!("Error parsing {option}: {text}")),
    }
}

impl Words {
    pub fn parse(version: Version, words: &[String]) -> Result<Self, String> {
        let mut values: HashMap<&str, Vec<&str>> = HashMap::new();
        let mut option = "";
        for word in words {
            match word.starts_with("--") {
                true => {
                    if values.insert(word, Vec::new()).is_some() {
                        return Err(format!(
                            "the argument '{word}' cannot be used multiple times"
                        ));
                    }
                    option = word;
                }
                false => match values.get_mut(option) {
                    Some(of) if of.is_empty() || option == "--disk" => of.push(word),
                    Some(_) | None => return Err(format!("unexpected argument '{word}' found")),
                },
            }
        }
        let mut take = |option: &str| {
            values
                .remove(option)
                .map(|of| of.first().copied().unwrap_or_default())
        };
        let socket = take("--api-socket").ok_or("this double wants an --api-socket")?;
        let api_socket = socket.strip_prefix("path=").unwrap_or(socket).to_owned();
        let kernel = take("--kernel");
        let initramfs = take("--initramfs").map(PathBuf::from);
        let cmdline = take("--cmdline").unwrap_or_default().to_owned();
        if let Some(cpus) = take("--cpus") {
            let boot = list("--cpus", cpus, &["boot", "max"])?.remove("boot");
            let boot: u32 = boot
                .unwrap_or_default()
                .parse()
                .map_err(|_| "--cpus wants boot=N")?;
            if !(1..=254).contains(&boot) {
                return Err("--cpus: 1 to 254".to_owned());
            }
        }
        let memory = match take("--memory") {
            None => 512 << 20,
            Some(memory) => size(
                &list("--memory", memory, &["size"])?
                    .remove("size")
                    .unwrap_or_default(),
            )?,
        };
        let mut net = match take("--net") {
            None => HashMap::new(),
            Some(net) => list("--net", net, &["tap", "mac", "num_queues", "queue_size"])?,
        };
        let queues: u32 = net
            .remove("num_queues")
            .map_or(Ok(2), |n| n.parse())
            .map_err(|_| "num_queues wants a number")?;
        if queues != 2 {
            return Err("this TAP has one pair of queues".to_owned());
        }
        if let Some(rng) = take("--rng") {
            let source = list("--rng", rng, &["src"])?
                .remove("src")
                .unwrap_or_default();
            std::fs::File::open(&source).map_err(|error| format!("{source}: {error}"))?;
        }
        one_of(
            "--serial",
            take("--serial").unwrap_or("null"),
            &["tty", "off", "null"],
        )?;
        one_of(
            "--console",
            take("--console").unwrap_or("off"),
            &["off", "null"],
        )?;
        let vsock = match take("--vsock") {
            None => None,
            Some(vsock) => {
                let mut vsock = list("--vsock", vsock, &["cid", "socket"])?;
                let cid: u32 = vsock
                    .remove("cid")
                    .unwrap_or_default()
                    .parse()
                    .map_err(|_| "--vsock wants cid=N")?;
                if cid < 3 {
                    return Err("--vsock: cid from 3 on".to_owned());
                }
                Some(
                    vsock
                        .remove("socket")
                        .ok_or("--vsock wants a socket")?
                        .into(),
                )
            }
        };
        let disks = values.remove("--disk").unwrap_or_default();
        let disks = disks
            .into_iter()
            .map(|text| disk(version, text))
            .collect::<Result<_, _>>()?;
        if let Some(option) = values.keys().next() {
            return Err(format!("unexpected argument '{option}' found"));
        }
        let config = kernel.map(|kernel| VmConfig {
            kernel: kernel.into(),
            initramfs,
            cmdline,
            tap: net.remove("tap").unwrap_or_default(),
            mac: net.remove("mac").unwrap_or_default(),
            disks,
            memory,
            vsock,
        });
        Ok(Self {
            api_socket: api_socket.into(),
            config,
        })
    }
}

/// The path, and whether it is only read.
fn disk(version: Version, text: &str) -> Result<(PathBuf, bool), String> {
    let known: &[&str] = match version >= (51, 0) {
        true => &["path", "readonly", "image_type"],
        false => &["path", "readonly"],
    };
    let mut disk = list("--disk", text, known)?;
    if let Some(kind) = disk.remove("image_type") {
        one_of("--disk image_type", &kind, &["raw", "qcow2", "vhd", "vhdx"])?;
    }
    let read_only = disk.remove("readonly").unwrap_or("off".to_owned());
    one_of("--disk readonly", &read_only, &["on", "off"])?;
    let path = disk.remove("path").ok_or("--disk wants a path")?;
    Ok((path.into(), read_only == "on"))
}

/// Bytes.
fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.strip_suffix(['K', 'M', 'G']) {
        None => (text, 1),
        Some(number) if text.ends_with('K') => (number, 1 << 10),
        Some(number) if text.ends_with('M') => (number, 1 << 20),
        Some(number) => (number, 1 << 30),
    };
    let number: u64 = number.parse().map_err(|_| format!("--memory: {text}"))?;
    Ok(number * unit)
}

/// `VmConfig` of the API takes whatever else is said.
#[derive(Deserialize)]
struct Body {
    payload: Option<Payload>,
    memory: Option<Memory>,
    #[serde(default)]
    net: Vec<Net>,
}

#[derive(Deserialize)]
struct Payload {
    kernel: Option<PathBuf>,
    initramfs: Option<PathBuf>,
    cmdline: Option<String>,
}

#[derive(Deserialize)]
struct Memory {
    size: u64,
}

#[derive(Deserialize)]
struct Net {
    tap: Option<String>,
    mac: Option<String>,
}

pub fn config(body: &[u8]) -> Result<VmConfig, String> {
    let body: Body =
        serde_json::from_slice(body).map_err(|error| format!("Failed to deserialize: {error}"))?;
    let net = body.net.into_iter().next();
    let (tap, mac) = net.map_or((None, None), |net| (net.tap, net.mac));
    let payload = body.payload.unwrap_or(Payload {
        kernel: None,
        initramfs: None,
        cmdline: None,
    });
    Ok(VmConfig {
        kernel: payload.kernel.unwrap_or_default(),
        initramfs: payload.initramfs,
        cmdline: payload.cmdline.unwrap_or_default(),
        tap: tap.unwrap_or_default(),
        mac: mac.unwrap_or_default(),
        disks: Vec::new(),
        memory: body.memory.map_or(512 << 20, |memory| memory.size),
        vsock: None,
    })
}

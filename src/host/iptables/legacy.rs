//! Reads the tables of iptables from `ip_tables`, the legacy back end of the kernel's packet filter.
//! Out of scope: the meaning of matches and targets.
//!
//! A table is one blob of `struct ipt_entry` (linux/netfilter_ipv4/ip_tables.h) in native byte order: the builtin chains
//! at the offsets of `ipt_getinfo`, each followed by its policy; then user-defined chains, each preceded by an `ERROR` target with
//! its name and followed by a RETURN; then a final `ERROR`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use ipnetwork::Ipv4Network;

use super::decode::{self, Decoded, Exact, ForeignText, Inverted, Unknown, array, test};
use super::netlink::text;
use crate::host::Error;
use crate::host::rule::{Chain, Match, Policy, Rule, Ruleset, Table, TableName, Target, Test};

const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// `struct ipt_getinfo`: `name, valid_hooks, hook_entry[5], underflow[5], num_entries, size`.
const INFO: usize = 32 + 4 * (1 + 5 + 5 + 1 + 1);
/// `struct ipt_get_entries` before its entries, which are aligned to 8.
const ENTRIES: usize = 40;
/// `struct ipt_entry` before its matches.
const ENTRY: usize = 112;
/// `struct xt_entry_match` and `xt_entry_target` before their data.
const EXTENSION: usize = 32;
const HOOKS: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
/// The maximum number of attempts if a table changes between the reads of its size and of its content.
const ATTEMPTS: usize = 16;

/// Reads tables. Does not create tables that the namespace has never used.
pub fn read(names: &[TableName]) -> Result<Ruleset, Error> {
    const NAMES: &str = "/proc/thread-self/net/ip_tables_names";
    let used = std::fs::read_to_string(NAMES).map_err(|e| Error::io("read", NAMES, e))?;
    let socket = raw_socket()?;
    let tables = names
        .iter()
        .filter(|name| used.lines().any(|line| line == name.to_string()))
        .map(|&name| table(&socket, name))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Ruleset::new(tables))
}

/// Whether the policy of `FORWARD` is DROP. Does not create a table that the namespace has never used.
pub fn drops_forwarded() -> Result<bool, Error> {
    const NAMES: &str = "/proc/thread-self/net/ip_tables_names";
    const HOOK: usize = 2;
    // A kernel without ip_tables has no such file.
    let used = std::fs::read_to_string(NAMES).unwrap_or_default();
    if !used.lines().any(|line| line == "filter") {
        return Ok(false);
    }
    let (info, blob) = fetch(&raw_socket()?, TableName::Filter)
        .map_err(|e| Error::io("read the table", "filter", e))?;
    // `underflow`, after the name, the hooks and `hook_entry`: the offset of a builtin chain's policy.
    let number = |bytes: &[u8], at| array(bytes, at).map(u32::from_ne_bytes);
    let policy = || {
        let entry = number(&info, 32 + 4 + 20 + 4 * HOOK)? as usize;
        let target = u16::from_ne_bytes(array(&blob, entry + 88)?);
        number(&blob, entry + usize::from(target) + EXTENSION)
    };
    // `-NF_DROP - 1`.
    Ok(policy().is_ok_and(|verdict: u32| verdict as i32 == -1))
}

fn raw_socket() -> Result<OwnedFd, Error> {
    rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::RAW,
        rustix::net::SocketFlags::CLOEXEC,
        Some(rustix::net::ipproto::RAW),
    )
    .map_err(|e| Error::io("open", "a raw socket", e.into()))
}

fn table(socket: &OwnedFd, name: TableName) -> Result<Table, Error> {
    let (info, blob) =
        fetch(socket, name).map_err(|e| Error::io("read the table", name.to_string(), e))?;
    let chains = chains(&info, &blob).map_err(|Unknown| {
        Error::other("read the table", name.to_string(), "invalid table entries")
    })?;
    Ok(Table { name, chains })
}

fn fetch(socket: &OwnedFd, name: TableName) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let mut table_name = [0; 32];
    let text = name.to_string();
    table_name[..text.len()].copy_from_slice(text.as_bytes());
    let mut attempt = 0;
    loop {
        attempt += 1;
        let mut info = vec![0; INFO];
        info[..32].copy_from_slice(&table_name);
        ask(socket, GET_INFO, &mut info)?;
        let size: [u8; 4] = array(&info, INFO - 4).map_err(|Unknown| io::ErrorKind::InvalidData)?;
        let mut blob = vec![0; ENTRIES + u32::from_ne_bytes(size) as usize];
        blob[..32].copy_from_slice(&table_name);
        blob[32..36].copy_from_slice(&size);
        match ask(socket, GET_ENTRIES, &mut blob) {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && attempt < ATTEMPTS => {}
            outcome => return outcome.map(|()| (info, blob.split_off(ENTRIES))),
        }
    }
}

fn ask(socket: &OwnedFd, option: libc::c_int, buffer: &mut [u8]) -> io::Result<()> {
    let mut length = buffer.len() as libc::socklen_t;
    // SAFETY: the pointer and the length describe `buffer`, which outlives the call.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_IP,
            option,
            buffer.as_mut_ptr().cast(),
            &mut length,
        )
    };
    match status {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The number of packets that each rule of a user-defined chain of `filter` has matched.
pub fn counted(chain: &str) -> Result<Vec<(Rule, u64)>, Error> {
    let name = TableName::Filter;
    let fail = |e| Error::io("read the table", name.to_string(), e);
    let socket = raw_socket()?;
    let (_, blob) = fetch(&socket, name).map_err(fail)?;
    let malformed = |Unknown| fail(io::ErrorKind::InvalidData.into());
    count(&blob, chain).map_err(malformed)
}

fn count(blob: &[u8], chain: &str) -> Result<Vec<(Rule, u64)>, Unknown> {
    let entries = entries(blob)?;
    let names = user_chains(&entries)?;
    let mut inside = false;
    let mut counters = Vec::new();
    for entry in &entries {
        match entry.error_name()? {
            Some(name) => inside = name == chain,
            None if inside => counters.push((entry.rule(&names), entry.packets()?)),
            None => {}
        }
    }
    Ok(counters)
}

/// An entry and its offset.
struct Entry<'a> {
    offset: u32,
    bytes: &'a [u8],
}

fn chains(info: &[u8], blob: &[u8]) -> Result<Vec<Chain>, Unknown> {
    let entries = entries(blob)?;
    let names = user_chains(&entries)?;
    let number = |index: usize| array(info, 32 + 4 * index).map(u32::from_ne_bytes);
    let hooks = number(0)?;
    let mut chains: Vec<Chain> = Vec::new();
    let mut underflow = None;
    for entry in &entries {
        for (hook, name) in HOOKS.iter().enumerate() {
            if hooks & (1 << hook) != 0 && number(1 + hook)? == entry.offset {
                chains.push(Chain::builtin(*name, Policy::Accept, Vec::new()));
                underflow = Some(number(6 + hook)?);
            }
        }
        if let Some(name) = entry.error_name()? {
            chains.push(Chain::user(name, Vec::new()));
            continue;
        }
        let chain = chains.last_mut().ok_or(Unknown)?;
        match underflow == Some(entry.offset) {
            true => chain.policy = Some(entry.policy()?),
            false => chain.rules.push(entry.rule(&names)),
        }
    }
    // The final `ERROR` was decoded as a chain; the last entry of every user-defined chain is its implicit RETURN.
    chains.pop();
    for chain in chains.iter_mut().filter(|chain| chain.policy.is_none()) {
        chain.rules.pop();
    }
    Ok(chains)
}

fn entries(blob: &[u8]) -> Result<Vec<Entry<'_>>, Unknown> {
    let mut entries = Vec::new();
    let mut offset = 0;
    while offset < blob.len() {
        let next = usize::from(u16::from_ne_bytes(array(blob, offset + 90)?));
        let bytes = blob
            .get(offset..offset + next)
            .filter(|bytes| bytes.len() >= ENTRY);
        entries.push(Entry {
            offset: offset as u32,
            bytes: bytes.ok_or(Unknown)?,
        });
        offset += next;
    }
    Ok(entries)
}

/// User-defined chains by their jump offset, that of the first entry after the name.
fn user_chains(entries: &[Entry]) -> Result<Vec<(u32, String)>, Unknown> {
    let named = entries.iter().filter_map(|entry| {
        let start = entry.offset + entry.bytes.len() as u32;
        entry
            .error_name()
            .map(|name| Some((start, name?)))
            .transpose()
    });
    named.collect()
}

impl Entry<'_> {
    fn target(&self) -> Result<(String, u32, &[u8]), Unknown> {
        let at = usize::from(u16::from_ne_bytes(array(self.bytes, 88)?));
        extension(self.bytes.get(at..).ok_or(Unknown)?)
            .map(|(name, revision, data, _)| (name, revision, data))
    }

    /// `struct xt_counters { u64 pcnt, bcnt; }`.
    fn packets(&self) -> Result<u64, Unknown> {
        array(self.bytes, 96).map(u64::from_ne_bytes)
    }

    fn error_name(&self) -> Result<Option<String>, Unknown> {
        let (name, _, data) = self.target()?;
        Ok((name == "ERROR").then(|| text(data)))
    }

    /// A standard target's verdict: `-NF_x - 1`, `XT_RETURN`, or the offset of the next entry.
    fn verdict(&self) -> Result<i32, Unknown> {
        match self.target()? {
            (name, _, data) if name.is_empty() => array(data, 0).map(i32::from_ne_bytes),
            _ => Err(Unknown),
        }
    }

    fn policy(&self) -> Result<Policy, Unknown> {
        match self.verdict()? {
            -1 => Ok(Policy::Drop),
            -2 => Ok(Policy::Accept),
            _ => Err(Unknown),
        }
    }

    fn rule(&self, chains: &[(u32, String)]) -> Rule {
        let mut when = Match::default();
        self.header(&mut when)
            .and_then(|()| self.matches(&mut when))
            .and_then(|()| decode::complete(when, Some(self.then(chains)?)))
            .unwrap_or_else(|Unknown| self.foreign())
    }

    fn foreign(&self) -> Rule {
        let mut sketch = ForeignText::default();
        sketch.add("ip", self.bytes.get(..84).unwrap_or(&[]));
        for (name, _, data) in self.extensions().map_while(Result::ok) {
            sketch.add(format!("match {name}"), data);
        }
        match self.target() {
            // The offset of a jump changes with other rules.
            Ok((name, ..)) if name.is_empty() => sketch.add("verdict", &[]),
            Ok((name, _, data)) => sketch.add(format!("target {name}"), data),
            Err(Unknown) => sketch.add("no target", &[]),
        }
        sketch.foreign()
    }

    /// `struct ipt_ip`: `src, dst, smsk, dmsk, iniface[16], outiface[16]`, their masks, `u16 proto, u8 flags, u8 invflags`.
    fn header(&self, when: &mut Match) -> Decoded {
        const VIA_IN: u8 = 1;
        const VIA_OUT: u8 = 2;
        const SRC: u8 = 8;
        const DST: u8 = 16;
        let ip = self.bytes;
        let [flags, inverted] = array(ip, 82)?;
        if flags != 0 || inverted & !(VIA_IN | VIA_OUT | SRC | DST) != 0 {
            return Err(Unknown);
        }
        let invert = |bit: u8| Inverted::from(inverted & bit != 0);
        when.src = network(array(ip, 0)?, array(ip, 8)?, invert(SRC))?;
        when.dst = network(array(ip, 4)?, array(ip, 12)?, invert(DST))?;
        when.in_if = link(array(ip, 16)?, array(ip, 48)?, invert(VIA_IN))?;
        when.out_if = link(array(ip, 32)?, array(ip, 64)?, invert(VIA_OUT))?;
        when.protocol = match u16::from_ne_bytes(array(ip, 80)?) {
            0 => None,
            number => Some(decode::protocol(number.try_into().map_err(|_| Unknown)?)?),
        };
        Ok(())
    }

    fn matches(&self, when: &mut Match) -> Decoded {
        self.extensions().try_for_each(|extension| {
            let (name, revision, data) = extension?;
            decode::xt_match(when, &name, revision, data)
        })
    }

    /// The matches, each as name, revision and data.
    fn extensions(&self) -> impl Iterator<Item = Result<(String, u32, &[u8]), Unknown>> {
        let end = array(self.bytes, 88).map(|at| usize::from(u16::from_ne_bytes(at)));
        let mut rest = end.and_then(|end| self.bytes.get(ENTRY..end).ok_or(Unknown));
        std::iter::from_fn(move || match std::mem::replace(&mut rest, Ok(&[])) {
            Ok([]) => None,
            Ok(bytes) => Some(extension(bytes).map(|(name, revision, data, size)| {
                rest = Ok(&bytes[size..]);
                (name, revision, data)
            })),
            Err(Unknown) => Some(Err(Unknown)),
        })
    }

    fn then(&self, chains: &[(u32, String)]) -> Result<Target, Unknown> {
        let (name, revision, data) = self.target()?;
        if !name.is_empty() {
            return decode::xt_target(&name, revision, data);
        }
        match self.verdict()? {
            -1 => Ok(Target::Drop),
            -2 => Ok(Target::Accept),
            -5 => Ok(Target::Return),
            // A rule without a target continues at the next entry, which is not the start of a chain.
            offset => chains
                .iter()
                .find(|(start, _)| i64::from(*start) == i64::from(offset))
                .map(|(_, name)| Target::Jump(name.clone()))
                .ok_or(Unknown),
        }
    }
}

/// `u16 size; char name[29]; u8 revision; data`.
fn extension(bytes: &[u8]) -> Result<(String, u32, &[u8], usize), Unknown> {
    let size = usize::from(u16::from_ne_bytes(array(bytes, 0)?));
    let data = bytes.get(EXTENSION..size).ok_or(Unknown)?;
    Ok((text(&bytes[2..31]), u32::from(bytes[31]), data, size))
}

fn network(
    address: [u8; 4],
    mask: [u8; 4],
    inverted: Inverted,
) -> Result<Option<Test<Ipv4Network>>, Unknown> {
    match (address, mask, inverted) {
        ([0, 0, 0, 0], [0, 0, 0, 0], Inverted::No) => Ok(None),
        _ => decode::network(address, mask).map(|network| Some(test(network, inverted))),
    }
}

/// The mask covers the name and, if the full name is compared, its NUL. iptables keeps the `+` in the name, outside the
/// mask.
fn link(
    name: [u8; 16],
    mask: [u8; 16],
    inverted: Inverted,
) -> Result<Option<Test<String>>, Unknown> {
    let covered = mask.iter().take_while(|byte| **byte == 0xff).count();
    if mask[covered..].iter().any(|byte| *byte != 0) {
        return Err(Unknown);
    }
    let compared = &name[..covered];
    let name = match compared.iter().position(|byte| *byte == 0) {
        None if covered == 0 && inverted == Inverted::No => return Ok(None),
        None => decode::link(compared, Exact::Prefix)?,
        Some(end) if end + 1 == covered => decode::link(&compared[..end], Exact::Full)?,
        Some(_) => return Err(Unknown),
    };
    Ok(Some(test(name, inverted)))
}

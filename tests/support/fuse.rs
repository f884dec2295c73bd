//! A FUSE file system with one directory and one file in it. Its server stops answering at a chosen operation.
//! Out of scope: what is done about it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

/// The operation that is never answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hang {
    /// The first message of the kernel: nothing works.
    Init,
    /// A name is looked up.
    Lookup,
    /// The file is opened.
    Open,
    /// The file is read from so many bytes on.
    ReadFrom(u64),
    /// The directory is listed.
    List,
}

/// Mounted in the calling thread's mount namespace. Dropped: the connection ends, and whoever waits gets an error.
pub struct Fuse {
    /// The mount point.
    pub dir: PathBuf,
    /// Closed to end the connection.
    abort: PathBuf,
    server: Option<JoinHandle<()>>,
}

/// The file's name.
pub const FILE: &str = "file.yaml";

const ROOT: u64 = 1;
const CHILD: u64 = 2;

impl Fuse {
    pub fn mount(dir: &Path, content: Vec<u8>, hang: Hang) -> Self {
        std::fs::create_dir_all(dir).expect("a directory");
        let device = File::options().read(true).write(true).open("/dev/fuse");
        let device = device.expect("/dev/fuse: this test needs FUSE");
        let data = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
            device.as_raw_fd()
        );
        let data = std::ffi::CString::new(data).expect("no NUL");
        let flags = rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NODEV;
        rustix::mount::mount("fuse", dir, "fuse", flags, Some(data.as_c_str())).expect("mounted");
        // The minor number of the device of the file system names the connection; stat() would hang.
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").expect("mountinfo");
        let place = dir.to_str().expect("UTF-8");
        let line = mounts.lines().rfind(|line| line.contains(place));
        let device_number = line
            .and_then(|line| line.split(' ').nth(2))
            .expect("its device");
        let minor = device_number.split(':').nth(1).expect("a minor number");
        let abort = mount_control().join(minor).join("abort");
        let server = std::thread::spawn(move || serve(device, &content, hang));
        Self {
            dir: dir.to_owned(),
            abort,
            server: Some(server),
        }
    }
}

/// fusectl, mounted privately: it ends a connection though its descriptor is held by a thread that reads.
fn mount_control() -> PathBuf {
    let dir = PathBuf::from("/run/fusectl");
    if !dir.exists() {
        std::fs::create_dir_all(&dir).expect("a directory");
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("fusectl", &dir, "fusectl", flags, None).expect("fusectl");
    }
    dir
}

impl Drop for Fuse {
    fn drop(&mut self) {
        let _ = std::fs::write(&self.abort, "1");
        let _ = rustix::mount::unmount(&self.dir, rustix::mount::UnmountFlags::DETACH);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

fn serve(mut device: File, content: &[u8], hang: Hang) {
    let mut buffer = vec![0; 1 << 20];
    // ENODEV: the connection has ended. EINTR and ENOENT: an operation was interrupted.
    loop {
        let length = match device.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return,
            Err(_) => continue,
        };
        let request = &buffer[..length];
        let opcode = u32_at(request, 4);
        let (unique, node) = (u64_at(request, 8), u64_at(request, 16));
        let answer = match opcode {
            26 if hang == Hang::Init => continue,
            26 => Ok(init()),
            1 if hang == Hang::Lookup => continue,
            1 if request[40..].starts_with(FILE.as_bytes()) => Ok(entry(content.len())),
            1 => Err(libc::ENOENT),
            3 => Ok([&[0; 16][..], &attributes(node, content.len())].concat()),
            14 if hang == Hang::Open => continue,
            14 | 27 => Ok(vec![0; 16]),
            15 => {
                let (at, size) = (u64_at(request, 48), u32_at(request, 56));
                let end = (at + u64::from(size)).min(content.len() as u64);
                match hang {
                    Hang::ReadFrom(from) if end > from => continue,
                    _ => Ok(content[at.min(end) as usize..end as usize].to_vec()),
                }
            }
            28 if hang == Hang::List => continue,
            28 => Ok(list(u64_at(request, 48))),
            18 | 25 | 29 => Ok(Vec::new()),
            // Forget, interrupt, forget many: nobody waits for an answer.
            2 | 36 | 42 => continue,
            _ => Err(libc::ENOSYS),
        };
        let (error, body) = match answer {
            Ok(body) => (0, body),
            Err(error) => (-error, Vec::new()),
        };
        let mut message = Vec::new();
        message.extend(u32::try_from(16 + body.len()).expect("short").to_le_bytes());
        message.extend(error.to_le_bytes());
        message.extend(unique.to_le_bytes());
        message.extend(body);
        // Whoever asked may have gone.
        let _ = device.write(&message);
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn init() -> Vec<u8> {
    let mut out = Vec::new();
    for word in [7_u32, 31, 0, 0, 0, 65536, 1] {
        out.extend(word.to_le_bytes());
    }
    out.resize(64, 0);
    out
}

fn attributes(node: u64, length: usize) -> Vec<u8> {
    let (mode, size) = match node {
        ROOT => (0o040_755, 0),
        _ => (0o100_644, length as u64),
    };
    let mut out = Vec::new();
    for word in [node, size, size.div_ceil(512), 0, 0, 0] {
        out.extend(word.to_le_bytes());
    }
    for word in [0_u32, 0, 0, mode, 1, 0, 0, 0, 4096, 0] {
        out.extend(word.to_le_bytes());
    }
    out
}

fn entry(length: usize) -> Vec<u8> {
    let mut out = CHILD.to_le_bytes().to_vec();
    out.resize(40, 0);
    out.extend(attributes(CHILD, length));
    out
}

/// One entry, then the end.
fn list(offset: u64) -> Vec<u8> {
    if offset > 0 {
        return Vec::new();
    }
    let mut out = Vec::new();
    out.extend(CHILD.to_le_bytes());
    out.extend(1_u64.to_le_bytes());
    out.extend(u32::try_from(FILE.len()).expect("short").to_le_bytes());
    out.extend(8_u32.to_le_bytes());
    out.extend(FILE.as_bytes());
    out.resize(out.len().next_multiple_of(8), 0);
    out
}

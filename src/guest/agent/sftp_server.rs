//! A server of SFTP, version 3, for one client on standard input and output.
//! Out of scope: permissions, which are those of its process.
//!
//! It follows draft-ietf-secsh-filexfer-02 and the extensions of OpenSSH (its PROTOCOL, 4). It is not that of a crate: names are bytes
//! here, and the agent stays small.
//!
//! Names are bytes. One request is handled after the other; a client may send several before it reads a response. What the client sends is
//! limited: the size of a packet, and the number of open handles. A packet that cannot be parsed ends the server.
//!
//! | file | content |
//! |---|---|
//! | `attributes` | attributes of files, and lines of `ls -l` |
//! | `files` | what requests do |
//! | `handles` | open files and directories |
//! | `packet` | numbers and strings of a packet |

mod attributes;
mod files;
mod handles;
mod packet;

use std::io::{self, BufReader, BufWriter, Read, Write};
use std::process::ExitCode;

use rustix::io::Errno;

use self::attributes::Attributes;
use self::files::Files;
use self::packet::{Malformed, Reader, Writer};

/// The maximum size of a packet of the client, in bytes, as that of OpenSSH.
const MAX_PACKET: usize = 256 << 10;

/// The maximum number of bytes that one request reads, which leaves bytes for the head of the response.
const MAX_READ: usize = MAX_PACKET - 1024;

/// The version of the protocol.
const VERSION: u32 = 3;

/// The extensions, with their versions.
const EXTENSIONS: [(&str, &str); 8] = [
    ("posix-rename@openssh.com", "1"),
    ("statvfs@openssh.com", "2"),
    ("fstatvfs@openssh.com", "2"),
    ("hardlink@openssh.com", "1"),
    ("fsync@openssh.com", "1"),
    ("lsetstat@openssh.com", "1"),
    ("limits@openssh.com", "1"),
    ("expand-path@openssh.com", "1"),
];

/// Types of requests.
mod kind {
    pub const INIT: u8 = 1;
    pub const OPEN: u8 = 3;
    pub const CLOSE: u8 = 4;
    pub const READ: u8 = 5;
    pub const WRITE: u8 = 6;
    pub const LSTAT: u8 = 7;
    pub const FSTAT: u8 = 8;
    pub const SETSTAT: u8 = 9;
    pub const FSETSTAT: u8 = 10;
    pub const OPENDIR: u8 = 11;
    pub const READDIR: u8 = 12;
    pub const REMOVE: u8 = 13;
    pub const MKDIR: u8 = 14;
    pub const RMDIR: u8 = 15;
    pub const REALPATH: u8 = 16;
    pub const STAT: u8 = 17;
    pub const RENAME: u8 = 18;
    pub const READLINK: u8 = 19;
    pub const SYMLINK: u8 = 20;
    pub const EXTENDED: u8 = 200;
}

/// Types of responses.
mod answer {
    pub const VERSION: u8 = 2;
    pub const STATUS: u8 = 101;
    pub const HANDLE: u8 = 102;
    pub const DATA: u8 = 103;
    pub const NAME: u8 = 104;
    pub const ATTRS: u8 = 105;
    pub const EXTENDED: u8 = 201;
}

/// Why a request failed: a status of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// There is no more data, or no more name.
    Eof,
    /// A system call failed.
    System(Errno),
    /// The request is malformed: the server ends.
    Malformed,
    /// There is no such request.
    Unsupported,
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Self {
        Self::System(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::System(Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }
}

impl From<Malformed> for Failure {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

impl Failure {
    /// The code of the status and its message.
    fn status(self) -> (u32, String) {
        match self {
            Self::Eof => (1, "end of file".to_owned()),
            Self::System(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                (2, "no such file".to_owned())
            }
            Self::System(error @ (Errno::ACCESS | Errno::PERM | Errno::ROFS)) => (3, text(error)),
            Self::System(error) => (4, text(error)),
            Self::Malformed => (5, "malformed packet".to_owned()),
            Self::Unsupported => (8, "not supported".to_owned()),
        }
    }
}

fn text(error: Errno) -> String {
    super::error::reason(&error.into())
}

/// What a request returns.
#[derive(Debug)]
enum Answer {
    Done,
    Handle(u32),
    Data(Vec<u8>),
    /// Names, each with the line of `ls -l` and its attributes.
    Names(Vec<(Vec<u8>, Vec<u8>, Attributes)>),
    Attributes(Attributes),
    /// The response of an extension.
    Extended(Vec<u8>),
}

/// The program: serves until the end of standard input.
pub fn main() -> ExitCode {
    let input = BufReader::with_capacity(64 << 10, io::stdin().lock());
    let output = BufWriter::with_capacity(64 << 10, io::stdout().lock());
    match serve(input, output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Serves until the end of the input.
///
/// # Errors
/// The client has left, or sends something else than SFTP.
fn serve(mut input: BufReader<impl Read>, mut output: impl Write) -> io::Result<()> {
    let mut files = Files::default();
    let mut packet = Vec::new();
    loop {
        // What was requested together is answered together.
        if input.buffer().is_empty() {
            output.flush()?;
        }
        if !read_packet(&mut input, &mut packet)? {
            return output.flush();
        }
        let mut reader = Reader::new(&packet);
        let malformed = |_| io::Error::from(io::ErrorKind::InvalidData);
        let kind = reader.u8().map_err(malformed)?;
        let response = match kind {
            kind::INIT => version(),
            _ => {
                let id = reader.u32().map_err(malformed)?;
                let result = files.handle(kind, &mut reader);
                let is_malformed = matches!(result, Err(Failure::Malformed));
                let response = response(id, result);
                if is_malformed {
                    output.write_all(&response)?;
                    output.flush()?;
                    return Err(io::ErrorKind::InvalidData.into());
                }
                response
            }
        };
        output.write_all(&response)?;
    }
}

/// Reads a packet without its length. False at the end of the input.
fn read_packet(input: &mut impl Read, packet: &mut Vec<u8>) -> io::Result<bool> {
    let mut length = [0; 4];
    let first = loop {
        match input.read(&mut length) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => break result?,
        }
    };
    if first == 0 {
        return Ok(false);
    }
    input.read_exact(&mut length[first..])?;
    let length = u32::from_be_bytes(length) as usize;
    if !(1..=MAX_PACKET).contains(&length) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    packet.resize(length, 0);
    input.read_exact(packet)?;
    Ok(true)
}

fn version() -> Vec<u8> {
    let mut writer = Writer::new(answer::VERSION);
    writer.u32(VERSION);
    for (name, version) in EXTENSIONS {
        writer.string(name.as_bytes());
        writer.string(version.as_bytes());
    }
    writer.finish()
}

fn response(id: u32, result: Result<Answer, Failure>) -> Vec<u8> {
    let start = |kind| {
        let mut writer = Writer::new(kind);
        writer.u32(id);
        writer
    };
    let status = |code, message: &str| {
        let mut writer = start(answer::STATUS);
        writer.u32(code);
        writer.string(message.as_bytes());
        writer.string(b"en");
        writer
    };
    let writer = match result {
        Err(failure) => {
            let (code, message) = failure.status();
            status(code, &message)
        }
        Ok(Answer::Done) => status(0, "success"),
        Ok(Answer::Handle(handle)) => {
            let mut writer = start(answer::HANDLE);
            writer.string(&handle.to_be_bytes());
            writer
        }
        Ok(Answer::Data(data)) => {
            let mut writer = start(answer::DATA);
            writer.string(&data);
            writer
        }
        Ok(Answer::Names(names)) => {
            let mut writer = start(answer::NAME);
            writer.u32(u32::try_from(names.len()).unwrap_or(u32::MAX));
            for (name, line, attributes) in names {
                writer.string(&name);
                writer.string(&line);
                attributes.write(&mut writer);
            }
            writer
        }
        Ok(Answer::Attributes(attributes)) => {
            let mut writer = start(answer::ATTRS);
            attributes.write(&mut writer);
            writer
        }
        Ok(Answer::Extended(bytes)) => {
            let mut writer = start(answer::EXTENDED);
            writer.bytes(&bytes);
            writer
        }
    };
    writer.finish()
}

#[cfg(test)]
mod tests;

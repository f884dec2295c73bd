//! Reads the entries of an archive from a stream that may contain anything.
//! Out of scope: files.
//!
//! The crate `tar` decodes the fields of a header. Its iterator is not used: it reads names of any length into memory, and it splits PAX
//! records at newlines, which names may contain.

use std::io::{self, BufRead, Read};

use tar::{EntryType, Header};

use super::entry::{BLOCK, Entry, Kind, is_checksum_correct, padding};
use super::{Error, Limits, names};

/// The maximum size of PAX records and of a GNU long name, in bytes.
const EXTENSION_LIMIT: u64 = 64 << 10;

/// The maximum number of headers with extensions before an entry.
const EXTENSIONS: usize = 8;

/// The maximum size of what follows the end of the archive: the padding of a record.
const TRAILER_LIMIT: u64 = 1 << 20;

/// Reads entries.
pub struct Reader<R> {
    input: R,
    limits: Limits,
    entries: u64,
    bytes: u64,
    /// The rest of the current content, and what follows it up to the next header.
    content: u64,
    padding: usize,
}

/// Values of headers before that of an entry, in place of its own.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
}

impl<R: BufRead> Reader<R> {
    /// Reads an archive within these limits.
    pub fn new(input: R, limits: Limits) -> Self {
        Self {
            input,
            limits,
            entries: 0,
            bytes: 0,
            content: 0,
            padding: 0,
        }
    }

    /// The next entry; `None` at the end of the archive. What was not read of the current content is skipped.
    ///
    /// # Errors
    /// An entry is not accepted; or the stream ends before the end of the archive.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, Error> {
        self.skip()?;
        let mut extensions = Extensions::default();
        for _ in 0..=EXTENSIONS {
            let Some(header) = self.header()? else {
                self.end()?;
                return Ok(None);
            };
            match header.entry_type() {
                EntryType::XHeader => extensions.pax(&self.extension(&header)?)?,
                // Such as the comment of `git archive`; nothing of it is about files.
                EntryType::XGlobalHeader => drop(self.extension(&header)?),
                EntryType::GNULongName => extensions.path = Some(self.long_name(&header)?),
                EntryType::GNULongLink => extensions.target = Some(self.long_name(&header)?),
                kind => return self.entry(&header, kind, extensions).map(Some),
            }
        }
        invalid("an entry has too many extended headers")
    }

    fn entry(
        &mut self,
        header: &Header,
        kind: EntryType,
        extensions: Extensions,
    ) -> Result<Entry, Error> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(Error::Limit {
                limit: self.limits.entries,
                unit: "files",
            });
        }
        let name = extensions
            .path
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let path = names::relative(&name)?;
        let shown = path.display();
        let size = match extensions.size {
            Some(size) => size,
            None => header.entry_size().map_err(|_| bad_field(header, "size"))?,
        };
        let kind = match kind {
            // Before POSIX, a name with `/` at its end was a directory.
            EntryType::Regular if name.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => Kind::File(size),
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => {
                let own = header.link_name_bytes().unwrap_or_default().into_owned();
                Kind::Symlink(names::target(&extensions.target.unwrap_or(own))?)
            }
            EntryType::Link => return invalid(format!("\"{shown}\" is a hard link")),
            EntryType::Char | EntryType::Block => {
                return invalid(format!("\"{shown}\" is a device"));
            }
            EntryType::Fifo => return invalid(format!("\"{shown}\" is a FIFO")),
            other => {
                let kind = char::from(other.as_byte()).escape_default();
                return invalid(format!("\"{shown}\" has the unknown type '{kind}'"));
            }
        };
        match &kind {
            Kind::File(_) if path.as_os_str().is_empty() => {
                return invalid("its root is not a directory");
            }
            Kind::Symlink(_) if path.as_os_str().is_empty() => {
                return invalid("its root is not a directory");
            }
            Kind::File(_) => self.begin(size)?,
            _ if size != 0 => return invalid(format!("\"{shown}\" has a content")),
            _ => {}
        }
        Ok(Entry {
            path,
            kind,
            mode: header.mode().map_err(|_| bad_field(header, "mode"))? & 0o777,
            mtime: header.mtime().map_err(|_| bad_field(header, "mtime"))?,
        })
    }

    /// The content of a file follows.
    fn begin(&mut self, size: u64) -> Result<(), Error> {
        let total = self.bytes.checked_add(size);
        match total.filter(|total| *total <= self.limits.bytes) {
            Some(total) => self.bytes = total,
            None => {
                return Err(Error::Limit {
                    limit: self.limits.bytes,
                    unit: "bytes",
                });
            }
        }
        self.content = size;
        self.padding = padding(size);
        Ok(())
    }

    /// Reads the rest of the content.
    fn skip(&mut self) -> Result<(), Error> {
        let rest = self.content + self.padding as u64;
        self.content = 0;
        self.padding = 0;
        let skipped = io::copy(&mut (&mut self.input).take(rest), &mut io::sink());
        match skipped.map_err(Error::Stream)? == rest {
            true => Ok(()),
            false => Err(truncated()),
        }
    }

    /// The next header; `None` for a block of zeros, which ends the archive.
    fn header(&mut self) -> Result<Option<Header>, Error> {
        let mut block = [0; BLOCK];
        self.exact(&mut block)?;
        if block == [0; BLOCK] {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        match is_checksum_correct(&header) {
            true => Ok(Some(header)),
            false => invalid("the checksum of a header is wrong"),
        }
    }

    /// The content of an extended header.
    fn extension(&mut self, header: &Header) -> Result<Vec<u8>, Error> {
        let size = header.entry_size().map_err(|_| bad_field(header, "size"))?;
        if size > EXTENSION_LIMIT {
            return invalid(format!(
                "an extended header has {size} bytes; the limit is {EXTENSION_LIMIT}"
            ));
        }
        let mut bytes = vec![0; size as usize + padding(size)];
        self.exact(&mut bytes)?;
        bytes.truncate(size as usize);
        Ok(bytes)
    }

    /// A GNU long name, without the NUL byte at its end.
    fn long_name(&mut self, header: &Header) -> Result<Vec<u8>, Error> {
        let mut name = self.extension(header)?;
        if name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    /// Reads the rest of the stream, so that the sender does not get an error for it.
    fn end(&mut self) -> Result<(), Error> {
        let mut rest = (&mut self.input).take(TRAILER_LIMIT + 1);
        match io::copy(&mut rest, &mut io::sink()).map_err(Error::Stream)? {
            0..=TRAILER_LIMIT => Ok(()),
            _ => invalid("data follows its end"),
        }
    }

    fn exact(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        self.input.read_exact(bytes).map_err(|error| match error {
            error if error.kind() == io::ErrorKind::UnexpectedEof => truncated(),
            error => Error::Stream(error),
        })
    }
}

/// Reads the content of the current file.
impl<R: BufRead> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

impl<R: BufRead> BufRead for Reader<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.content == 0 {
            return Ok(&[]);
        }
        let bytes = self.input.fill_buf()?;
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let limit = usize::try_from(self.content).unwrap_or(usize::MAX);
        Ok(&bytes[..bytes.len().min(limit)])
    }

    fn consume(&mut self, length: usize) {
        self.content -= length as u64;
        self.input.consume(length);
    }
}

impl Extensions {
    /// Takes over records `LENGTH KEY=VALUE\n`; the length includes all of it. The last one of a key counts.
    fn pax(&mut self, mut records: &[u8]) -> Result<(), Error> {
        while !records.is_empty() {
            let Some((key, value, rest)) = record(records) else {
                return invalid("a PAX record is malformed");
            };
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.target = Some(value.to_vec()),
                b"size" => {
                    let size = str::from_utf8(value)
                        .ok()
                        .and_then(|size| size.parse().ok());
                    let Some(size) = size else {
                        return invalid("the PAX record \"size\" is not a number");
                    };
                    self.size = Some(size);
                }
                // The format of sparse files of GNU tar: the content is not that of the file.
                key if key.starts_with(b"GNU.sparse.") => {
                    return invalid("a file is stored in the sparse format of GNU tar");
                }
                // Times with fractions, users, extended attributes.
                _ => {}
            }
            records = rest;
        }
        Ok(())
    }
}

/// The key and the value of the first record, and the other records.
fn record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let blank = records.iter().position(|byte| *byte == b' ')?;
    let length: usize = str::from_utf8(&records[..blank]).ok()?.parse().ok()?;
    let (first, rest) = records.split_at_checked(length)?;
    let first = first.get(blank + 1..)?.strip_suffix(b"\n")?;
    let equals = first.iter().position(|byte| *byte == b'=')?;
    Some((&first[..equals], &first[equals + 1..], rest))
}

fn bad_field(header: &Header, field: &str) -> Error {
    let name = header.path_bytes();
    let name = String::from_utf8_lossy(&name);
    Error::Invalid(format!("the field \"{field}\" of \"{name}\" is malformed"))
}

fn truncated() -> Error {
    Error::Invalid("it ends early".to_owned())
}

fn invalid<T>(why: impl Into<String>) -> Result<T, Error> {
    Err(Error::Invalid(why.into()))
}

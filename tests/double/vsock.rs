//! The vsock device with what the tiny guest does behind it: it echoes on one port, and requests a connection on demand.
//! Out of scope: virtual machines; when the device exists.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};

use crate::guest::print;

/// As in `tests/guest/vsock.c`.
const ECHO: &str = "CONNECT 7000";
const HOST_PORT: u32 = 516;

/// Serves connections of the host until the process ends.
pub fn serve(listener: &UnixListener) {
    let listener = listener.try_clone().expect("a descriptor");
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || echo(stream));
        }
    });
}

fn echo(mut stream: UnixStream) -> std::io::Result<()> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < 32 && stream.read(&mut byte)? > 0 && byte != *b"\n" {
        line.push(byte[0]);
    }
    if line != ECHO.as_bytes() {
        return Ok(());
    }
    stream.write_all(b"OK 1073741824\n")?;
    std::io::copy(&mut stream.try_clone()?, &mut stream)?;
    stream.shutdown(Shutdown::Both)
}

/// A connection that the guest requests: a socket of the host with the number of the port in its name, or none.
pub fn dial(listener: &UnixListener) {
    let address = listener.local_addr().expect("a bound socket");
    let path = address.as_pathname().expect("a path").display();
    let answer = match UnixStream::connect(format!("{path}_{HOST_PORT}")) {
        Ok(_) => "accepts",
        Err(_) => "refuses",
    };
    print(&format!("tiny: the host {answer} a connection\r\n"));
}

//! The host's ends: unix sockets that never block, and the line by which a caller names a port.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;

/// The longest line a caller may begin with: `CONNECT 4294967295\n`.
const MAX_LINE_BYTES: usize = 32;

/// Connects to the socket at `path`, or says why that is not possible now. The standard library's
/// `connect` would wait for a listener that does not accept.
pub fn connect(path: &OsStr) -> io::Result<UnixStream> {
    let mut address = libc::sockaddr_un { sun_family: libc::AF_UNIX as libc::sa_family_t, sun_path: [0; 108] };
    let bytes = path.as_bytes();
    if bytes.len() >= address.sun_path.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    // SAFETY: a system call without pointers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let size = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: `address` is a `sockaddr_un` of that size, with a NUL at the end of its path.
    if unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), size) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(UnixStream::from(fd))
}

/// A program that has connected and not yet named a port.
#[derive(Debug)]
pub struct Caller {
    pub stream: UnixStream,
    line: Vec<u8>,
}

impl Caller {
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, line: Vec::with_capacity(MAX_LINE_BYTES) }
    }

    /// The port of `CONNECT <port>\n`, `None` while the line is not complete, an error for anything
    /// else. Read byte by byte, since what follows the line is for the guest.
    pub fn hear(&mut self) -> io::Result<Option<u32>> {
        while self.line.len() < MAX_LINE_BYTES {
            let mut byte = [0];
            match self.stream.read(&mut byte) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) if byte[0] == b'\n' => return parse_connect(&self.line).map(Some),
                Ok(_) => self.line.push(byte[0]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::InvalidData.into())
    }
}

fn parse_connect(line: &[u8]) -> io::Result<u32> {
    let text = std::str::from_utf8(line).map_err(io::Error::other)?;
    let port = text.strip_prefix("CONNECT ").and_then(|number| number.trim_end().parse().ok());
    port.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Tells a caller that the guest has answered, and by which port of the host's.
pub fn answer(mut stream: &UnixStream, port: u32) -> io::Result<()> {
    // Nothing was written to this socket before, so the line fits.
    stream.write_all(format!("OK {port}\n").as_bytes())
}

/// Whether the other end neither sends nor receives any more.
pub fn is_hung_up(stream: &UnixStream) -> bool {
    let mut entry = libc::pollfd { fd: stream.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: `entry` is one `pollfd` that lives through the call.
    let ready = unsafe { libc::poll(&raw mut entry, 1, 0) };
    ready > 0 && entry.revents & libc::POLLHUP != 0
}

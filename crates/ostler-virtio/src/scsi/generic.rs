//! A SCSI device of the host, to which the guest's commands are passed on (`SG_IO` of sg(4) and of block devices).
//!
//! Data goes through a buffer of ours, so that whoever watches or logs guest memory sees it. Task management waits
//! for commands under way; none is taken back, and the device itself is not reset.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr;

use ostler_memory::GuestMap;

use super::Sense;
use super::node::Node;
use super::request::{Request, Response, response};

/// `ioctl` numbers of `scsi/sg.h` and `linux/fs.h`.
const SG_IO: libc::c_ulong = 0x2285;
const SG_GET_VERSION_NUM: libc::c_ulong = 0x2282;
const BLKSECTGET: libc::c_ulong = 0x1267;
/// The version of sg(4) from which on it has `SG_IO`.
const FIRST_VERSION: libc::c_int = 30_000;

const INTERFACE: libc::c_int = b'S' as libc::c_int;
const SG_DXFER_NONE: libc::c_int = -1;
const SG_DXFER_TO_DEV: libc::c_int = -2;
const SG_DXFER_FROM_DEV: libc::c_int = -3;
/// The longest that a command may take. A guest gives up its own sooner, but waits for the device then.
const TIMEOUT_MS: u32 = 60_000;

/// The most data of one command, whatever the device takes.
const MAX_DATA_BYTES: u64 = 1 << 20;
const SECTOR_BYTES: u64 = 512;
/// The longest command block that every kernel passes on.
const MAX_CDB_BYTES: usize = 32;
const VARIABLE_LENGTH: u8 = 0x7f;
const MAX_SENSE_BYTES: usize = 252;

/// `DID_*`: how the host's adapter fared with a command.
mod host {
    pub const OK: u16 = 0;
    pub const NO_CONNECT: u16 = 1;
    pub const BUS_BUSY: u16 = 2;
    pub const TIME_OUT: u16 = 3;
    pub const ABORT: u16 = 5;
    pub const RESET: u16 = 8;
}

/// `struct sg_io_hdr`.
#[repr(C)]
struct Header {
    interface_id: libc::c_int,
    dxfer_direction: libc::c_int,
    cmd_len: u8,
    mx_sb_len: u8,
    iovec_count: u16,
    dxfer_len: u32,
    dxferp: *mut libc::c_void,
    cmdp: *const u8,
    sbp: *mut u8,
    timeout: u32,
    flags: u32,
    pack_id: libc::c_int,
    usr_ptr: *mut libc::c_void,
    status: u8,
    masked_status: u8,
    msg_status: u8,
    sb_len_wr: u8,
    host_status: u16,
    driver_status: u16,
    resid: libc::c_int,
    duration: u32,
    info: u32,
}

/// A device of the host that a unit stands for.
#[derive(Debug)]
pub struct Generic {
    node: Node,
    max_bytes: u64,
}

/// What came of a command: the answer of the device, and whether there is one.
struct Done {
    status: u8,
    host_status: u16,
    sense: Vec<u8>,
    residual: u64,
}

impl Generic {
    /// Opens a `/dev/sgN`, or the block device of a whole SCSI device, for us alone: neither node of the disk is in use by
    /// a mount or another machine.
    ///
    /// `ErrorKind::Unsupported` for what is no SCSI device, or a part of one.
    pub fn open(path: &Path) -> io::Result<Self> {
        let node = Node::open(path)?;
        let mut version: libc::c_int = 0;
        // SAFETY: this request fills an int.
        let known = unsafe { libc::ioctl(node.file.as_raw_fd(), SG_GET_VERSION_NUM, &raw mut version) } == 0;
        if !known || version < FIRST_VERSION {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let max_bytes = device_limit(&node).min(node.segment_limit()).clamp(SECTOR_BYTES, MAX_DATA_BYTES);
        Ok(Self { node, max_bytes })
    }

    /// The most data that one command may have.
    pub fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// Passes a command on, and waits for the device.
    pub(super) fn execute(&self, request: &Request, map: &GuestMap) -> Response {
        let Some(cdb) = command_block(&request.cdb) else {
            return Response::of(request, Err(Sense::INVALID_OPCODE.into()));
        };
        // `Request` has refused those that go both ways.
        let (direction, len) = match (request.data_out.len(), request.data_in.len()) {
            (0, 0) => (SG_DXFER_NONE, 0),
            (0, len) => (SG_DXFER_FROM_DEV, len),
            (len, _) => (SG_DXFER_TO_DEV, len),
        };
        if len > self.max_bytes {
            return Response::of(request, Err(Sense::INVALID_FIELD_IN_CDB.into()));
        }
        let mut data = vec![0; len as usize];
        if direction == SG_DXFER_TO_DEV && request.data_out.read(map, &mut data).is_err() {
            return Response::plain(response::FAILURE);
        }
        match self.pass_on(cdb, direction, &mut data) {
            Ok(done) => answer(request, map, &data, &done),
            Err(error) => refused(request, &error),
        }
    }

    fn pass_on(&self, cdb: &[u8], direction: libc::c_int, data: &mut [u8]) -> io::Result<Done> {
        let mut sense = [0; MAX_SENSE_BYTES];
        let mut header = Header {
            interface_id: INTERFACE,
            dxfer_direction: direction,
            cmd_len: cdb.len() as u8,
            mx_sb_len: sense.len() as u8,
            iovec_count: 0,
            dxfer_len: data.len() as u32,
            dxferp: data.as_mut_ptr().cast(),
            cmdp: cdb.as_ptr(),
            sbp: sense.as_mut_ptr(),
            timeout: TIMEOUT_MS,
            flags: 0,
            pack_id: 0,
            usr_ptr: ptr::null_mut(),
            status: 0,
            masked_status: 0,
            msg_status: 0,
            sb_len_wr: 0,
            host_status: 0,
            driver_status: 0,
            resid: 0,
            duration: 0,
            info: 0,
        };
        // SAFETY: the header names three buffers that live through the call, with their lengths.
        if unsafe { libc::ioctl(self.node.file.as_raw_fd(), SG_IO, &raw mut header) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let written = usize::from(header.sb_len_wr).min(sense.len());
        let residual = u64::try_from(header.resid).unwrap_or(0).min(data.len() as u64);
        Ok(Done { status: header.status, host_status: header.host_status, sense: sense[..written].to_vec(), residual })
    }
}

/// What the device's queue takes at once; no limit where it does not tell.
fn device_limit(node: &Node) -> u64 {
    let is_block = node.is_block;
    let (mut bytes, mut sectors): (libc::c_int, libc::c_ushort) = (0, 0);
    // SAFETY: this request fills an int with bytes for sg(4), and a short with sectors for block devices.
    let result = unsafe {
        match is_block {
            true => libc::ioctl(node.file.as_raw_fd(), BLKSECTGET, &raw mut sectors),
            false => libc::ioctl(node.file.as_raw_fd(), BLKSECTGET, &raw mut bytes),
        }
    };
    match (result, is_block) {
        (0, true) => u64::from(sectors) * SECTOR_BYTES,
        (0, false) => u64::try_from(bytes).unwrap_or(0),
        _ => u64::MAX,
    }
}

/// The part of what the driver sent that is the command block: its operation code says how long that is (SPC-4,
/// section 4.2.5.1). `None` where it is of no length that is known, or longer than what was sent.
fn command_block(sent: &[u8]) -> Option<&[u8]> {
    let opcode = *sent.first()?;
    let len = match opcode >> 5 {
        0 => 6,
        1 | 2 => 10,
        // Of four bytes each (SPC-4, section 4.2.3).
        3 if opcode == VARIABLE_LENGTH => Some(8 + usize::from(*sent.get(7)?)).filter(|len| len % 4 == 0)?,
        4 => 16,
        5 => 12,
        6 | 7 => 10,
        _ => return None,
    };
    sent.get(..len).filter(|block| block.len() <= MAX_CDB_BYTES)
}

fn answer(request: &Request, map: &GuestMap, data: &[u8], done: &Done) -> Response {
    let code = match done.host_status {
        host::OK => response::OK,
        host::NO_CONNECT => response::BAD_TARGET,
        host::BUS_BUSY => response::BUSY,
        host::TIME_OUT | host::ABORT => response::ABORTED,
        host::RESET => response::RESET,
        _ => response::FAILURE,
    };
    let transferred = data.len() as u64 - done.residual;
    let data_in = if request.data_in.is_empty() { 0 } else { transferred };
    if request.data_in.write(map, &data[..data_in as usize]).is_err() {
        return Response::plain(response::FAILURE);
    }
    Response {
        status: done.status,
        residual: done.residual as u32,
        sense: done.sense.clone(),
        data_in,
        ..Response::plain(code)
    }
}

/// What the kernel says of a command that did not reach the device.
fn refused(request: &Request, error: &io::Error) -> Response {
    match error.raw_os_error() {
        // The kernel lets only those with CAP_SYS_RAWIO send what is not on its list.
        Some(libc::EPERM | libc::EACCES) => Response::of(request, Err(Sense::INVALID_OPCODE.into())),
        Some(libc::EINVAL) => Response::of(request, Err(Sense::INVALID_FIELD_IN_CDB.into())),
        Some(libc::ENODEV | libc::ENXIO) => Response::bad_target(),
        Some(libc::ENOMEM | libc::EAGAIN | libc::EBUSY) => Response::plain(response::BUSY),
        Some(libc::EINTR) => Response::plain(response::ABORTED),
        _ => Response::plain(response::FAILURE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_is_laid_out_as_the_kernel_has_it() {
        assert_eq!(size_of::<Header>(), 88);
        assert_eq!(std::mem::offset_of!(Header, status), 64);
        assert_eq!(std::mem::offset_of!(Header, info), 80);
    }

    #[test]
    fn variable_length_is_a_multiple_of_four() {
        assert_eq!(command_block(&[&[0x7f, 0, 0, 0, 0, 0, 0, 1], [0; 24].as_slice()].concat()), None);
    }

    #[test]
    fn command_blocks_are_as_long_as_their_operation_code_says() {
        let sent = |opcode: u8| [&[opcode, 0, 0, 0, 0, 0, 0, 24], [0; 24].as_slice()].concat();
        let len = |opcode| command_block(&sent(opcode)).map(<[u8]>::len);
        assert_eq!([0x12, 0x28, 0x5a, 0x88, 0xa8, 0xc0].map(len), [6, 10, 10, 16, 12, 10].map(Some));
        assert_eq!(len(0x7f), Some(32));
        assert_eq!(len(0x7e), None, "of no length that is known");
        assert_eq!(command_block(&[0x7f, 0, 0, 0, 0, 0, 0, 25]), None, "not all of it was sent");
        let long = [&[0x7f, 0, 0, 0, 0, 0, 0, 32], [0; 40].as_slice()].concat();
        assert_eq!(command_block(&long), None, "longer than the kernel passes on");
        assert_eq!(command_block(&[]), None);
    }

    #[test]
    fn what_is_no_scsi_device_is_refused() {
        for path in ["/dev/null", "/proc/self/exe"] {
            let error = Generic::open(Path::new(path)).expect_err("no SCSI device");
            assert!(matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::ExecutableFileBusy), "{error}");
        }
    }
}

//! `struct virtio_scsi_req_cmd` and `virtio_scsi_resp_cmd` (section 5.6.6.1).

use ostler_memory::GuestMap;

use super::{Address, Failure};
use crate::buffer::Buffer;
use crate::chain::{Broken, Chain};

pub const DEFAULT_CDB_BYTES: u32 = 32;
pub const DEFAULT_SENSE_BYTES: u32 = 96;
/// The driver may choose other sizes, up to what SPC-4 has a use for.
pub const MAX_CDB_BYTES: u32 = 260;
pub const MAX_SENSE_BYTES: u32 = 252;

/// Unit, identifier, attribute, priority and command reference number before the command block.
const BEFORE_CDB_BYTES: usize = 19;
/// Sense length, residual, qualifier, status and response before the sense data.
const BEFORE_SENSE_BYTES: usize = 12;

/// `VIRTIO_SCSI_S_*`.
pub mod response {
    pub const OK: u8 = 0;
    pub const OVERRUN: u8 = 1;
    pub const ABORTED: u8 = 2;
    pub const BAD_TARGET: u8 = 3;
    pub const RESET: u8 = 4;
    pub const BUSY: u8 = 5;
    pub const FAILURE: u8 = 9;
    pub const FUNCTION_REJECTED: u8 = 11;
    pub const INCORRECT_LUN: u8 = 12;
}

const CHECK_CONDITION: u8 = 2;
/// A command block shorter than this is filled up with zeros, so that fields can be read.
const SHORTEST_CDB_BYTES: usize = 32;

/// A command for a unit. Nothing is checked against the unit yet.
#[derive(Clone, Debug)]
pub struct Request {
    /// `None` when the address is of a form that no unit has.
    pub address: Option<Address>,
    pub cdb: Vec<u8>,
    pub data_out: Buffer,
    pub data_in: Buffer,
    pub response: Buffer,
    /// The answer where the request cannot be executed at all.
    pub refused: Option<Response>,
}

impl Request {
    pub fn parse(chain: &Chain, map: &GuestMap, cdb_bytes: u32, sense_bytes: u32) -> Result<Self, Broken> {
        let head_bytes = BEFORE_CDB_BYTES + cdb_bytes as usize;
        let (head, data_out) = chain.readable.split(head_bytes as u64).ok_or(Broken::Request)?;
        let response_bytes = (BEFORE_SENSE_BYTES + sense_bytes as usize) as u64;
        let (response, data_in) = chain.writable.split(response_bytes).ok_or(Broken::Request)?;
        let mut bytes = vec![0; head_bytes.max(BEFORE_CDB_BYTES + SHORTEST_CDB_BYTES)];
        head.read(map, &mut bytes[..head_bytes]).map_err(|_| Broken::NotMemory)?;
        let cdb = bytes.split_off(BEFORE_CDB_BYTES);
        // Both ways at once is for commands that do not exist here.
        let both = !data_out.is_empty() && !data_in.is_empty();
        let refused = both.then(|| Response::plain(response::FAILURE));
        Ok(Self { address: address(&bytes), cdb, data_out, data_in, response, refused })
    }
}

/// The single level form: 1, the target, and the unit in one of two formats, the rest 0.
pub fn address(lun: &[u8]) -> Option<Address> {
    let number = u16::from_be_bytes([lun[2], lun[3]]);
    let format = number >> 14;
    let usual = lun[0] == 1 && format <= 1 && lun[4..8].iter().all(|byte| *byte == 0);
    usual.then_some((lun[1], number & 0x3fff))
}

/// How a request ended.
#[derive(Clone, Debug)]
pub struct Response {
    pub response: u8,
    pub status: u8,
    pub residual: u32,
    pub sense: Vec<u8>,
    /// Bytes from the front of the data-in buffer that were written.
    pub data_in: u64,
}

impl Response {
    /// Without data or sense data.
    pub fn plain(response: u8) -> Self {
        Self { response, status: 0, residual: 0, sense: Vec::new(), data_in: 0 }
    }

    pub fn bad_target() -> Self {
        Self::plain(response::BAD_TARGET)
    }

    /// The response to `request`, which transferred so many bytes.
    pub fn of(request: &Request, result: Result<u64, Failure>) -> Self {
        let room = request.data_in.len() + request.data_out.len();
        match result {
            Ok(bytes) => {
                let data_in = if request.data_in.is_empty() { 0 } else { bytes };
                // A chain is shorter than 4 GiB.
                Self { residual: room.saturating_sub(bytes) as u32, data_in, ..Self::plain(response::OK) }
            }
            Err(Failure::Overrun) => Self::plain(response::OVERRUN),
            Err(Failure::Check(sense)) => Self {
                status: CHECK_CONDITION,
                sense: sense.fixed().to_vec(),
                residual: room as u32,
                ..Self::plain(response::OK)
            },
        }
    }

    pub fn bytes(&self, sense_bytes: usize) -> Vec<u8> {
        let sense = &self.sense[..self.sense.len().min(sense_bytes)];
        let mut bytes = Vec::with_capacity(BEFORE_SENSE_BYTES + sense_bytes);
        bytes.extend((sense.len() as u32).to_le_bytes());
        bytes.extend(self.residual.to_le_bytes());
        bytes.extend([0, 0, self.status, self.response]);
        bytes.extend(sense);
        bytes.resize(BEFORE_SENSE_BYTES + sense_bytes, 0);
        bytes
    }
}

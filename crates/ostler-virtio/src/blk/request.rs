//! From a chain to a request. Nothing is executed here.

use ostler_memory::GuestMap;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use crate::buffer::Buffer;
use crate::chain::{Broken, Chain};

pub const SECTOR_BYTES: u64 = 512;
/// Ranges of one discard or write-zeroes request; the configuration space says so.
pub const MAX_RANGES: u64 = 16;
/// Sectors of one range; the configuration space says so.
pub const MAX_RANGE_SECTORS: u32 = 1 << 22;

const HEADER_BYTES: usize = 16;
const RANGE_BYTES: usize = 16;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// A run of sectors to discard or to zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectorRange {
    pub sector: u64,
    pub sectors: u32,
    /// The zeroes may be a hole.
    pub unmap: bool,
}

/// What the driver wants of the disk. Nothing is checked against the disk yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Read { sector: u64, into: Buffer },
    Write { sector: u64, from: Buffer },
    Flush,
    Identify { into: Buffer },
    Discard(Vec<SectorRange>),
    WriteZeroes(Vec<SectorRange>),
}

/// A request, or the status with which it fails already, and where its status goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    pub request: Result<Request, Status>,
    /// One byte.
    pub status: Buffer,
}

impl Parsed {
    /// The header is the first 16 readable bytes, the status the last writable one, however the
    /// driver cut them into descriptors.
    pub fn parse(chain: &Chain, map: &GuestMap) -> Result<Self, Broken> {
        let (header, payload) = chain.readable.split(HEADER_BYTES as u64).ok_or(Broken::Request)?;
        let data_bytes = chain.writable.len().checked_sub(1).ok_or(Broken::Request)?;
        let (data, status) = chain.writable.split(data_bytes).ok_or(Broken::Request)?;
        Ok(Self { request: request(map, &header, payload, data), status })
    }
}

fn request(map: &GuestMap, header: &Buffer, payload: Buffer, data: Buffer) -> Result<Request, Status> {
    let mut bytes = [0; HEADER_BYTES];
    header.read(map, &mut bytes).map_err(|_| Status::IoError)?;
    let kind = le32(&bytes);
    let sector = le64(&bytes[8..]);
    match kind {
        VIRTIO_BLK_T_IN => Ok(Request::Read { sector, into: data }),
        VIRTIO_BLK_T_OUT => Ok(Request::Write { sector, from: payload }),
        VIRTIO_BLK_T_FLUSH => Ok(Request::Flush),
        VIRTIO_BLK_T_GET_ID => Ok(Request::Identify { into: data }),
        VIRTIO_BLK_T_DISCARD => Ok(Request::Discard(ranges(map, &payload, 0)?)),
        VIRTIO_BLK_T_WRITE_ZEROES => {
            Ok(Request::WriteZeroes(ranges(map, &payload, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP)?))
        }
        _ => Err(Status::Unsupported),
    }
}

/// The ranges in `payload`, none with a flag that is not in `flags`.
fn ranges(map: &GuestMap, payload: &Buffer, flags: u32) -> Result<Vec<SectorRange>, Status> {
    let len = payload.len();
    if len == 0 || !len.is_multiple_of(RANGE_BYTES as u64) || len > MAX_RANGES * RANGE_BYTES as u64 {
        return Err(Status::IoError);
    }
    let mut bytes = vec![0; len as usize];
    payload.read(map, &mut bytes).map_err(|_| Status::IoError)?;
    bytes.chunks_exact(RANGE_BYTES).map(|entry| range(entry, flags)).collect()
}

fn range(entry: &[u8], flags: u32) -> Result<SectorRange, Status> {
    let (sector, sectors, given) = (le64(entry), le32(&entry[8..]), le32(&entry[12..]));
    if given & !flags != 0 {
        return Err(Status::Unsupported);
    }
    if sectors > MAX_RANGE_SECTORS {
        return Err(Status::IoError);
    }
    Ok(SectorRange { sector, sectors, unmap: given & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 })
}

fn le32(bytes: &[u8]) -> u32 {
    bytes[..4].iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

fn le64(bytes: &[u8]) -> u64 {
    u64::from(le32(&bytes[4..])) << 32 | u64::from(le32(bytes))
}

//! A logical unit: a disk or a disc over an image.

use std::sync::Arc;

use ostler_block::{BlockError, Disk as Image};
use ostler_memory::GuestMap;

use super::command::{self, Blocks, be};
use super::request::Request;
use super::sense::{self, Failure, Sense};
use super::tray::Tray;
use crate::buffer::Buffer;

/// The limits that the vital product data names.
pub const MAX_UNMAP_RANGES: u32 = 255;
pub const MAX_UNMAP_BLOCKS: u32 = 1 << 22;
pub const MAX_WRITE_SAME_BLOCKS: u64 = 1 << 16;
const UNMAP_HEADER_BYTES: usize = 8;
const UNMAP_RANGE_BYTES: usize = 16;
/// WRITE SAME writes in pieces of about this size.
const PATTERN_BYTES: usize = 1 << 18;

/// The peripheral device types of SPC-4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Disk = 0,
    /// A CD-ROM.
    Disc = 5,
}

/// One unit. Commands of several queues may be executed at once.
#[derive(Debug)]
pub struct Unit {
    pub kind: Kind,
    pub image: Arc<dyn Image>,
    pub readonly: bool,
    /// ASCII.
    pub serial: Vec<u8>,
    /// What the guest gives up is given back to the host.
    pub discard: bool,
    /// Whether a write may be answered before it is on stable storage.
    pub writeback: bool,
    /// What is best given up at once.
    pub granularity_bytes: u32,
    /// Where a disc is, and how it comes and goes.
    pub tray: Tray,
}

/// Answers with `bytes`, cut off at `room` (the command's allocation length) and the buffer's end.
pub fn answer(request: &Request, map: &GuestMap, bytes: &[u8], room: u64) -> Result<u64, Failure> {
    let len = (bytes.len() as u64).min(room).min(request.data_in.len());
    request.data_in.write(map, &bytes[..len as usize]).map_err(|_| Sense::UNRECOVERED_READ)?;
    Ok(len)
}

impl Unit {
    pub fn block_bytes(&self) -> u64 {
        if self.kind == Kind::Disc { 2048 } else { 512 }
    }

    /// The same drive with another disc in it.
    pub fn with_disc(&self, image: Arc<dyn Image>) -> Self {
        Self { image, tray: Tray::changed(), serial: self.serial.clone(), ..*self }
    }

    pub fn blocks(&self) -> u64 {
        self.image.size() / self.block_bytes()
    }

    pub fn discards(&self) -> bool {
        self.discard && !self.readonly && self.kind == Kind::Disk
    }

    /// Executes a command; the bytes it transferred.
    pub(super) fn execute(&self, request: &Request, map: &GuestMap) -> Result<u64, Failure> {
        use command::*;
        if self.kind == Kind::Disc {
            self.tray.check(request.cdb[0])?;
        }
        match (request.cdb[0], self.kind) {
            (START_STOP_UNIT, Kind::Disc) => Ok(self.tray.start_stop(&request.cdb).map(|()| 0)?),
            (PREVENT_ALLOW, Kind::Disc) => {
                self.tray.lock(&request.cdb);
                Ok(0)
            }
            (TEST_UNIT_READY | START_STOP_UNIT | PREVENT_ALLOW, _) => Ok(0),
            (REQUEST_SENSE, _) => {
                let sense = self.tray.attention().map_or(NO_SENSE, Sense::fixed);
                answer(request, map, &sense, u64::from(request.cdb[4]))
            }
            (INQUIRY, _) => self.inquiry(request, map),
            (MODE_SENSE_6 | MODE_SENSE_10, _) => self.mode_sense(request, map),
            (READ_CAPACITY_10, _) => self.capacity_10(request, map),
            (SERVICE_ACTION_IN_16, _) => self.capacity_16(request, map),
            (READ_6 | READ_10 | READ_12 | READ_16, _) => self.read(request, map),
            (VERIFY_10 | VERIFY_16, _) => self.verify(request),
            (SYNCHRONIZE_CACHE_10 | SYNCHRONIZE_CACHE_16, _) => self.flush().map(|()| 0),
            (WRITE_6 | WRITE_10 | WRITE_12 | WRITE_16, Kind::Disk) => self.write(request, map),
            (WRITE_SAME_10 | WRITE_SAME_16, Kind::Disk) => self.write_same(request, map),
            (UNMAP, Kind::Disk) if self.discards() => self.unmap(request, map),
            (READ_TOC, Kind::Disc) => self.read_toc(request, map),
            (GET_CONFIGURATION, Kind::Disc) => self.configuration(request, map),
            (GET_EVENT_STATUS, Kind::Disc) => self.event_status(request, map),
            (READ_DISC_INFORMATION, Kind::Disc) => self.disc_information(request, map),
            _ => Err(Sense::INVALID_OPCODE.into()),
        }
    }

    fn capacity_10(&self, request: &Request, map: &GuestMap) -> Result<u64, Failure> {
        // What is too large for this command says so by all ones.
        let last = u32::try_from(self.blocks().saturating_sub(1)).unwrap_or(u32::MAX);
        let bytes = [last.to_be_bytes(), (self.block_bytes() as u32).to_be_bytes()].concat();
        answer(request, map, &bytes, bytes.len() as u64)
    }

    fn capacity_16(&self, request: &Request, map: &GuestMap) -> Result<u64, Failure> {
        if request.cdb[1] & 0x1f != command::READ_CAPACITY_16 {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        }
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&self.blocks().saturating_sub(1).to_be_bytes());
        bytes[8..12].copy_from_slice(&(self.block_bytes() as u32).to_be_bytes());
        // Blocks can be given up.
        bytes[14] = if self.discards() { 0x80 } else { 0 };
        answer(request, map, &bytes, be(&request.cdb[10..14]))
    }

    /// Where `blocks` are: offset and length in bytes.
    fn place(&self, blocks: Blocks) -> Result<(u64, u64), Sense> {
        let end = blocks.first.checked_add(blocks.count).ok_or(Sense::OUT_OF_RANGE)?;
        if end > self.blocks() {
            return Err(Sense::OUT_OF_RANGE);
        }
        Ok((blocks.first * self.block_bytes(), blocks.count * self.block_bytes()))
    }

    fn read(&self, request: &Request, map: &GuestMap) -> Result<u64, Failure> {
        let (offset, len) = self.place(command::blocks(&request.cdb))?;
        let (into, _rest) = request.data_in.split(len).ok_or(Failure::Overrun)?;
        into.fill(map, |sink| self.image.read(sink, offset))
            .map_err(|error| sense::of_block(&error, Sense::UNRECOVERED_READ))?;
        Ok(len)
    }

    /// The medium is good; bytes to compare with are not taken.
    fn verify(&self, request: &Request) -> Result<u64, Failure> {
        if request.cdb[1] & 0x06 != 0 {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        }
        self.place(command::blocks(&request.cdb))?;
        Ok(0)
    }

    fn write(&self, request: &Request, map: &GuestMap) -> Result<u64, Failure> {
        let cdb = &request.cdb;
        let (offset, len) = self.writable(command::blocks(cdb))?;
        let (from, _rest) = request.data_out.split(len).ok_or(Failure::Overrun)?;
        from.drain(map, |source| self.image.write(source, offset)).map_err(|error| not_written(&error))?;
        let forced = cdb[0] != command::WRITE_6 && cdb[1] & 0x08 != 0;
        self.settle(forced)?;
        Ok(len)
    }

    fn writable(&self, blocks: Blocks) -> Result<(u64, u64), Sense> {
        if self.readonly { Err(Sense::WRITE_PROTECTED) } else { self.place(blocks) }
    }

    fn flush(&self) -> Result<(), Failure> {
        self.image.flush().map_err(|error| not_written(&error))
    }

    /// After a write: it is on stable storage now where it has to be.
    fn settle(&self, forced: bool) -> Result<(), Failure> {
        if forced || !self.writeback { self.flush() } else { Ok(()) }
    }

    /// One block again and again (SBC-3, section 5.43).
    fn write_same(&self, request: &Request, map: &GuestMap) -> Result<u64, Failure> {
        let cdb = &request.cdb;
        let blocks = command::blocks(cdb);
        let (protected, gives_up) = (cdb[1] & 0xe0 != 0, cdb[1] & 0x08 != 0);
        // NDOB: zeros that are not sent.
        let no_data = cdb[0] == command::WRITE_SAME_16 && cdb[1] & 0x01 != 0;
        if protected || blocks.count == 0 || blocks.count > MAX_WRITE_SAME_BLOCKS || (gives_up && !self.discards()) {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        }
        let (offset, len) = self.writable(blocks)?;
        let mut block = vec![0; self.block_bytes() as usize];
        if !no_data {
            read_all(&request.data_out, map, &mut block)?;
        }
        if block.iter().all(|byte| *byte == 0) {
            self.image.write_zeroes(offset, len, gives_up).map_err(|error| not_written(&error))?;
        } else {
            self.repeat(&block, offset, len)?;
        }
        self.settle(false)?;
        Ok(if no_data { 0 } else { block.len() as u64 })
    }

    fn repeat(&self, block: &[u8], offset: u64, len: u64) -> Result<(), Failure> {
        let piece = block.repeat((PATTERN_BYTES / block.len()).min((len / block.len() as u64) as usize));
        let mut done = 0;
        while done < len {
            let now = (piece.len() as u64).min(len - done);
            self.image.write_bytes(&piece[..now as usize], offset + done).map_err(|error| not_written(&error))?;
            done += now;
        }
        Ok(())
    }

    /// UNMAP (SBC-3, section 5.30). All ranges are checked before the first is touched.
    fn unmap(&self, request: &Request, map: &GuestMap) -> Result<u64, Failure> {
        let room = be(&request.cdb[7..9]);
        if room == 0 {
            return Ok(0);
        }
        let most = (UNMAP_HEADER_BYTES + MAX_UNMAP_RANGES as usize * UNMAP_RANGE_BYTES) as u64;
        if !(UNMAP_HEADER_BYTES as u64..=most).contains(&room) {
            return Err(Sense::LIST_LENGTH.into());
        }
        let mut list = vec![0; room as usize];
        read_all(&request.data_out, map, &mut list)?;
        let said = be(&list[2..4]) as usize;
        let ranges = list[UNMAP_HEADER_BYTES..].get(..said).ok_or(Sense::INVALID_FIELD_IN_LIST)?;
        let mut places = Vec::with_capacity(MAX_UNMAP_RANGES as usize);
        for range in ranges.chunks_exact(UNMAP_RANGE_BYTES) {
            let blocks = Blocks { first: be(&range[..8]), count: be(&range[8..12]) };
            if blocks.count > u64::from(MAX_UNMAP_BLOCKS) {
                return Err(Sense::INVALID_FIELD_IN_LIST.into());
            }
            places.push(self.writable(blocks)?);
        }
        for (offset, len) in places.into_iter().filter(|(_, len)| *len != 0) {
            self.image.discard(offset, len).map_err(|error| not_written(&error))?;
        }
        self.settle(false)?;
        Ok(room)
    }
}

/// REQUEST SENSE has nothing to add but a unit attention: each failure has come with its sense data.
const NO_SENSE: [u8; sense::FIXED_BYTES] = {
    let mut bytes = [0; sense::FIXED_BYTES];
    bytes[0] = 0x70;
    bytes[7] = (sense::FIXED_BYTES - 8) as u8;
    bytes
};

fn not_written(error: &BlockError) -> Failure {
    sense::of_block(error, Sense::WRITE_ERROR)
}

fn read_all(from: &Buffer, map: &GuestMap, bytes: &mut [u8]) -> Result<(), Failure> {
    if from.len() < bytes.len() as u64 {
        return Err(Failure::Overrun);
    }
    from.read(map, bytes).map_err(|_| Sense::WRITE_ERROR.into())
}

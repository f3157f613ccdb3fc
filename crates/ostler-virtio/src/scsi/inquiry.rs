//! INQUIRY, its pages of vital product data, and REPORT LUNS (SPC-4, sections 6.6, 6.33 and 7.8).

use ostler_memory::GuestMap;

use super::command::{INQUIRY, be};
use super::request::Request;
use super::unit::{Kind, MAX_UNMAP_BLOCKS, MAX_UNMAP_RANGES, MAX_WRITE_SAME_BLOCKS, Unit, answer};
use super::{Failure, Sense};

const NO_UNIT: u8 = 0x7f;
const STANDARD_BYTES: usize = 36;

/// The units of a target.
pub fn report_luns(request: &Request, units: &[u16], map: &GuestMap) -> Result<u64, Failure> {
    let mut luns: Vec<u16> = units.to_vec();
    // Unit 0 is there by the rules, if only to be asked this.
    if luns.first() != Some(&0) {
        luns.insert(0, 0);
    }
    let mut bytes = ((luns.len() * 8) as u32).to_be_bytes().to_vec();
    bytes.extend([0; 4]);
    for lun in luns {
        // Up to 255, the peripheral device format; above, flat space.
        let number = if lun < 256 { lun } else { 0x4000 | lun };
        bytes.extend(number.to_be_bytes());
        bytes.extend([0; 6]);
    }
    answer(request, map, &bytes, be(&request.cdb[6..10]))
}

/// The answer to a command for a unit that its target does not have.
pub fn of_no_unit(request: &Request, map: &GuestMap) -> Result<u64, Failure> {
    if request.cdb[0] != INQUIRY {
        return Err(Sense::NO_SUCH_UNIT.into());
    }
    let mut bytes = [0; STANDARD_BYTES];
    (bytes[0], bytes[2], bytes[3], bytes[4]) = (NO_UNIT, 6, 2, (STANDARD_BYTES - 5) as u8);
    answer(request, map, &bytes, be(&request.cdb[3..5]))
}

impl Unit {
    pub(super) fn inquiry(&self, request: &Request, map: &GuestMap) -> Result<u64, Failure> {
        let (wants_page, page) = (request.cdb[1] & 1 != 0, request.cdb[2]);
        let bytes = match (wants_page, page) {
            (false, 0) => self.standard(),
            (true, _) => self.vital_page(page).ok_or(Sense::INVALID_FIELD_IN_CDB)?,
            (false, _) => return Err(Sense::INVALID_FIELD_IN_CDB.into()),
        };
        answer(request, map, &bytes, be(&request.cdb[3..5]))
    }

    fn standard(&self) -> Vec<u8> {
        let removable = if self.kind == Kind::Disc { 0x80 } else { 0 };
        // SPC-4, a response in its format, and command queuing.
        let mut bytes = vec![self.kind as u8, removable, 6, 2, (STANDARD_BYTES - 5) as u8, 0, 0, 2];
        bytes.extend(b"OSTLER  ");
        bytes.extend(if self.kind == Kind::Disc { b"CD-ROM          " } else { b"DISK            " });
        bytes.extend(b"1.0 ");
        bytes
    }

    fn vital_page(&self, page: u8) -> Option<Vec<u8>> {
        let disk = self.kind == Kind::Disk;
        let body = match page {
            0x00 if disk => vec![0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2],
            0x00 => vec![0x00, 0x80, 0x83],
            0x80 => self.serial.clone(),
            0x83 => self.identification(),
            0xb0 if disk => self.limits(),
            // Not a rotating medium.
            0xb1 if disk => [&[0, 1], [0; 58].as_slice()].concat(),
            0xb2 if disk => vec![0, if self.discards() { 0xe0 } else { 0 }, if self.discards() { 2 } else { 0 }, 0],
            _ => return None,
        };
        let mut bytes = vec![self.kind as u8, page];
        bytes.extend((body.len() as u16).to_be_bytes());
        bytes.extend(body);
        Some(bytes)
    }

    /// By vendor and serial number, in ASCII.
    fn identification(&self) -> Vec<u8> {
        let text = [b"OSTLER  ", self.serial.as_slice()].concat();
        [&[2, 1, 0, text.len() as u8], text.as_slice()].concat()
    }

    fn limits(&self) -> Vec<u8> {
        let mut bytes = vec![0; 60];
        // WRITE SAME of 0 blocks is refused.
        bytes[0] = 1;
        if self.discards() {
            bytes[16..20].copy_from_slice(&MAX_UNMAP_BLOCKS.to_be_bytes());
            bytes[20..24].copy_from_slice(&MAX_UNMAP_RANGES.to_be_bytes());
            bytes[24..28].copy_from_slice(&(self.granularity_bytes / self.block_bytes() as u32).max(1).to_be_bytes());
        }
        bytes[32..40].copy_from_slice(&MAX_WRITE_SAME_BLOCKS.to_be_bytes());
        bytes
    }
}

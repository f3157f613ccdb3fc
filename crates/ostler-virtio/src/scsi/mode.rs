//! MODE SENSE (SPC-4, section 6.11): the pages that systems look at.

use ostler_memory::GuestMap;

use super::command::{MODE_SENSE_6, be};
use super::request::Request;
use super::unit::{Kind, Unit, answer};
use super::{Failure, Sense};

const CACHING: u8 = 0x08;
const CONTROL: u8 = 0x0a;
const CAPABILITIES: u8 = 0x2a;
const ALL_PAGES: u8 = 0x3f;
const CHANGEABLE: u8 = 1;
const SAVED: u8 = 3;

impl Unit {
    pub(super) fn mode_sense(&self, request: &Request, map: &GuestMap) -> Result<u64, Failure> {
        let cdb = &request.cdb;
        let (values, page, subpage) = (cdb[2] >> 6, cdb[2] & 0x3f, cdb[3]);
        if values == SAVED || (subpage != 0 && subpage != 0xff) {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        }
        let mut pages = Vec::new();
        for number in [CACHING, CONTROL, CAPABILITIES] {
            if page == number || page == ALL_PAGES {
                pages.extend(self.page(number, values == CHANGEABLE));
            }
        }
        if pages.is_empty() && page != ALL_PAGES && page != 0 {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        }
        let parameter = if self.kind == Kind::Disk { self.protection_byte() } else { 0 };
        let (header, room) = if cdb[0] == MODE_SENSE_6 {
            (vec![(3 + pages.len()) as u8, 0, parameter, 0], u64::from(cdb[4]))
        } else {
            let len = (6 + pages.len()) as u16;
            ([&len.to_be_bytes(), [0, parameter, 0, 0, 0, 0].as_slice()].concat(), be(&cdb[7..9]))
        };
        answer(request, map, &[header, pages].concat(), room)
    }

    /// WP, and DPOFUA: a write may ask for stable storage.
    fn protection_byte(&self) -> u8 {
        (if self.readonly { 0x80 } else { 0 }) | 0x10
    }

    fn page(&self, number: u8, changeable: bool) -> Vec<u8> {
        let len = match (number, self.kind) {
            (CACHING, Kind::Disk) => 18,
            (CONTROL, Kind::Disk) => 10,
            (CAPABILITIES, Kind::Disc) => 20,
            _ => return Vec::new(),
        };
        let mut bytes = vec![0; 2 + len];
        (bytes[0], bytes[1]) = (number, len as u8);
        match number {
            // WCE; nothing can be changed.
            CACHING if !changeable && self.writeback => bytes[2] = 0x04,
            // CD-R and DVD-ROM can be read; a tray.
            CAPABILITIES if !changeable => (bytes[2], bytes[6]) = (0x3b, 0x29),
            _ => {}
        }
        bytes
    }
}

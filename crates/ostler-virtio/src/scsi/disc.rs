//! What a CD-ROM is asked besides (MMC-6): a disc of one track of data.

use ostler_memory::GuestMap;

use super::command::be;
use super::request::Request;
use super::unit::{Unit, answer};
use super::{Failure, Sense};

const LEAD_OUT: u8 = 0xaa;
/// Blocks of two seconds, by which addresses in minutes are ahead.
const LEAD_IN_BLOCKS: u64 = 150;
const BLOCKS_A_SECOND: u64 = 75;
const PROFILE_CD_ROM: u16 = 0x0008;
const MEDIA_EVENTS: u8 = 4;
const MEDIA_PRESENT: u8 = 0b10;

impl Unit {
    /// READ TOC/PMA/ATIP, section 6.25.
    pub(super) fn read_toc(&self, request: &Request, map: &GuestMap) -> Result<u64, Failure> {
        let cdb = &request.cdb;
        let (in_minutes, first) = (cdb[1] & 2 != 0, cdb[6]);
        let room = be(&cdb[7..9]);
        match cdb[2] & 0xf {
            0 if first <= 1 || first == LEAD_OUT => {
                let mut bytes = vec![0, 0, 1, 1];
                if first <= 1 {
                    bytes.extend(track(1, 0, in_minutes));
                }
                bytes.extend(track(LEAD_OUT, self.blocks(), in_minutes));
                bytes[1] = (bytes.len() - 2) as u8;
                answer(request, map, &bytes, room)
            }
            // One session, which begins with track 1.
            1 => answer(request, map, &[&[0, 10, 1, 1], track(1, 0, in_minutes).as_slice()].concat(), room),
            _ => Err(Sense::INVALID_FIELD_IN_CDB.into()),
        }
    }

    /// GET CONFIGURATION, section 6.5: a drive of one profile.
    pub(super) fn configuration(&self, request: &Request, map: &GuestMap) -> Result<u64, Failure> {
        let profile = PROFILE_CD_ROM.to_be_bytes();
        // The list of profiles: persistent, current, four bytes of one profile.
        let feature = [0, 0, 3, 4, profile[0], profile[1], 1, 0];
        let mut bytes = vec![0, 0, 0, 0, 0, 0, profile[0], profile[1]];
        if be(&request.cdb[2..4]) == 0 {
            bytes.extend(feature);
        }
        bytes[3] = (bytes.len() - 4) as u8;
        answer(request, map, &bytes, be(&request.cdb[7..9]))
    }

    /// GET EVENT STATUS NOTIFICATION, section 6.6: a disc that has come or gone, once, and whether there is one.
    pub(super) fn event_status(&self, request: &Request, map: &GuestMap) -> Result<u64, Failure> {
        if request.cdb[1] & 1 == 0 {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        }
        let room = be(&request.cdb[7..9]);
        if request.cdb[4] & (1 << MEDIA_EVENTS) == 0 {
            return answer(request, map, &[0, 2, 0x80, 1 << MEDIA_EVENTS], room);
        }
        let is_there = if self.tray.has_disc() { MEDIA_PRESENT } else { 0 };
        let event = [0, 6, MEDIA_EVENTS, 1 << MEDIA_EVENTS, self.tray.event(), is_there, 0, 0];
        answer(request, map, &event, room)
    }

    /// READ DISC INFORMATION, section 6.21: complete, one session, one track.
    pub(super) fn disc_information(&self, request: &Request, map: &GuestMap) -> Result<u64, Failure> {
        let mut bytes = vec![0; 34];
        bytes[..7].copy_from_slice(&[0, 32, 0x0e, 1, 1, 1, 1]);
        answer(request, map, &bytes, be(&request.cdb[7..9]))
    }
}

/// An entry of the table of contents; data, recorded without interruption.
fn track(number: u8, block: u64, in_minutes: bool) -> [u8; 8] {
    let place = if in_minutes {
        let at = block + LEAD_IN_BLOCKS;
        let (seconds, frame) = (at / BLOCKS_A_SECOND, at % BLOCKS_A_SECOND);
        [0, (seconds / 60) as u8, (seconds % 60) as u8, frame as u8]
    } else {
        (block as u32).to_be_bytes()
    };
    [0, 0x14, number, 0, place[0], place[1], place[2], place[3]]
}

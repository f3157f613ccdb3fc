//! The tray of a disc's drive: whether the disc is in, and what is yet to be told of its changes
//! (SPC-4, section 5.14; MMC-6, sections 6.6, 6.15 and 6.40).

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use super::Sense;
use super::command::{self, GET_CONFIGURATION, GET_EVENT_STATUS, INQUIRY, REQUEST_SENSE};

/// Codes of media events.
const NEW_MEDIA: u8 = 2;
const MEDIA_REMOVAL: u8 = 3;
/// What START STOP UNIT does to the tray.
const LOAD_EJECT: u8 = 0b10;
const START: u8 = 0b01;

/// By default the disc is in, as it always was.
#[derive(Debug, Default)]
pub struct Tray {
    is_out: AtomicBool,
    is_locked: AtomicBool,
    /// The next command that may is told that there is another disc.
    attention: AtomicBool,
    /// The media event to report, 0 for none.
    event: AtomicU8,
}

impl Tray {
    /// One into which another disc was just put.
    pub fn changed() -> Self {
        let tray = Self::default();
        tray.put_in();
        tray
    }

    pub fn has_disc(&self) -> bool {
        !self.is_out.load(Ordering::Acquire)
    }

    fn put_in(&self) {
        self.is_out.store(false, Ordering::Release);
        self.attention.store(true, Ordering::Release);
        self.event.store(NEW_MEDIA, Ordering::Release);
    }

    /// Takes the disc out, whether or not the guest has locked it.
    pub fn take_out(&self) {
        self.is_out.store(true, Ordering::Release);
        self.is_locked.store(false, Ordering::Release);
        self.attention.store(false, Ordering::Release);
        self.event.store(MEDIA_REMOVAL, Ordering::Release);
    }

    /// Whether `opcode` may go on now.
    pub fn check(&self, opcode: u8) -> Result<(), Sense> {
        let asks = matches!(opcode, INQUIRY | REQUEST_SENSE | GET_CONFIGURATION | GET_EVENT_STATUS);
        if !asks && let Some(attention) = self.attention() {
            return Err(attention);
        }
        let without = matches!(
            opcode,
            command::START_STOP_UNIT | command::PREVENT_ALLOW | command::MODE_SENSE_6 | command::MODE_SENSE_10
        );
        if asks || without || self.has_disc() { Ok(()) } else { Err(Sense::NO_MEDIUM) }
    }

    /// The unit attention that has not been reported; it is now. REQUEST SENSE tells it instead of failing.
    pub fn attention(&self) -> Option<Sense> {
        self.attention.swap(false, Ordering::AcqRel).then_some(Sense::MEDIUM_CHANGED)
    }

    /// After a reset, nobody prevents that the disc is taken out (SPC-4, section 6.20).
    pub fn reset(&self) {
        self.is_locked.store(false, Ordering::Release);
    }

    /// The media event that has not been reported.
    pub fn event(&self) -> u8 {
        self.event.swap(0, Ordering::AcqRel)
    }

    /// START STOP UNIT.
    pub fn start_stop(&self, cdb: &[u8]) -> Result<(), Sense> {
        match (cdb[4] & (LOAD_EJECT | START), self.has_disc()) {
            (LOAD_EJECT, true) if self.is_locked.load(Ordering::Acquire) => return Err(Sense::REMOVAL_PREVENTED),
            (LOAD_EJECT, true) => self.take_out(),
            (0b11, false) => self.put_in(),
            _ => {}
        }
        Ok(())
    }

    /// PREVENT ALLOW MEDIUM REMOVAL.
    pub fn lock(&self, cdb: &[u8]) {
        self.is_locked.store(cdb[4] & 1 != 0, Ordering::Release);
    }
}

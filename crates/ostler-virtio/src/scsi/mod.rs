//! virtio-scsi (virtio 1.2, section 5.6): logical units of targets, over disk images.
//!
//! A request is a command block of SPC-4, SBC-3 or MMC-6 for one unit. It is parsed
//! ([`request`], [`command`]), then executed by the [`unit::Unit`]; what the guest asks about a unit
//! is answered in [`inquiry`] and [`mode`].
//!
//! Commands are executed one after the other in each queue, so a task is either not begun or done:
//! task management waits for what is being executed.
//!
//! Commands for a device of the host are passed on as they are ([`generic`]).
//!
//! Not modelled: persistent reservations, protection information, unit attentions but those of another disc, command
//! priorities.

mod command;
mod control;
mod disc;
mod generic;
mod inquiry;
mod mode;
mod node;
mod request;
mod sense;
mod tray;
mod unit;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use ostler_block::Disk as Image;
use ostler_memory::GuestMap;

pub use control::ControlService;
pub use generic::Generic;
pub use request::{DEFAULT_CDB_BYTES, DEFAULT_SENSE_BYTES, MAX_CDB_BYTES, MAX_SENSE_BYTES};
pub use tray::Tray;
pub use unit::{Kind, Unit};

use crate::chain::{Broken, Chain};
use crate::worker::{Outcome, Service};
use request::{Request, Response};
use sense::{Failure, Sense};

/// Target and logical unit.
pub type Address = (u8, u16);

/// What is at an address.
#[derive(Clone, Debug)]
enum Occupant {
    Unit(Arc<Unit>),
    Generic(Arc<Generic>),
}

/// The units there are, shared by the queues of one device.
#[derive(Debug)]
pub struct Bus {
    units: RwLock<BTreeMap<Address, Occupant>>,
    cdb_bytes: AtomicU32,
    sense_bytes: AtomicU32,
    /// Held for reading while a command is executed, for writing to wait for all of them.
    executing: RwLock<()>,
}

impl Default for Bus {
    fn default() -> Self {
        Self {
            units: RwLock::default(),
            cdb_bytes: AtomicU32::new(DEFAULT_CDB_BYTES),
            sense_bytes: AtomicU32::new(DEFAULT_SENSE_BYTES),
            executing: RwLock::default(),
        }
    }
}

impl Bus {
    /// Puts `unit` at `address`; what was there is gone.
    pub fn attach(&self, address: Address, unit: Unit) {
        self.put(address, Occupant::Unit(Arc::new(unit)));
    }

    /// Puts a device of the host at `address`; what was there is gone. Its commands may take long: others of the same
    /// queue wait for them.
    pub fn pass_through(&self, address: Address, device: Generic) {
        self.put(address, Occupant::Generic(Arc::new(device)));
    }

    fn put(&self, address: Address, occupant: Occupant) {
        self.units.write().unwrap_or_else(PoisonError::into_inner).insert(address, occupant);
    }

    /// Takes the unit at `address` away, once no command is executed; whether there was one.
    pub fn detach(&self, address: Address) -> bool {
        let was_there = self.units.write().unwrap_or_else(PoisonError::into_inner).remove(&address).is_some();
        self.settle();
        was_there
    }

    /// Takes the disc out of the drive at `address`; whether there is such a drive.
    pub fn eject(&self, address: Address) -> bool {
        let drive = self.unit(address).filter(|unit| unit.kind == Kind::Disc);
        drive.inspect(|drive| drive.tray.take_out()).is_some()
    }

    /// Puts a disc into the drive at `address`, in place of what is in it; whether there is such a
    /// drive. What was in it is not used any more then.
    pub fn insert(&self, address: Address, image: Arc<dyn Image>) -> bool {
        let Some(drive) = self.unit(address).filter(|unit| unit.kind == Kind::Disc) else { return false };
        self.attach(address, drive.with_disc(image));
        self.settle();
        true
    }

    /// The sizes of command blocks and sense data in requests, as the driver wants them; what is
    /// beyond the limits is brought to them.
    pub fn set_sizes(&self, cdb_bytes: u32, sense_bytes: u32) {
        self.cdb_bytes.store(cdb_bytes.min(MAX_CDB_BYTES), Ordering::Release);
        self.sense_bytes.store(sense_bytes.min(MAX_SENSE_BYTES), Ordering::Release);
    }

    fn sizes(&self) -> (u32, u32) {
        (self.cdb_bytes.load(Ordering::Acquire), self.sense_bytes.load(Ordering::Acquire))
    }

    fn occupant(&self, address: Address) -> Option<Occupant> {
        self.units.read().unwrap_or_else(PoisonError::into_inner).get(&address).cloned()
    }

    fn unit(&self, address: Address) -> Option<Arc<Unit>> {
        match self.occupant(address)? {
            Occupant::Unit(unit) => Some(unit),
            Occupant::Generic(_) => None,
        }
    }

    /// The units of a target; empty when there is no such target.
    fn units_of(&self, target: u8) -> Vec<u16> {
        let units = self.units.read().unwrap_or_else(PoisonError::into_inner);
        units.range((target, 0)..=(target, u16::MAX)).map(|((_, lun), _)| *lun).collect()
    }

    /// Brings the unit at `address`, or `all` of its target, to what a driver begins with.
    fn reset(&self, address: Address, all: bool) {
        let units = self.units.read().unwrap_or_else(PoisonError::into_inner);
        for ((target, lun), occupant) in units.iter() {
            if let (Occupant::Unit(unit), true) = (occupant, *target == address.0 && (all || *lun == address.1)) {
                unit.tray.reset();
            }
        }
    }

    /// Waits for the commands that are being executed.
    fn settle(&self) {
        drop(self.executing.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn execute(&self, request: &Request, map: &GuestMap) -> Response {
        let Some((target, lun)) = request.address else { return Response::bad_target() };
        let units = self.units_of(target);
        if units.is_empty() {
            return Response::bad_target();
        }
        let _executing = self.executing.read().unwrap_or_else(PoisonError::into_inner);
        let result = if request.cdb[0] == command::REPORT_LUNS {
            inquiry::report_luns(request, &units, map)
        } else {
            match self.occupant((target, lun)) {
                Some(Occupant::Generic(device)) => return device.execute(request, map),
                Some(Occupant::Unit(unit)) => unit.execute(request, map),
                None => inquiry::of_no_unit(request, map),
            }
        };
        Response::of(request, result)
    }
}

/// Serves one request queue.
#[derive(Debug)]
pub struct RequestService(pub Arc<Bus>);

impl Service for RequestService {
    fn serve(&mut self, chain: &Chain, map: &GuestMap) -> Result<Outcome, Broken> {
        let (cdb_bytes, sense_bytes) = self.0.sizes();
        let request = Request::parse(chain, map, cdb_bytes, sense_bytes)?;
        let response = match &request.refused {
            Some(refused) => refused.clone(),
            None => self.0.execute(&request, map),
        };
        let header = response.bytes(sense_bytes as usize);
        request.response.write(map, &header).map_err(|_| Broken::NotMemory)?;
        // The data is behind the response: the front of the buffer is written up to its end.
        Ok(Outcome::Done((header.len() as u64 + response.data_in) as u32))
    }
}

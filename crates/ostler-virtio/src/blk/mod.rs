//! virtio-blk (virtio 1.2, section 5.2): requests are parsed, then executed, in different files.

mod disk;
mod request;

use std::sync::Arc;

use ostler_memory::GuestMap;

pub use disk::{Disk, SERIAL_BYTES};
pub use request::{MAX_RANGE_SECTORS, MAX_RANGES, Parsed, Request, SECTOR_BYTES, SectorRange, Status};

use crate::chain::{Broken, Chain};
use crate::worker::{Outcome, Service};

/// Serves one request queue of a disk.
#[derive(Debug)]
pub struct BlkService(pub Arc<Disk>);

impl Service for BlkService {
    fn serve(&mut self, chain: &Chain, map: &GuestMap) -> Result<Outcome, Broken> {
        let parsed = Parsed::parse(chain, map)?;
        let (status, data_bytes) = match parsed.request {
            Ok(request) => self.0.execute(&request, map),
            Err(status) => (status, 0),
        };
        if parsed.status.write(map, &[status as u8]).is_err() {
            return Ok(Outcome::Done(0));
        }
        // The length says how much from the front of the buffer was written; the status is its end.
        let whole = u64::from(data_bytes) + 1 == chain.writable.len();
        Ok(Outcome::Done(if whole { data_bytes + 1 } else { data_bytes }))
    }
}

//! The control queue (section 5.6.6.2): task management and asynchronous notification.

use std::sync::Arc;

use ostler_memory::GuestMap;

use super::Bus;
use super::request::{address, response};
use crate::chain::{Broken, Chain};
use crate::worker::{Outcome, Service};

const TASK_MANAGEMENT: u32 = 0;
const NOTIFICATION_QUERY: u32 = 1;
const NOTIFICATION_SUBSCRIBE: u32 = 2;

/// Type, subtype, unit, identifier.
const TASK_BYTES: usize = 24;
/// Type, unit, events.
const NOTIFICATION_BYTES: usize = 16;
/// I_T NEXUS RESET, which is the whole target's, and LOGICAL UNIT RESET.
const NEXUS_RESET: u32 = 4;
const RESETS: [u32; 2] = [NEXUS_RESET, 5];
/// The last of the task management functions, QUERY TASK SET.
const LAST_FUNCTION: u32 = 7;

/// Serves the control queue.
#[derive(Debug)]
pub struct ControlService(pub Arc<Bus>);

impl Service for ControlService {
    fn serve(&mut self, chain: &Chain, map: &GuestMap) -> Result<Outcome, Broken> {
        let mut request = [0; TASK_BYTES];
        let len = chain.readable.len().min(TASK_BYTES as u64) as usize;
        chain.readable.read(map, &mut request[..len]).map_err(|_| Broken::NotMemory)?;
        let answer = match (le32(&request), len) {
            (TASK_MANAGEMENT, TASK_BYTES) => vec![self.manage(le32(&request[4..]), &request[8..16])],
            (NOTIFICATION_QUERY | NOTIFICATION_SUBSCRIBE, NOTIFICATION_BYTES..) => {
                // No event of the kind that is asked for here is ever reported.
                vec![0, 0, 0, 0, self.found(&request[4..12])]
            }
            _ => return Err(Broken::Request),
        };
        if chain.writable.len() < answer.len() as u64 {
            return Err(Broken::Request);
        }
        chain.writable.write(map, &answer).map_err(|_| Broken::NotMemory)?;
        Ok(Outcome::Done(answer.len() as u32))
    }
}

impl ControlService {
    fn found(&self, lun: &[u8]) -> u8 {
        let Some((target, lun)) = address(lun) else { return response::BAD_TARGET };
        let units = self.0.units_of(target);
        match (units.is_empty(), units.contains(&lun)) {
            (true, _) => response::BAD_TARGET,
            (_, false) => response::INCORRECT_LUN,
            _ => response::OK,
        }
    }

    /// Whatever the function, no task is left afterwards: FUNCTION COMPLETE is `OK`.
    fn manage(&self, function: u32, lun: &[u8]) -> u8 {
        if function > LAST_FUNCTION {
            return response::FUNCTION_REJECTED;
        }
        self.0.settle();
        let found = self.found(lun);
        if let (response::OK, true, Some(address)) = (found, RESETS.contains(&function), address(lun)) {
            self.0.reset(address, function == NEXUS_RESET);
        }
        found
    }
}

fn le32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

//! The control queue (virtio 1.2, section 5.1.6.5).

use std::sync::Arc;

use ostler_memory::GuestMap;

use super::filter::{MAX_ADDRESSES, Mac};
use super::hash::HashConfig;
use super::nic::{Nic, features};
use crate::buffer::Buffer;
use crate::chain::{Broken, Chain};
use crate::worker::{Outcome, Service};

const OK: u8 = 0;
const ERR: u8 = 1;

const CTRL_RX: u8 = 0;
const CTRL_MAC: u8 = 1;
const CTRL_VLAN: u8 = 2;
const CTRL_ANNOUNCE: u8 = 3;
const CTRL_MQ: u8 = 4;
const CTRL_GUEST_OFFLOADS: u8 = 5;

const MAC_TABLE_SET: u8 = 0;
const MAC_ADDR_SET: u8 = 1;
const VLAN_ADD: u8 = 0;
const VLAN_DEL: u8 = 1;
const MQ_VQ_PAIRS_SET: u8 = 0;
const MQ_HASH_CONFIG: u8 = 2;

/// Class and command before, the acknowledgement after what a command carries.
const HEAD_BYTES: usize = 2;

#[derive(Debug)]
pub struct ControlService(pub Arc<Nic>);

impl Service for ControlService {
    fn serve(&mut self, chain: &Chain, map: &GuestMap) -> Result<Outcome, Broken> {
        if chain.writable.is_empty() {
            return Err(Broken::Request);
        }
        let mut command = Command { buffer: &chain.readable, map, at: 0 };
        let done = self.execute(&mut command).is_some();
        chain.writable.write(map, &[if done { OK } else { ERR }]).map_err(|_| Broken::NotMemory)?;
        Ok(Outcome::Done(1))
    }
}

/// Reads a command from its front.
struct Command<'c> {
    buffer: &'c Buffer,
    map: &'c GuestMap,
    at: u64,
}

impl Command<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.buffer.read_at(self.map, self.at, &mut bytes).ok()?;
        self.at += N as u64;
        Some(bytes)
    }

    fn skip(&mut self, bytes: u64) -> Option<()> {
        self.at = self.at.checked_add(bytes).filter(|&at| at <= self.buffer.len())?;
        Some(())
    }

    /// A list of addresses, or its inner `None` when it is longer than we keep.
    fn addresses(&mut self) -> Option<Option<Vec<Mac>>> {
        let count = u32::from_le_bytes(self.take()?);
        if count as usize > MAX_ADDRESSES {
            self.skip(u64::from(count) * 6)?;
            return Some(None);
        }
        (0..count).map(|_| self.take()).collect::<Option<Vec<_>>>().map(Some)
    }
}

impl ControlService {
    /// `None` when the command cannot be done; nothing has changed then.
    fn execute(&self, command: &mut Command<'_>) -> Option<()> {
        let [class, number] = command.take::<HEAD_BYTES>()?;
        match class {
            CTRL_RX => self.receive_mode(number, command.take::<1>()?[0] != 0),
            CTRL_MAC => self.address(number, command),
            CTRL_VLAN => self.vlan(number, u16::from_le_bytes(command.take()?)),
            CTRL_ANNOUNCE if number == 0 => {
                self.0.set_announcing(false);
                Some(())
            }
            CTRL_MQ => self.queues(number, command),
            CTRL_GUEST_OFFLOADS if number == 0 => self.offloads(u64::from_le_bytes(command.take()?)),
            _ => None,
        }
    }

    fn receive_mode(&self, number: u8, on: bool) -> Option<()> {
        let mut settings = self.0.settings();
        let filter = &mut settings.filter;
        let mode = match number {
            0 => &mut filter.promiscuous,
            1 => &mut filter.all_multicast,
            2 => &mut filter.all_unicast,
            3 => &mut filter.no_multicast,
            4 => &mut filter.no_unicast,
            5 => &mut filter.no_broadcast,
            _ => return None,
        };
        *mode = on;
        Some(())
    }

    fn address(&self, number: u8, command: &mut Command<'_>) -> Option<()> {
        match number {
            MAC_TABLE_SET => {
                let (unicast, multicast) = (command.addresses()?, command.addresses()?);
                self.0.settings().filter.set_tables(unicast, multicast);
            }
            MAC_ADDR_SET if self.0.has(features::CTRL_MAC_ADDR) => self.0.settings().filter.mac = command.take()?,
            _ => return None,
        }
        Some(())
    }

    fn vlan(&self, number: u8, vlan: u16) -> Option<()> {
        let member = match number {
            VLAN_ADD => true,
            VLAN_DEL => false,
            _ => return None,
        };
        self.0.settings().filter.set_vlan(vlan, member).then_some(())
    }

    fn queues(&self, number: u8, command: &mut Command<'_>) -> Option<()> {
        match number {
            MQ_VQ_PAIRS_SET if self.0.has(features::MQ) => {
                let pairs = u16::from_le_bytes(command.take()?);
                let possible = (1..=self.0.max_pairs()).contains(&pairs);
                possible.then(|| self.0.set_pairs(pairs))
            }
            MQ_HASH_CONFIG if self.0.has(features::HASH_REPORT) => {
                let types = u32::from_le_bytes(command.take()?);
                command.skip(8)?;
                let [key_len] = command.take::<1>()?;
                let mut key = vec![0; key_len.into()];
                command.buffer.read_at(command.map, command.at, &mut key).ok()?;
                self.0.settings().hash = HashConfig::new(types, &key)?;
                Some(())
            }
            _ => None,
        }
    }

    fn offloads(&self, wanted: u64) -> Option<()> {
        let negotiated = (0..64).map(|bit| 1 << bit).filter(|&bit| features::OFFLOADS & bit != 0 && self.0.has(bit));
        let allowed = negotiated.fold(0, |all, bit| all | bit);
        (wanted & !allowed == 0).then(|| self.0.set_offloads(wanted))
    }
}

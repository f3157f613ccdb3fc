//! Which frames a NIC lets through to its driver (virtio 1.2, sections 5.1.6.5.1 to 5.1.6.5.3).

use super::frame;

pub type Mac = [u8; 6];

/// Addresses of a kind that a driver may name; with more, it gets all of that kind.
pub const MAX_ADDRESSES: usize = 256;
const VLANS: usize = 4096;
const BROADCAST: Mac = [0xff; 6];

/// What the driver has asked for on the control queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub mac: Mac,
    pub promiscuous: bool,
    pub all_multicast: bool,
    pub all_unicast: bool,
    pub no_multicast: bool,
    pub no_unicast: bool,
    pub no_broadcast: bool,
    pub unicast: Vec<Mac>,
    pub multicast: Vec<Mac>,
    /// Tagged frames are let through by `vlans` only.
    pub vlan_filtering: bool,
    /// A bit for each of 4096 VLANs; empty while none was named.
    pub vlans: Vec<u64>,
}

impl Filter {
    /// What a driver without a control queue gets: every frame.
    pub fn open(mac: Mac) -> Self {
        Self { mac, promiscuous: true, ..Self::default() }
    }

    pub fn passes(&self, frame: &[u8]) -> bool {
        let Some(destination) = frame.first_chunk::<6>() else { return false };
        self.passes_vlan(frame) && (self.promiscuous || self.passes_address(destination))
    }

    fn passes_vlan(&self, frame: &[u8]) -> bool {
        !self.vlan_filtering || frame::vlan(frame).is_none_or(|vlan| self.has_vlan(vlan))
    }

    fn passes_address(&self, destination: &Mac) -> bool {
        if *destination == BROADCAST {
            !self.no_broadcast
        } else if destination[0] & 1 != 0 {
            !self.no_multicast && (self.all_multicast || self.multicast.contains(destination))
        } else {
            !self.no_unicast && (self.all_unicast || *destination == self.mac || self.unicast.contains(destination))
        }
    }

    pub fn has_vlan(&self, vlan: u16) -> bool {
        self.vlans.get(usize::from(vlan) / 64).is_some_and(|bits| bits >> (vlan % 64) & 1 != 0)
    }

    /// False when there is no such VLAN.
    pub fn set_vlan(&mut self, vlan: u16, member: bool) -> bool {
        if usize::from(vlan) >= VLANS {
            return false;
        }
        self.vlans.resize(VLANS / 64, 0);
        let Some(bits) = self.vlans.get_mut(usize::from(vlan) / 64) else { return false };
        let bit = 1 << (vlan % 64);
        *bits = if member { *bits | bit } else { *bits & !bit };
        true
    }

    /// Takes the tables the driver gave; one that is too long becomes "all of that kind".
    pub fn set_tables(&mut self, unicast: Option<Vec<Mac>>, multicast: Option<Vec<Mac>>) {
        self.all_unicast = unicast.is_none();
        self.all_multicast |= multicast.is_none();
        self.unicast = unicast.unwrap_or_default();
        self.multicast = multicast.unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = [0x52, 0x54, 0, 1, 2, 3];
    const OTHER: Mac = [0x52, 0x54, 0, 9, 9, 9];
    const GROUP: Mac = [0x33, 0x33, 0, 0, 0, 1];

    fn frame(destination: Mac) -> Vec<u8> {
        [&destination[..], &[0; 54]].concat()
    }

    #[test]
    fn filter_lets_own_and_named_addresses_through() {
        let mut filter = Filter { mac: OWN, ..Filter::default() };
        assert!(filter.passes(&frame(OWN)));
        assert!(filter.passes(&frame(BROADCAST)));
        assert!(!filter.passes(&frame(OTHER)));
        assert!(!filter.passes(&frame(GROUP)));
        filter.set_tables(Some(vec![OTHER]), Some(vec![GROUP]));
        assert!(filter.passes(&frame(OTHER)) && filter.passes(&frame(GROUP)));
        filter.no_multicast = true;
        assert!(!filter.passes(&frame(GROUP)));
        assert!(Filter::open(OWN).passes(&frame(OTHER)));
        assert!(!filter.passes(&[0xff; 5]));
    }

    #[test]
    fn filter_keeps_tagged_frames_to_named_vlans() {
        let mut filter = Filter { mac: OWN, vlan_filtering: true, ..Filter::default() };
        let mut tagged = frame(OWN);
        tagged[12..16].copy_from_slice(&[0x81, 0, 0x60, 7]);
        assert!(!filter.passes(&tagged));
        assert!(filter.set_vlan(7, true));
        assert!(filter.passes(&tagged));
        assert!(filter.set_vlan(7, false) && !filter.passes(&tagged));
        assert!(!filter.set_vlan(4096, true));
        assert!(filter.passes(&frame(OWN)), "a frame without a tag");
    }
}

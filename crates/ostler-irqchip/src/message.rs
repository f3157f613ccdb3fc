//! What travels between interrupt controllers: one interrupt and the local APICs it is meant for.

use ostler_engine::Msi;

/// Addresses every local APIC, in any mode.
pub const EVERYONE: u32 = 0xFFFF_FFFF;

/// The delivery mode field that ICR, LVT, redirection entries and MSI data share (SDM 3A 11.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    Fixed,
    LowestPriority,
    Smi,
    Reserved,
    Nmi,
    Init,
    Startup,
    ExtInt,
}

impl Delivery {
    /// Decodes the low three bits of `field`.
    pub fn decode(field: u32) -> Self {
        match field & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            3 => Self::Reserved,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::Startup,
            _ => Self::ExtInt,
        }
    }

    /// Whether the message's vector ends up in IRR.
    pub fn has_vector(self) -> bool {
        matches!(self, Self::Fixed | Self::LowestPriority)
    }
}

/// One interrupt on its way to local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// An APIC id, or a set of logical ids; [`EVERYONE`], and 0xFF for xAPICs, are broadcasts.
    pub destination: u32,
    pub logical: bool,
    pub delivery: Delivery,
    pub vector: u8,
    /// Level-triggered: its EOI is of interest to the IOAPIC.
    pub level: bool,
}

impl Message {
    /// Decodes an MSI (SDM 3A 11.11), with the destination bits 8..15 of `KVM_FEATURE_MSI_EXT_DEST_ID`
    /// in address bits 5..12. `None` when the address is not one of local APICs.
    pub fn from_msi(msi: Msi) -> Option<Self> {
        if msi.address >> 20 != 0xFEE {
            return None;
        }
        let address = msi.address as u32;
        let redirection_hint = address & 1 << 3 != 0;
        let delivery = match Delivery::decode(msi.data >> 8) {
            Delivery::Fixed if redirection_hint => Delivery::LowestPriority,
            delivery => delivery,
        };
        Some(Self {
            destination: (address >> 12 & 0xFF) | (address >> 5 & 0x7F) << 8,
            logical: address & 1 << 2 != 0,
            delivery,
            vector: msi.data as u8,
            level: msi.data & 1 << 15 != 0,
        })
    }

    /// The MSI that [`Message::from_msi`] decodes to this.
    pub fn to_msi(&self) -> Msi {
        const BASE: u64 = 0xFEE0_0000;
        const ASSERT: u32 = 1 << 14;
        let destination = u64::from(self.destination);
        let address = BASE | (destination & 0xFF) << 12 | (destination >> 8 & 0x7F) << 5 | u64::from(self.logical) << 2;
        let trigger = if self.level { 1 << 15 | ASSERT } else { 0 };
        Msi { address, data: u32::from(self.vector) | (self.delivery as u32) << 8 | trigger }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn msi_decodes_to_its_fields() {
        let message = Message::from_msi(Msi { address: 0xFEE0_3004, data: 0x8141 }).expect("an APIC address");
        let expected =
            Message { destination: 3, logical: true, delivery: Delivery::LowestPriority, vector: 0x41, level: true };
        assert_eq!(message, expected);
    }

    #[test]
    fn msi_with_extended_destination_reaches_past_255() {
        let message = Message::from_msi(Msi { address: 0xFEE0_1020, data: 0x30 }).expect("an APIC address");
        assert_eq!(message.destination, 0x101);
    }

    #[test]
    fn msi_with_redirection_hint_goes_to_the_lowest_priority() {
        let message = Message::from_msi(Msi { address: 0xFEE0_000C, data: 0x30 }).expect("an APIC address");
        assert_eq!(message.delivery, Delivery::LowestPriority);
    }

    #[test]
    fn message_becomes_the_msi_it_came_from() {
        for (address, data) in [(0xFEE0_3004, 0xC141), (0xFEE0_1020, 0x30), (0xFEEF_F000, 0x400), (0xFEE0_0FE0, 0x20)] {
            let msi = Msi { address, data };
            assert_eq!(Message::from_msi(msi).expect("an APIC address").to_msi(), msi);
        }
    }

    #[test]
    fn msi_to_memory_is_no_interrupt() {
        assert_eq!(Message::from_msi(Msi { address: 0xFED0_0000, data: 0x30 }), None);
        assert_eq!(Message::from_msi(Msi { address: 0x1_FEE0_0000, data: 0x30 }), None);
    }
}

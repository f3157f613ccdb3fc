//! PIC, IOAPIC and PIT in the kernel: their wiring and their state. [`crate::split`] is the other way.

use kvm_bindings::*;
use kvm_ioctls::VmFd;
use ostler_engine::accel::Result;
use ostler_engine::irq::MsiRouteEntry;
use ostler_engine::regs::{IoapicState, IrqchipState, PicState, PitChannelState};
use ostler_engine::{AccelError, Msi};

use crate::ioctl::host;

/// Inputs of the IOAPIC; interrupts from here on are messages.
pub const PINS: u32 = 24;
/// The ISA timer's GSI, and the IOAPIC pin it has on every PC (ACPI tells by an override).
const TIMER_GSI: u32 = 0;
const TIMER_PIN: u32 = 2;
/// Input 2 of the PIC is the cascade.
const CASCADE_GSI: u32 = 2;

/// Port 0x61: the gate of counter 2 and the speaker's data.
const SPEAKER_GATE: u8 = 1;
const SPEAKER_DATA: u8 = 2;

/// Creates the chips and wires them as a PC's are.
pub fn create(vm: &VmFd) -> Result<()> {
    vm.create_irq_chip().map_err(host("KVM_CREATE_IRQCHIP"))?;
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(host("KVM_CREATE_PIT2"))?;
    set_routing(vm, &[])
}

/// Replaces the routing table: the wires of the chips, and `messages`.
pub fn set_routing(vm: &VmFd, messages: &[kvm_irq_routing_entry]) -> Result<()> {
    let mut entries = wires();
    entries.extend(messages);
    set_table(vm, &entries)
}

/// Replaces the routing table by `entries`.
pub fn set_table(vm: &VmFd, entries: &[kvm_irq_routing_entry]) -> Result<()> {
    let table = KvmIrqRouting::from_entries(entries)
        .map_err(|_| AccelError::Unavailable("KVM routes 4096 interrupts, and all are in use".into()))?;
    vm.set_gsi_routing(&table).map_err(host("KVM_SET_GSI_ROUTING"))
}

fn wires() -> Vec<kvm_irq_routing_entry> {
    let mut entries = Vec::new();
    for gsi in (0..PINS).filter(|gsi| *gsi != CASCADE_GSI) {
        if gsi < 16 {
            let chip = if gsi < 8 { KVM_IRQCHIP_PIC_MASTER } else { KVM_IRQCHIP_PIC_SLAVE };
            entries.push(wire(gsi, chip, gsi % 8));
        }
        entries.push(wire(gsi, KVM_IRQCHIP_IOAPIC, if gsi == TIMER_GSI { TIMER_PIN } else { gsi }));
    }
    entries
}

fn wire(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
    entry
}

/// An entry of the routing table that is a message.
pub fn message(route: &MsiRouteEntry) -> kvm_irq_routing_entry {
    let (address_lo, address_hi) = address_of(route.msi);
    let mut entry = kvm_irq_routing_entry { gsi: route.gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi = kvm_irq_routing_msi { address_lo, address_hi, data: route.msi.data, ..Default::default() };
    entry
}

/// Whether a line is one that the chips have.
pub fn has_line(gsi: u32) -> bool {
    gsi < PINS && gsi != CASCADE_GSI
}

/// A message as `KVM_SIGNAL_MSI` takes it. Address bits 5..=11 are bits 8..=14 of the destination (KVM's
/// `MSI_EXT_DEST_ID`); KVM wants those in the upper half, where VT-d's remapping has them.
pub fn kvm_msi_of(msi: Msi) -> kvm_msi {
    let (address_lo, address_hi) = address_of(msi);
    kvm_msi { address_lo, address_hi, data: msi.data, ..Default::default() }
}

fn address_of(msi: Msi) -> (u32, u32) {
    const HIGH_DESTINATION: u32 = 0xfe0;
    let (low, high) = (msi.address as u32, (msi.address >> 32) as u32);
    (low & !HIGH_DESTINATION, high | (low & HIGH_DESTINATION) << 3)
}

/// `clock_ns` is the VM's clock now.
pub fn state(vm: &VmFd, clock_ns: u64) -> Result<IrqchipState> {
    let pit = vm.get_pit2().map_err(host("KVM_GET_PIT2"))?;
    let age_from = monotonic_ns();
    let channel = |channel: &kvm_pit_channel_state| {
        let age = age_from.saturating_sub(channel.count_load_time);
        pit_channel(channel, (clock_ns as i64).wrapping_sub(age))
    };
    Ok(IrqchipState {
        pics: [pic(vm, KVM_IRQCHIP_PIC_MASTER)?, pic(vm, KVM_IRQCHIP_PIC_SLAVE)?],
        ioapic: ioapic(vm)?,
        pit: [0, 1, 2].map(|number| channel(&pit.channels[number])),
        speaker: speaker(&pit),
    })
}

/// Counters start anew: KVM takes the moment of this call for the one they were loaded at.
pub fn set_state(vm: &VmFd, state: &IrqchipState) -> Result<()> {
    for (chip, pic) in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE].into_iter().zip(&state.pics) {
        set_chip(vm, chip, kvm_irqchip__bindgen_ty_1 { pic: kvm_pic_of(pic) })?;
    }
    set_chip(vm, KVM_IRQCHIP_IOAPIC, kvm_irqchip__bindgen_ty_1 { ioapic: kvm_ioapic_of(&state.ioapic) })?;
    let mut pit =
        kvm_pit_state2 { channels: state.pit.map(|channel| kvm_pit_channel_of(&channel)), ..Default::default() };
    pit.channels[2].gate = state.speaker & SPEAKER_GATE;
    if state.speaker & SPEAKER_DATA != 0 {
        pit.flags |= KVM_PIT_FLAGS_SPEAKER_DATA_ON;
    }
    vm.set_pit2(&pit).map_err(host("KVM_SET_PIT2"))
}

fn speaker(pit: &kvm_pit_state2) -> u8 {
    let data = if pit.flags & KVM_PIT_FLAGS_SPEAKER_DATA_ON != 0 { SPEAKER_DATA } else { 0 };
    data | pit.channels[2].gate & SPEAKER_GATE
}

/// The clock by which KVM's PIT counts.
fn monotonic_ns() -> i64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a timespec to be written.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

fn get_chip(vm: &VmFd, chip_id: u32) -> Result<kvm_irqchip> {
    let mut chip = kvm_irqchip { chip_id, ..Default::default() };
    vm.get_irqchip(&mut chip).map_err(host("KVM_GET_IRQCHIP"))?;
    Ok(chip)
}

fn set_chip(vm: &VmFd, chip_id: u32, chip: kvm_irqchip__bindgen_ty_1) -> Result<()> {
    vm.set_irqchip(&kvm_irqchip { chip_id, chip, ..Default::default() }).map_err(host("KVM_SET_IRQCHIP"))
}

fn pic(vm: &VmFd, chip_id: u32) -> Result<PicState> {
    // SAFETY: the kernel filled the member that belongs to this chip.
    let from = unsafe { get_chip(vm, chip_id)?.chip.pic };
    Ok(PicState {
        last_irr: from.last_irr,
        irr: from.irr,
        imr: from.imr,
        isr: from.isr,
        priority_add: from.priority_add,
        irq_base: from.irq_base,
        read_reg_select: from.read_reg_select,
        poll: from.poll,
        special_mask: from.special_mask,
        init_state: from.init_state,
        auto_eoi: from.auto_eoi,
        rotate_on_auto_eoi: from.rotate_on_auto_eoi,
        special_fully_nested_mode: from.special_fully_nested_mode,
        init4: from.init4,
        elcr: from.elcr,
        elcr_mask: from.elcr_mask,
    })
}

fn kvm_pic_of(from: &PicState) -> kvm_pic_state {
    kvm_pic_state {
        last_irr: from.last_irr,
        irr: from.irr,
        imr: from.imr,
        isr: from.isr,
        priority_add: from.priority_add,
        irq_base: from.irq_base,
        read_reg_select: from.read_reg_select,
        poll: from.poll,
        special_mask: from.special_mask,
        init_state: from.init_state,
        auto_eoi: from.auto_eoi,
        rotate_on_auto_eoi: from.rotate_on_auto_eoi,
        special_fully_nested_mode: from.special_fully_nested_mode,
        init4: from.init4,
        elcr: from.elcr,
        elcr_mask: from.elcr_mask,
    }
}

fn ioapic(vm: &VmFd) -> Result<IoapicState> {
    // SAFETY: the kernel filled the member that belongs to this chip.
    let from = unsafe { get_chip(vm, KVM_IRQCHIP_IOAPIC)?.chip.ioapic };
    Ok(IoapicState {
        base_address: from.base_address,
        ioregsel: from.ioregsel,
        id: from.id,
        irr: from.irr,
        // SAFETY: both members of the union are the same 64 bits.
        redirtbl: from.redirtbl.map(|entry| unsafe { entry.bits }),
    })
}

fn kvm_ioapic_of(from: &IoapicState) -> kvm_ioapic_state {
    kvm_ioapic_state {
        base_address: from.base_address,
        ioregsel: from.ioregsel,
        id: from.id,
        irr: from.irr,
        redirtbl: from.redirtbl.map(|bits| kvm_ioapic_state__bindgen_ty_1 { bits }),
        ..Default::default()
    }
}

/// Before the first control word KVM has a mode that is none, and a count that nobody wrote. With any other mode it
/// counts as soon as the state is set.
const NO_MODE: u8 = 0xff;
const RESET_MODE: u8 = 3;

fn pit_channel(from: &kvm_pit_channel_state, count_load_time_ns: i64) -> PitChannelState {
    let (mode, count) = if from.mode == NO_MODE { (RESET_MODE, 0) } else { (from.mode, from.count) };
    PitChannelState {
        count,
        latched_count: from.latched_count,
        count_latched: from.count_latched,
        status_latched: from.status_latched,
        status: from.status,
        read_state: from.read_state,
        write_state: from.write_state,
        write_latch: from.write_latch,
        rw_mode: from.rw_mode,
        mode,
        bcd: from.bcd,
        gate: from.gate,
        count_load_time_ns,
    }
}

fn kvm_pit_channel_of(from: &PitChannelState) -> kvm_pit_channel_state {
    let never_programmed = from.count == 0 && from.mode == RESET_MODE;
    kvm_pit_channel_state {
        count: from.count,
        latched_count: from.latched_count,
        count_latched: from.count_latched,
        status_latched: from.status_latched,
        status: from.status,
        read_state: from.read_state,
        write_state: from.write_state,
        write_latch: from.write_latch,
        rw_mode: from.rw_mode,
        mode: if never_programmed { NO_MODE } else { from.mode },
        bcd: from.bcd,
        gate: from.gate,
        count_load_time: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timer_reaches_pin_2_and_the_cascade_nothing() {
        let pins = |gsi| -> Vec<_> {
            // SAFETY: every wire is an entry of kind IRQCHIP.
            let pin = |entry: &kvm_irq_routing_entry| unsafe { (entry.u.irqchip.irqchip, entry.u.irqchip.pin) };
            wires().iter().filter(|entry| entry.gsi == gsi).map(pin).collect()
        };
        assert_eq!(pins(0), [(KVM_IRQCHIP_PIC_MASTER, 0), (KVM_IRQCHIP_IOAPIC, 2)]);
        assert_eq!(pins(2), []);
        assert_eq!(pins(12), [(KVM_IRQCHIP_PIC_SLAVE, 4), (KVM_IRQCHIP_IOAPIC, 12)]);
        assert_eq!(pins(23), [(KVM_IRQCHIP_IOAPIC, 23)]);
        assert!(has_line(0) && !has_line(2) && !has_line(24));
    }

    #[test]
    fn message_to_a_high_apic_id_has_its_bits_where_kvm_wants_them() {
        let low = kvm_msi_of(Msi { address: 0xfee0_1004, data: 0x41 });
        assert_eq!((low.address_lo, low.address_hi, low.data), (0xfee0_1004, 0, 0x41));
        let id = 0x12c; // 300
        let high = kvm_msi_of(Msi { address: 0xfee0_0000 | (id & 0xff) << 12 | (id >> 8) << 5, data: 0 });
        assert_eq!((high.address_lo, high.address_hi), (0xfee2_c000, 0x100));
    }
}

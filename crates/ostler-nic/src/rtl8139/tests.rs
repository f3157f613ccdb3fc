use ostler_memory::{GuestRam, SlotConfig};

use super::*;

const MAC: Mac = [0x52, 0x54, 0, 1, 2, 3];

fn multicast(chip: &mut Rtl8139, address: [u8; 6]) {
    let bit = packet::crc(&address) >> 26;
    chip.write(1, (reg::MAR + (bit / 8) as usize) as u64, 1, 1 << (bit % 8));
}

#[test]
fn chip_says_which_it_is_and_what_its_address_is() {
    for (plus, version) in [(true, reg::TCR_PLUS), (false, reg::TCR_PLAIN)] {
        let mut chip = Rtl8139::new(MAC, true, plus);
        assert_eq!(chip.read(0, reg::TCR as u64, 4) as u32 & reg::TCR_VERSION, version);
        chip.write(0, reg::TCR as u64, 4, u32::MAX.into());
        assert_eq!(chip.read(0, reg::TCR as u64, 4) as u32 & reg::TCR_VERSION, version);
        assert_eq!(chip.read(1, 0, 8) & 0xffff_ffff_ffff, 0x0302_0100_5452);
    }
}

#[test]
fn frames_pass_by_address_hash_and_mode() {
    let mut chip = Rtl8139::new(MAC, true, true);
    let frame = |to: [u8; 6]| [&to[..], &[0; 54]].concat();
    let group = [0x33, 0x33, 0, 0, 0, 1];
    assert!(!chip.accepts(&frame(MAC)), "no mode is set");
    chip.write(0, reg::RCR as u64, 4, 0x0e);
    assert!(chip.accepts(&frame(MAC)) && chip.accepts(&frame([0xff; 6])));
    assert!(!chip.accepts(&frame([2; 6])) && !chip.accepts(&frame(group)));
    multicast(&mut chip, group);
    assert!(chip.accepts(&frame(group)));
    chip.write(0, reg::RCR as u64, 4, 1);
    assert!(chip.accepts(&frame([2; 6])));
    assert!(!chip.accepts(&[0; 5]));
}

#[test]
fn interrupt_status_is_cleared_by_ones_and_link_is_told() {
    let mut chip = Rtl8139::new(MAC, true, true);
    let now = Instant::now();
    chip.write(0, reg::IMR as u64, 2, reg::ISR_LINK.into());
    assert!(!chip.interrupting(now));
    chip.set_link(false);
    assert!(chip.interrupting(now));
    assert_ne!(chip.read(0, reg::MSR as u64, 1) as u8 & reg::MSR_LINK_DOWN, 0);
    assert_eq!(chip.read(0, reg::BMSR as u64, 2) as u16 & reg::BMSR_UP, 0);
    chip.write(0, reg::ISR as u64, 2, reg::ISR_LINK.into());
    assert!(!chip.interrupting(now));
}

fn owned(saved: Saved) -> Vec<(String, Vec<u32>)> {
    saved.into_iter().map(|(name, words)| (name.to_owned(), words)).collect()
}

#[test]
fn dump_of_statistics_is_done_when_it_is_in_memory() {
    const TALLY: u64 = 0x1000;
    let ram = GuestRam::new();
    ram.set_slot(SlotConfig { size: 0x2000, ..SlotConfig::default() }).expect("a slot");
    let (map, mut frame) = (ram.map(), Frame::default());
    let mut chip = Rtl8139::new(MAC, true, true);
    let pending = |chip: &mut Rtl8139| chip.read(0, reg::DTCCR as u64, 4) as u32 & reg::DTCCR_COMMAND != 0;
    let ask = |chip: &mut Rtl8139| {
        ram.write(TALLY, &[0xff; TALLY_BYTES]).expect("memory");
        chip.write(0, reg::DTCCR as u64, 8, TALLY | u64::from(reg::DTCCR_COMMAND))
    };
    let written = || {
        let mut bytes = [0xff; TALLY_BYTES];
        ram.read(TALLY, &mut bytes).expect("memory");
        bytes == [0; TALLY_BYTES]
    };
    chip.write(0, reg::CPCR as u64, 2, reg::CPCR_TRANSMIT.into());
    assert_eq!(ask(&mut chip), Work::Anything);
    assert!(pending(&mut chip) && !written());
    let mut other = Rtl8139::new(MAC, true, true);
    other.load(&owned(chip.save())).expect("loads");
    assert!(!chip.take_frame(&map, &mut frame));
    assert!(!pending(&mut chip) && written());
    ask(&mut chip);
    chip.write(0, reg::DTCCR as u64, 4, 0);
    assert!(!chip.take_frame(&map, &mut frame) && !written(), "the driver has given up");
    assert!(pending(&mut other));
    assert!(!other.take_frame(&map, &mut frame));
    assert!(!pending(&mut other) && written());
}

#[test]
fn state_loaded_has_no_bits_that_no_driver_sets() {
    let mut chip = Rtl8139::new(MAC, true, true);
    let mut saved = owned(chip.save());
    saved[0].1.fill(0xff);
    chip.load(&saved).expect("loads");
    assert_eq!(chip.read(0, reg::TCR as u64, 4) as u32 & reg::TCR_VERSION, reg::TCR_PLUS);
    assert_eq!(chip.registers[reg::CR], reg::CR_TRANSMIT | reg::CR_RECEIVE);
    assert_eq!(chip.word(reg::IMR), 0xffff);
}

#[test]
fn state_saved_is_what_another_chip_has_after_loading() {
    let mut one = Rtl8139::new(MAC, true, true);
    one.write(0, reg::IMR as u64, 2, 0x1234);
    one.write(0, reg::TPPOLL as u64, 1, 0x40);
    let saved = owned(one.save());
    let mut two = Rtl8139::new([2; 6], true, true);
    two.load(&saved).expect("loads");
    assert_eq!(two.save(), one.save());
    let mut odd = saved.clone();
    odd[0].1[3] = 256;
    assert_eq!(two.load(&odd), Err(BadState("registers")));
    odd = saved;
    odd[2].1[1] = rings::MAX_DESCRIPTORS;
    assert_eq!(two.load(&odd), Err(BadState("next")));
    assert_eq!(two.save(), one.save());
}

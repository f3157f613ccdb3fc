use super::*;

const MAC: Mac = [0x52, 0x54, 0, 1, 2, 3];

fn get(chip: &mut E1000, register: usize) -> u32 {
    chip.read(MEMORY_BAR, register as u64, 4) as u32
}

fn set(chip: &mut E1000, register: usize, value: u32) -> Work {
    chip.write(MEMORY_BAR, register as u64, 4, value.into())
}

#[test]
fn eeprom_sums_to_what_drivers_check_and_has_the_address() {
    let mut chip = E1000::new(MAC, true);
    let sum = (0..64).fold(0u16, |sum, word| {
        set(&mut chip, reg::EERD, word << 8 | reg::EERD_START);
        let answer = get(&mut chip, reg::EERD);
        assert_ne!(answer & reg::EERD_DONE, 0);
        sum.wrapping_add((answer >> 16) as u16)
    });
    assert_eq!(sum, EEPROM_SUM);
    assert_eq!(get(&mut chip, reg::RA), 0x0100_5452);
    assert_eq!(get(&mut chip, reg::RA + 4), 0x8000_0302);
}

#[test]
fn transceiver_is_identified_and_loses_its_link() {
    let mut chip = E1000::new(MAC, true);
    let phy = |chip: &mut E1000, register: u32| {
        set(chip, reg::MDIC, reg::MDIC_READ << 26 | PHY_ADDRESS << 21 | register << 16);
        get(chip, reg::MDIC)
    };
    assert_eq!(phy(&mut chip, 2) & (reg::MDIC_READY | 0xffff), reg::MDIC_READY | 0x0141);
    assert_eq!(phy(&mut chip, 1) & 0x24, 0x24);
    chip.set_link(false);
    assert_eq!(phy(&mut chip, 1) & 0x24, 0);
    assert_ne!(get(&mut chip, reg::ICR) & reg::CAUSE_LINK, 0);
    set(&mut chip, reg::MDIC, reg::MDIC_READ << 26 | 2 << 21);
    assert_ne!(get(&mut chip, reg::MDIC) & reg::MDIC_ERROR, 0, "nobody is at address 2");
    assert_eq!(get(&mut chip, reg::ICR), 0, "no interrupt was asked for");
    set(&mut chip, reg::MDIC, reg::MDIC_INTERRUPT | reg::MDIC_READ << 26 | PHY_ADDRESS << 21);
    assert_eq!(get(&mut chip, reg::ICR), reg::CAUSE_MDIO);
}

#[test]
fn interrupt_is_masked_cleared_by_reading_and_throttled() {
    let mut chip = E1000::new(MAC, true);
    let now = Instant::now();
    set(&mut chip, reg::ICS, reg::CAUSE_RECEIVED);
    assert!(!chip.interrupting(now));
    set(&mut chip, reg::ITR, 1000);
    set(&mut chip, reg::IMS, reg::CAUSE_RECEIVED);
    assert!(chip.interrupting(now));
    assert_eq!(get(&mut chip, reg::ICR), reg::CAUSE_RECEIVED);
    assert!(!chip.interrupting(now));
    set(&mut chip, reg::ICS, reg::CAUSE_RECEIVED);
    assert!(!chip.interrupting(now), "256 us have not gone by");
    assert_eq!(chip.wake_at(), Some(now + Duration::from_micros(256)));
    assert!(chip.interrupting(now + Duration::from_micros(256)));
    assert_eq!(chip.wake_at(), None);
    set(&mut chip, reg::IMC, reg::CAUSE_RECEIVED);
    assert!(!chip.interrupting(now));
}

#[test]
fn registers_are_reached_through_ports_and_reset_by_control() {
    let mut chip = E1000::new(MAC, true);
    chip.write(IO_BAR, IO_ADDRESS, 4, reg::RCTL as u64);
    chip.write(IO_BAR, IO_DATA, 4, 2);
    assert_eq!(get(&mut chip, reg::RCTL), 2);
    assert_eq!(chip.read(IO_BAR, IO_DATA, 4), 2);
    assert_eq!(set(&mut chip, reg::CTRL, reg::CTRL_RESET), Work::Anything);
    assert_eq!(get(&mut chip, reg::RCTL), 0);
    assert_eq!(get(&mut chip, reg::STATUS), reg::STATUS_DEFAULT | reg::STATUS_LINK_UP);
    assert_eq!(set(&mut chip, reg::TDT, 5), Work::Transmit);
    assert_eq!(chip.read(MEMORY_BAR, 0x1_fff8, 8), 0, "past the registers");
}

#[test]
fn state_saved_is_what_another_chip_has_after_loading() {
    let mut one = E1000::new(MAC, true);
    set(&mut one, reg::IMS, 0x9d);
    set(&mut one, reg::MTA + 8, 0x1234);
    let saved: Vec<_> = one.save().into_iter().map(|(name, words)| (name.to_owned(), words)).collect();
    let mut two = E1000::new([2; 6], true);
    two.load(&saved).expect("loads");
    assert_eq!(two.save(), one.save());
    let mut odd = saved.clone();
    odd[0].1.push(1);
    assert_eq!(two.load(&odd), Err(BadState("registers")));
    assert_eq!(two.save(), one.save());
    assert!(two.load(&saved[..4]).is_err());
}

#[test]
fn state_loaded_has_no_bits_that_no_driver_sets() {
    let mut chip = E1000::new(MAC, true);
    let mut saved: Vec<_> = chip.save().into_iter().map(|(name, words)| (name.to_owned(), words)).collect();
    saved[0].1 = (0..REGISTER_WORDS as u32).flat_map(|word| [4 * word, u32::MAX]).collect();
    chip.load(&saved).expect("loads");
    let mut driven = E1000::new(MAC, true);
    for register in [reg::TDLEN, reg::TDT, reg::TDBAL, reg::RDLEN, reg::RDH, reg::IMS, reg::RCTL] {
        set(&mut driven, register, u32::MAX);
        assert_eq!(get(&mut chip, register), get(&mut driven, register), "{register:#x}");
    }
    assert_eq!(get(&mut chip, reg::CTRL) & (reg::CTRL_RESET | reg::CTRL_PHY_RESET), 0);
    saved[0].1 = vec![reg::TDLEN as u32, u32::MAX, reg::TDT as u32, 0x0fff_fffe];
    chip.load(&saved).expect("loads");
    assert_eq!(chip.ring(reg::TDBAL).map(|ring| ring.count), None, "its tail is past its end");
}

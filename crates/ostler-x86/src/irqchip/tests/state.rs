//! Saving and loading.

use ostler_engine::regs::{IrqchipState, LapicState};

use super::Board;
use crate::signals::signal;

const LVT_TIMER: u64 = 0x320;
const INITIAL_COUNT: u64 = 0x380;
const CURRENT_COUNT: u64 = 0x390;

/// A board in the middle of things.
fn busy() -> Board {
    let board = Board::new(2);
    board.init_pics(1);
    board.out(0x4D1, 8);
    board.chip.set_irq_line(11, true);
    board.redirect(16, 1 << 56 | 1 << 15 | 0x51);
    board.chip.set_irq_line(16, true);
    board.ioapic_write(0, 3 << 24);
    for value in [0x34, 0x54, 0x76, 0xB0] {
        board.out(0x43, value);
    }
    board.out(0x40, 0xE8);
    board.out(0x40, 3);
    board.out(0x61, 3);
    board.clock.set_ns(123_456);
    board
}

fn restore(from: &Board) -> Board {
    let board = Board::at_reset(from.lapics.len() as u32);
    board.clock.set_ns(from.clock.now_ns());
    board.chip.set_state(&from.chip.state()).expect("a good state");
    for (old, new) in from.lapics.iter().zip(&board.lapics) {
        assert!(new.restore_apic_base(old.apic_base_msr()));
        assert!(new.set_state(&old.state()));
    }
    board
}

#[test]
fn state_loaded_is_the_state_saved() {
    let board = busy();
    let restored = restore(&board);
    assert_eq!(restored.chip.state(), board.chip.state());
    for (old, new) in board.lapics.iter().zip(&restored.lapics) {
        assert_eq!(new.state(), old.state());
    }
}

#[test]
fn interrupts_under_way_survive() {
    let restored = restore(&busy());
    assert_eq!(restored.take(0), Some(0x2B), "of the PIC");
    assert_eq!(restored.take(1), Some(0x51), "of the IOAPIC");
    restored.lapics[1].eoi();
    assert_eq!(restored.take(1), Some(0x51), "whose line is high still");
    assert_eq!(restored.lapics[0].read(0x240), 0);
}

#[test]
fn pit_ticks_on_with_its_phase() {
    let restored = restore(&busy());
    restored.take(0);
    restored.out(0xA0, 0x20);
    restored.out(0x20, 0x20);
    restored.chip.set_irq_line(11, false);
    restored.pass_to(838_000);
    assert_eq!(restored.take(0), None);
    restored.pass_to(838_100);
    assert_eq!(restored.take(0), Some(0x20));
}

#[test]
fn lapic_timer_goes_on_from_its_count() {
    let board = Board::new(1);
    board.lapics[0].write(0x3E0, 0xB);
    board.lapics[0].write(LVT_TIMER, 1 << 17 | 0x40);
    board.lapics[0].write(INITIAL_COUNT, 1_000_000);
    board.pass_to(300_000);
    let restored = restore(&board);
    assert_eq!(restored.lapics[0].read(CURRENT_COUNT), 700_000);
    restored.pass_to(1_000_000);
    assert_eq!(restored.take(0), Some(0x40));
    restored.lapics[0].eoi();
    restored.pass_to(2_000_000);
    assert_eq!(restored.take(0), Some(0x40));
}

#[test]
fn lapic_timer_that_had_expired_stays_so() {
    let board = Board::new(1);
    board.lapics[0].write(LVT_TIMER, 0x40);
    board.lapics[0].write(INITIAL_COUNT, 1000);
    board.pass_to(1_000_000);
    board.take(0);
    let restored = restore(&board);
    assert_eq!(restored.lapics[0].next_deadline_ns(), None);
}

#[test]
fn x2apic_state_survives() {
    let board = Board::new(2);
    let lapic = &board.lapics[1];
    assert!(lapic.write_msr(0x1B, 0xFEE0_0C00));
    assert!(lapic.write_msr(0x832, 2 << 17 | 0x40));
    assert!(lapic.write_msr(0x6E0, 5_000));
    assert!(lapic.write_msr(0x830, 0xFFFF_FFFF_0000_0061));
    let restored = restore(&board);
    let new = &restored.lapics[1];
    assert!(new.write_msr(0x6E0, lapic.read_msr(0x6E0).expect("a deadline")));
    assert_eq!(new.read_msr(0x830), Some(0xFFFF_FFFF_0000_0061));
    assert_eq!(new.read_msr(0x802), Some(1));
    assert_eq!(restored.take(1), Some(0x61));
    restored.pass_to(5_000);
    assert_eq!(restored.signals[1].take(signal::INTERRUPT), signal::INTERRUPT);
}

#[test]
fn impossible_irqchip_state_is_refused_and_changes_nothing() {
    let good = busy().chip.state();
    let spoil: [fn(&mut IrqchipState); 11] = [
        |state| state.pics[0].init_state = 5,
        |state| state.pics[1].priority_add = 8,
        |state| state.ioapic.base_address = 0,
        |state| state.ioapic.ioregsel = 0x100,
        |state| state.ioapic.id = 16,
        |state| state.ioapic.irr = 1 << 24,
        |state| state.ioapic.redirtbl[3] = 1 << 17,
        |state| state.pit[0].count = 0x1_0001,
        |state| state.pit[1].mode = 6,
        |state| state.pit[2].gate = 2,
        |state| state.pit[2].write_state = 5,
    ];
    for (index, spoil) in spoil.iter().enumerate() {
        let board = Board::new(1);
        let before = board.chip.state();
        let mut bad = good;
        spoil(&mut bad);
        assert!(board.chip.set_state(&bad).is_err(), "{index}");
        assert_eq!(board.chip.state(), before);
    }
}

#[test]
fn lapic_state_of_another_cpu_or_with_illegal_vectors_is_refused() {
    let board = Board::new(2);
    let before = board.lapics[0].state();
    assert!(!board.lapics[0].set_state(&board.lapics[1].state()));
    let mut bad = before.clone();
    bad.regs[0x200] = 1;
    assert!(!board.lapics[0].set_state(&bad));
    assert_eq!(board.lapics[0].state(), before);
}

#[test]
fn lapic_state_of_ones_leaves_no_reserved_bits() {
    let board = Board::new(1);
    let mut ones = LapicState { regs: [0xFF; 1024] };
    ones.regs[0x20..0x24].fill(0);
    for bank in [0x100, 0x180, 0x200] {
        ones.regs[bank..bank + 2].fill(0);
    }
    assert!(board.lapics[0].set_state(&ones));
    let lapic = &board.lapics[0];
    assert_eq!((lapic.read(0xF0), lapic.read(0x350), lapic.read(0x3E0)), (0x13FF, 0x1_A7FF, 0xB));
    assert_eq!(board.take(0), None, "the task priority is the highest");
}

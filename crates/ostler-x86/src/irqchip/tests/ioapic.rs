//! The IOAPIC and its messages (82093AA data sheet).

use super::Board;
use crate::signals::signal;

const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const REMOTE_IRR: u32 = 1 << 14;
const LOGICAL: u64 = 1 << 11;

fn to(cpu: u64) -> u64 {
    cpu << 56
}

#[test]
fn registers_identify_a_24_pin_chip() {
    let board = Board::new(1);
    assert_eq!(board.ioapic_read(1), 0x17_0020);
    board.ioapic_write(1, 0);
    assert_eq!(board.ioapic_read(1), 0x17_0020);
    board.ioapic_write(0, 0xFFFF_FFFF);
    assert_eq!((board.ioapic_read(0), board.ioapic_read(2)), (0x0F00_0000, 0x0F00_0000));
    assert_eq!(board.ioapic_read(0x40), 0, "there is no 25th entry");
}

#[test]
fn entries_are_masked_at_reset_and_keep_what_is_written() {
    let board = Board::new(1);
    assert_eq!(board.ioapic_read(0x10), 0x1_0000);
    board.redirect(23, u64::MAX);
    assert_eq!(board.ioapic_read(0x3E), 0x1_AFFF, "status and remote IRR are read-only");
    assert_eq!(board.ioapic_read(0x3F), 0xFFFE_0000);
}

#[test]
fn accesses_of_other_sizes_work() {
    let board = Board::new(1);
    board.chip.ioapic_write(0, &[1]);
    let mut wide = [0xAA; 8];
    board.chip.ioapic_read(0x10, &mut wide);
    assert_eq!(wide, [0x20, 0, 0x17, 0, 0, 0, 0, 0]);
    let mut narrow = [0];
    board.chip.ioapic_read(0, &mut narrow);
    assert_eq!(narrow, [1]);
}

#[test]
fn edge_pin_sends_once_per_edge() {
    let board = Board::new(1);
    board.redirect(5, 0x35);
    board.chip.set_irq_line(5, true);
    board.chip.set_irq_line(5, true);
    assert_eq!(board.take(0), Some(0x35));
    board.lapics[0].eoi();
    assert_eq!(board.take(0), None);
    board.pulse(5);
    board.pulse(5);
    assert_eq!(board.take(0), Some(0x35));
}

#[test]
fn edge_at_a_masked_pin_is_lost() {
    let board = Board::new(1);
    board.redirect(5, MASKED | 0x35);
    board.chip.set_irq_line(5, true);
    board.redirect(5, 0x35);
    assert_eq!(board.take(0), None);
}

#[test]
fn level_pin_waits_for_the_eoi_and_is_sent_again() {
    let board = Board::new(1);
    board.redirect(16, LEVEL | 0x51);
    board.chip.set_irq_line(16, true);
    assert_eq!(board.take(0), Some(0x51));
    assert_eq!(board.ioapic_read(0x30) & REMOTE_IRR, REMOTE_IRR);
    board.chip.set_irq_line(16, true);
    assert_eq!(board.take(0), None);
    board.lapics[0].eoi();
    assert_eq!(board.take(0), Some(0x51), "the line is asserted still");
    board.chip.set_irq_line(16, false);
    board.lapics[0].eoi();
    assert_eq!(board.take(0), None);
    assert_eq!(board.ioapic_read(0x30) & REMOTE_IRR, 0);
}

#[test]
fn level_pin_masked_while_in_service_is_sent_when_unmasked() {
    let board = Board::new(1);
    board.redirect(16, LEVEL | 0x51);
    board.chip.set_irq_line(16, true);
    board.take(0);
    board.ioapic_write(0x30, (MASKED | LEVEL) as u32 | 0x51);
    board.lapics[0].eoi();
    assert_eq!(board.take(0), None);
    board.ioapic_write(0x30, LEVEL as u32 | 0x51);
    assert_eq!(board.take(0), Some(0x51));
}

#[test]
fn eoi_of_another_vector_changes_nothing() {
    let board = Board::new(1);
    board.redirect(16, LEVEL | 0x51);
    board.redirect(17, LEVEL | 0x61);
    board.chip.set_irq_line(16, true);
    board.take(0);
    board.chip.set_irq_line(17, true);
    assert_eq!(board.take(0), Some(0x61));
    board.chip.set_irq_line(17, false);
    board.lapics[0].eoi();
    assert_eq!(board.ioapic_read(0x30) & REMOTE_IRR, REMOTE_IRR);
    assert_eq!(board.ioapic_read(0x32) & REMOTE_IRR, 0);
}

#[test]
fn eoi_register_ends_what_the_suppressed_broadcast_did_not() {
    let board = Board::new(1);
    board.lapics[0].write(0xF0, 0x11FF);
    board.redirect(16, LEVEL | 0x51);
    board.chip.set_irq_line(16, true);
    board.take(0);
    board.lapics[0].eoi();
    assert_eq!(board.take(0), None);
    board.chip.ioapic_write(0x40, &0x51u32.to_le_bytes());
    assert_eq!(board.take(0), Some(0x51));
}

#[test]
fn switching_to_edge_clears_remote_irr() {
    let board = Board::new(1);
    board.redirect(16, LEVEL | 0x51);
    board.chip.set_irq_line(16, true);
    board.ioapic_write(0x30, MASKED as u32 | 0x51);
    assert_eq!(board.ioapic_read(0x30) & REMOTE_IRR, 0);
}

#[test]
fn level_pin_nobody_accepts_has_no_remote_irr() {
    let board = Board::new(1);
    board.redirect(16, to(9) | LEVEL | 0x51);
    board.chip.set_irq_line(16, true);
    assert_eq!(board.ioapic_read(0x30) & REMOTE_IRR, 0);
}

#[test]
fn destination_is_an_apic_id_or_everyone() {
    let board = Board::new(3);
    board.redirect(5, to(2) | 0x35);
    board.pulse(5);
    assert_eq!((board.take(0), board.take(1), board.take(2)), (None, None, Some(0x35)));
    board.lapics[2].eoi();
    board.redirect(5, to(0xFF) | 0x36);
    board.pulse(5);
    assert_eq!([0, 1, 2].map(|cpu| board.take(cpu)), [Some(0x36); 3]);
}

#[test]
fn lowest_priority_goes_to_the_least_busy() {
    let board = Board::new(3);
    for (cpu, lapic) in board.lapics.iter().enumerate() {
        lapic.write(0xD0, 1 << (24 + cpu));
        lapic.set_tpr(if cpu == 1 { 0 } else { 0x20 });
    }
    board.redirect(5, to(7) | LOGICAL | 1 << 8 | 0x45);
    for _ in 0..4 {
        board.pulse(5);
        assert_eq!([0, 1, 2].map(|cpu| board.take(cpu)), [None, Some(0x45), None]);
        board.lapics[1].eoi();
    }
}

#[test]
fn lowest_priority_takes_turns_among_equals() {
    let board = Board::new(2);
    board.lapics.iter().for_each(|lapic| lapic.write(0xD0, 3 << 24));
    board.redirect(5, to(3) | LOGICAL | 1 << 8 | 0x45);
    board.pulse(5);
    let first = [0, 1].map(|cpu| board.take(cpu));
    board.lapics.iter().for_each(|lapic| lapic.eoi());
    board.pulse(5);
    let second = [0, 1].map(|cpu| board.take(cpu));
    assert_ne!(first, second);
}

#[test]
fn nmi_and_init_entries_raise_their_signals() {
    let board = Board::new(2);
    board.redirect(5, to(1) | 4 << 8);
    board.pulse(5);
    assert_eq!(board.signals[1].take(!0), signal::NMI);
    board.redirect(5, to(1) | 5 << 8);
    board.pulse(5);
    assert_eq!(board.signals[1].take(!0), signal::INIT);
}

#[test]
fn external_entry_of_pin_0_lets_its_target_acknowledge_the_pic() {
    let board = Board::new(2);
    board.lapics[0].write(0x350, 0x1_0000);
    board.init_pics(1);
    board.redirect(0, to(1) | 7 << 8);
    board.pulse(3);
    assert_eq!(board.take(0), None);
    assert_eq!(board.take(1), Some(0x23));
    board.out(0x20, 0x20);
    board.pulse(1);
    board.pulse(6);
    assert_eq!(board.take(1), Some(0x21));
    board.out(0x20, 0x20);
    assert_eq!(board.take(1), Some(0x26));
}

#[test]
fn pins_that_do_not_exist_and_the_cascade_do_nothing() {
    let board = Board::new(1);
    (0..24).for_each(|pin| board.redirect(pin, 0x30 + u64::from(pin)));
    for gsi in [2, 24, 31, 32, u32::MAX] {
        board.pulse(gsi);
    }
    assert_eq!(board.take(0), None);
}

#[test]
fn level_pin_that_never_falls_pauses_after_many_interrupts() {
    let board = Board::new(1);
    board.redirect(16, LEVEL | 0x51);
    board.chip.set_irq_line(16, true);
    for round in 0..10_000 {
        assert_eq!(board.take(0), Some(0x51), "interrupt {round}");
        board.lapics[0].eoi();
    }
    assert_eq!(board.take(0), None, "the processor gets on with something else");
    board.pass_to(9_999_999);
    assert_eq!(board.take(0), None);
    board.pass_to(10_000_000);
    assert_eq!(board.take(0), Some(0x51));
    board.chip.set_irq_line(16, false);
    board.lapics[0].eoi();
    board.pass_to(20_000_000);
    assert_eq!(board.take(0), None);
}

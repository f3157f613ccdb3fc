//! The PICs, as a vCPU in virtual wire mode sees them (Intel 231468).

use super::Board;

const MASTER: u16 = 0x20;
const SLAVE: u16 = 0xA0;
const EOI: u8 = 0x20;
const ICW4_8086: u8 = 0x01;
const ICW4_AUTO_EOI: u8 = 0x03;
const ICW4_SPECIAL_FULLY_NESTED: u8 = 0x11;

fn board() -> Board {
    initialized(ICW4_8086)
}

fn initialized(icw4: u8) -> Board {
    let board = Board::new(1);
    board.init_pics(icw4);
    board
}

fn irr(board: &Board, base: u16) -> u8 {
    board.out(base, 0x0A);
    board.input(base)
}

fn isr(board: &Board, base: u16) -> u8 {
    board.out(base, 0x0B);
    board.input(base)
}

#[test]
fn requests_are_taken_in_order_of_priority() {
    let board = board();
    board.pulse(5);
    board.pulse(1);
    assert_eq!(irr(&board, MASTER), 1 << 5 | 1 << 1);
    assert_eq!(board.take(0), Some(0x21));
    assert_eq!(isr(&board, MASTER), 1 << 1);
    assert_eq!(board.take(0), None, "5 is less urgent than what is in service");
    board.out(MASTER, EOI);
    assert_eq!(board.take(0), Some(0x25));
}

#[test]
fn more_urgent_request_interrupts_one_in_service() {
    let board = board();
    board.pulse(5);
    assert_eq!(board.take(0), Some(0x25));
    board.pulse(1);
    assert_eq!(board.take(0), Some(0x21));
    assert_eq!(isr(&board, MASTER), 1 << 5 | 1 << 1);
    board.out(MASTER, EOI);
    assert_eq!(isr(&board, MASTER), 1 << 5, "the most urgent one is ended first");
}

#[test]
fn slave_request_comes_through_the_cascade() {
    let board = board();
    board.pulse(8);
    assert_eq!(irr(&board, MASTER), 1 << 2);
    assert_eq!(board.take(0), Some(0x28));
    assert_eq!((isr(&board, MASTER), isr(&board, SLAVE)), (1 << 2, 1));
    board.pulse(12);
    board.out(SLAVE, EOI);
    assert_eq!(board.take(0), None, "the cascade is in service still");
    board.out(MASTER, EOI);
    assert_eq!(board.take(0), Some(0x2C));
}

#[test]
fn slave_request_beats_a_later_master_input() {
    let board = board();
    board.pulse(3);
    board.pulse(15);
    assert_eq!(board.take(0), Some(0x2F));
}

#[test]
fn masked_request_waits_for_its_unmasking() {
    let board = board();
    board.out(MASTER + 1, 1 << 4);
    assert_eq!(board.input(MASTER + 1), 1 << 4);
    board.pulse(4);
    assert_eq!(board.take(0), None);
    board.out(MASTER + 1, 0);
    assert_eq!(board.take(0), Some(0x24));
}

#[test]
fn specific_eoi_ends_what_it_names() {
    let board = board();
    board.pulse(5);
    board.take(0);
    board.pulse(1);
    board.take(0);
    board.out(MASTER, 0x60 | 5);
    assert_eq!(isr(&board, MASTER), 1 << 1);
}

#[test]
fn rotate_on_eoi_makes_the_ended_one_the_last() {
    let board = board();
    board.pulse(3);
    board.take(0);
    board.out(MASTER, 0xA0);
    board.pulse(3);
    board.pulse(4);
    board.pulse(7);
    board.pulse(0);
    for vector in [0x24, 0x27, 0x20, 0x23] {
        assert_eq!(board.take(0), Some(vector));
        board.out(MASTER, EOI);
    }
}

#[test]
fn rotate_on_specific_eoi_ends_and_rotates() {
    let board = board();
    board.pulse(1);
    board.take(0);
    board.out(MASTER, 0xE0 | 1);
    assert_eq!(isr(&board, MASTER), 0);
    board.pulse(1);
    board.pulse(6);
    assert_eq!(board.take(0), Some(0x26));
}

#[test]
fn set_priority_names_the_last() {
    let board = board();
    board.out(MASTER, 0xC0 | 5);
    board.pulse(0);
    board.pulse(6);
    assert_eq!(board.take(0), Some(0x26));
}

#[test]
fn auto_eoi_leaves_nothing_in_service() {
    let board = initialized(ICW4_AUTO_EOI);
    board.pulse(4);
    assert_eq!(board.take(0), Some(0x24));
    assert_eq!(isr(&board, MASTER), 0);
    board.pulse(4);
    assert_eq!(board.take(0), Some(0x24));
}

#[test]
fn auto_eoi_rotates_when_told() {
    let board = initialized(ICW4_AUTO_EOI);
    board.out(MASTER, 0x80);
    board.pulse(4);
    assert_eq!(board.take(0), Some(0x24));
    board.pulse(4);
    board.pulse(5);
    assert_eq!(board.take(0), Some(0x25));
    board.out(MASTER, 0x00);
    board.pulse(5);
    assert_eq!(board.take(0), Some(0x24), "without rotation, 5 stays behind 4 no longer");
}

#[test]
fn auto_eoi_slave_with_two_requests_gives_both() {
    let board = initialized(ICW4_AUTO_EOI);
    board.pulse(9);
    board.pulse(10);
    assert_eq!(board.take(0), Some(0x29));
    assert_eq!(board.take(0), Some(0x2A));
    assert_eq!(board.take(0), None);
}

#[test]
fn special_mask_lets_less_urgent_ones_through() {
    let board = board();
    board.pulse(1);
    assert_eq!(board.take(0), Some(0x21));
    board.out(MASTER, 0x68);
    board.out(MASTER + 1, 1 << 1);
    board.pulse(6);
    assert_eq!(board.take(0), Some(0x26));
    board.out(MASTER, EOI);
    assert_eq!(isr(&board, MASTER), 1 << 1, "the masked one is not what EOI means");
    board.out(MASTER, 0x48);
    board.pulse(6);
    assert_eq!(board.take(0), None);
}

#[test]
fn special_fully_nested_slave_interrupts_itself() {
    let board = initialized(ICW4_SPECIAL_FULLY_NESTED);
    board.pulse(12);
    assert_eq!(board.take(0), Some(0x2C));
    board.pulse(9);
    assert_eq!(board.take(0), Some(0x29));
    board.pulse(3);
    assert_eq!(board.take(0), None, "3 is less urgent than the cascade");
}

#[test]
fn fully_nested_slave_does_not_interrupt_itself() {
    let board = board();
    board.pulse(12);
    assert_eq!(board.take(0), Some(0x2C));
    board.pulse(9);
    assert_eq!(board.take(0), None);
}

#[test]
fn poll_acknowledges() {
    let board = board();
    board.out(MASTER, 0x0C);
    assert_eq!(board.input(MASTER), 0, "nothing requested");
    board.pulse(6);
    board.out(MASTER, 0x0C);
    assert_eq!(board.input(MASTER), 0x86);
    assert_eq!(isr(&board, MASTER), 1 << 6);
    assert_eq!(board.take(0), None);
}

#[test]
fn edge_input_that_stays_high_requests_once() {
    let board = board();
    board.chip.set_irq_line(4, true);
    assert_eq!(board.take(0), Some(0x24));
    board.out(MASTER, EOI);
    board.chip.set_irq_line(4, true);
    assert_eq!(board.take(0), None);
    board.pulse(4);
    board.chip.set_irq_line(4, true);
    assert_eq!(board.take(0), Some(0x24));
}

#[test]
fn level_input_requests_until_it_falls() {
    let board = board();
    board.out(0x4D1, 1 << 3);
    assert_eq!(board.input(0x4D1), 1 << 3);
    board.chip.set_irq_line(11, true);
    for _ in 0..2 {
        assert_eq!(board.take(0), Some(0x2B));
        board.out(SLAVE, EOI);
        board.out(MASTER, EOI);
    }
    board.chip.set_irq_line(11, false);
    assert_eq!(board.take(0), None);
    assert_eq!(irr(&board, SLAVE), 0);
}

#[test]
fn level_input_that_falls_before_inta_requests_no_more() {
    let board = board();
    board.out(0x4D0, 1 << 5);
    board.pulse(5);
    assert_eq!(board.take(0), None);
}

#[test]
fn elcr_keeps_the_isa_inputs_edge_triggered() {
    let board = board();
    board.out(0x4D0, 0xFF);
    board.out(0x4D1, 0xFF);
    assert_eq!((board.input(0x4D0), board.input(0x4D1)), (0xF8, 0xDE));
}

#[test]
fn elcr_written_as_a_word_programs_both() {
    let board = board();
    assert!(board.chip.io_write(0x4D0, &[0x20, 0x0C]));
    let mut data = [0; 2];
    assert!(board.chip.io_read(0x4D0, &mut data));
    assert_eq!(data, [0x20, 0x0C]);
}

#[test]
fn initialization_clears_masks_and_what_is_in_service() {
    let board = board();
    board.pulse(1);
    board.take(0);
    board.out(MASTER + 1, 0xFF);
    board.pulse(3);
    board.init_pics(ICW4_8086);
    assert_eq!(board.input(MASTER + 1), 0);
    assert_eq!((irr(&board, MASTER), isr(&board, MASTER)), (0, 0));
}

#[test]
fn initialization_of_a_single_chip_skips_icw3() {
    let board = board();
    board.out(MASTER, 0x13);
    board.out(MASTER + 1, 0x40);
    board.out(MASTER + 1, ICW4_AUTO_EOI);
    board.out(MASTER + 1, 0xFE);
    assert_eq!(board.input(MASTER + 1), 0xFE);
    board.out(MASTER + 1, 0);
    board.pulse(6);
    assert_eq!(board.take(0), Some(0x46));
}

#[test]
fn initialization_without_icw4_ends_after_icw3() {
    let board = board();
    for (offset, value) in [(0, 0x10), (1, 0x50), (1, 0x04), (1, 0xAA)] {
        board.out(MASTER + offset, value);
    }
    assert_eq!(board.input(MASTER + 1), 0xAA);
}

#[test]
fn request_that_vanishes_between_looking_and_inta_is_none() {
    let board = board();
    board.out(0x4D0, 1 << 5);
    board.chip.set_irq_line(5, true);
    assert!(board.chip.has_interrupt(&board.lapics[0]));
    board.chip.set_irq_line(5, false);
    assert_eq!(board.chip.acknowledge(&board.lapics[0]), None);
}

#[test]
fn uninitialized_chips_pass_nothing_on() {
    let board = Board::new(1);
    (0..16).for_each(|gsi| board.pulse(gsi));
    assert_eq!(board.take(0), None);
}

#[test]
fn special_fully_nested_chip_without_requests_asks_for_nothing() {
    let board = initialized(ICW4_SPECIAL_FULLY_NESTED);
    // The cascade has the highest priority: the one an empty register must not be taken for.
    board.out(MASTER, 0xC0 | 1);
    assert_eq!(board.take(0), None);
}

//! The chips together: how an interrupt finds its way.

use super::Board;

#[test]
fn timer_gsi_reaches_the_pic_and_pin_2() {
    let board = Board::new(1);
    board.redirect(2, 0x30);
    board.chip.set_irq_line(0, true);
    assert_eq!(board.take(0), Some(0x30));
    board.init_pics(1);
    board.chip.set_irq_line(0, false);
    board.chip.set_irq_line(0, true);
    assert_eq!(board.take(0), Some(0x20));
}

#[test]
fn pit_ticks_through_the_pic() {
    let board = Board::new(1);
    board.init_pics(1);
    // Counter 0, mode 2, 1193 ticks: 1 ms.
    board.out(0x43, 0x34);
    board.out(0x40, 0xA9);
    board.out(0x40, 0x04);
    board.pass_to(999_000);
    assert_eq!(board.take(0), None);
    board.pass_to(1_000_000);
    assert_eq!(board.take(0), Some(0x20));
    assert_eq!(board.input(0x20), 0, "the request is gone from IRR");
    board.out(0x20, 0x20);
    board.pass_to(2_000_000);
    assert_eq!(board.take(0), Some(0x20));
}

#[test]
fn line_pulsed_reaches_the_ioapic() {
    let board = Board::new(1);
    board.redirect(4, 0x34);
    assert_eq!(board.ioapic_read(0x18), 0x34);
    board.pulse(4);
    assert_eq!(board.take(0), Some(0x34));
}

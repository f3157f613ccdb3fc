//! The PIT and port 0x61 (Intel 231164). A tick is 838.1 ns.

use super::Board;

const CONTROL: u16 = 0x43;
const SPEAKER: u16 = 0x61;
const OUT2: u8 = 0x20;

/// The first nanosecond at which `ticks` have passed.
fn ticks(ticks: u64) -> u64 {
    (ticks * 1_000_000_000).div_ceil(1_193_182)
}

/// Programs a counter through its control word, and loads `count` low byte first.
fn program(board: &Board, counter: u8, mode: u8, count: u16) {
    board.out(CONTROL, counter << 6 | 0x30 | mode << 1);
    count.to_le_bytes().iter().for_each(|&byte| board.out(0x40 + u16::from(counter), byte));
}

/// Latches and reads a counter.
fn count(board: &Board, counter: u8) -> u16 {
    board.out(CONTROL, counter << 6);
    let port = 0x40 + u16::from(counter);
    u16::from_le_bytes([board.input(port), board.input(port)])
}

/// Reads a counter's status by the read-back command.
fn status(board: &Board, counter: u8) -> u8 {
    board.out(CONTROL, 0xE0 | 2 << counter);
    board.input(0x40 + u16::from(counter))
}

fn out2(board: &Board) -> bool {
    board.input(SPEAKER) & OUT2 != 0
}

/// The times, in ticks, at which counter 0 interrupts within `until` ticks.
fn interrupts(board: &Board, until: u64) -> Vec<u64> {
    board.init_pics(3);
    board.out(0x21, 0xFE);
    (0..=until)
        .filter(|&tick| {
            board.pass_to(ticks(tick));
            board.take(0).is_some()
        })
        .collect()
}

#[test]
fn mode_0_interrupts_once_at_the_terminal_count() {
    let board = Board::new(1);
    program(&board, 0, 0, 100);
    assert_eq!(interrupts(&board, 1000), [100]);
    assert_eq!(count(&board, 0), (100u16).wrapping_sub(1000), "it counts on");
}

#[test]
fn mode_2_interrupts_each_period() {
    let board = Board::new(1);
    program(&board, 0, 2, 1000);
    assert_eq!(interrupts(&board, 3500), [1000, 2000, 3000]);
    assert_eq!(count(&board, 0), 500);
}

#[test]
fn mode_3_interrupts_each_period_and_counts_by_two() {
    let board = Board::new(1);
    program(&board, 0, 3, 1000);
    assert_eq!(interrupts(&board, 2100), [1000, 2000]);
    assert_eq!(count(&board, 0), 800);
}

#[test]
fn mode_4_strobes_once() {
    let board = Board::new(1);
    program(&board, 0, 4, 300);
    assert_eq!(interrupts(&board, 1000), [300]);
}

#[test]
fn modes_with_a_trigger_never_start_at_counter_0() {
    for mode in [1, 5] {
        let board = Board::new(1);
        program(&board, 0, mode, 10);
        assert!(interrupts(&board, 100).is_empty());
    }
}

#[test]
fn period_of_one_tick_is_coalesced() {
    let board = Board::new(1);
    program(&board, 0, 2, 1);
    let count = interrupts(&board, 1_193 * 10).len();
    assert!((45..=50).contains(&count), "{count} in 10 ms");
}

#[test]
fn late_ticks_are_one_and_keep_their_phase() {
    let board = Board::new(1);
    board.init_pics(3);
    program(&board, 0, 2, 1000);
    board.pass_to(ticks(3500));
    assert_eq!(board.take(0), Some(0x20));
    board.pass_to(ticks(4000) - 1);
    assert_eq!(board.take(0), None);
    board.pass_to(ticks(4000));
    assert_eq!(board.take(0), Some(0x20));
}

#[test]
fn due_tick_is_not_lost_by_other_accesses() {
    let board = Board::new(1);
    board.init_pics(3);
    program(&board, 0, 2, 1000);
    board.clock.set_ns(ticks(1500));
    program(&board, 2, 0, 5);
    count(&board, 0);
    status(&board, 0);
    board.pass_to(ticks(1500));
    assert_eq!(board.take(0), Some(0x20));
}

#[test]
fn control_word_stops_the_ticks_until_a_count_is_written() {
    let board = Board::new(1);
    program(&board, 0, 2, 1000);
    board.out(CONTROL, 0x34);
    assert!(interrupts(&board, 2000).is_empty());
    assert_eq!(status(&board, 0) & 0x40, 0x40, "null count");
    board.out(0x40, 100);
    board.out(0x40, 0);
    assert_eq!(status(&board, 0) & 0x40, 0);
}

#[test]
fn count_0_is_65536() {
    let board = Board::new(1);
    program(&board, 0, 2, 0);
    board.pass_to(ticks(1));
    assert_eq!(count(&board, 0), 0xFFFF);
    board.pass_to(ticks(0x1_0000));
    assert_eq!(count(&board, 0), 0);
}

#[test]
fn single_byte_accesses_set_and_read_their_half() {
    let board = Board::new(1);
    board.out(CONTROL, 0x14);
    board.out(0x40, 200);
    board.pass_to(ticks(10));
    assert_eq!(board.input(0x40), 190);
    assert_eq!(board.input(0x40), 190);
    board.out(CONTROL, 0x24);
    board.out(0x40, 0x12);
    board.pass_to(ticks(11));
    assert_eq!(board.input(0x40), 0x11, "0x1200 less a tick");
}

#[test]
fn word_reads_without_a_latch_alternate() {
    let board = Board::new(1);
    program(&board, 0, 2, 0x1234);
    assert_eq!([board.input(0x40), board.input(0x40), board.input(0x40)], [0x34, 0x12, 0x34]);
}

#[test]
fn latched_count_stays_until_read() {
    let board = Board::new(1);
    program(&board, 0, 2, 1000);
    board.pass_to(ticks(100));
    board.out(CONTROL, 0);
    board.pass_to(ticks(200));
    board.out(CONTROL, 0);
    assert_eq!(u16::from_le_bytes([board.input(0x40), board.input(0x40)]), 900);
    assert_eq!(count(&board, 0), 800);
}

#[test]
fn read_back_latches_status_before_count() {
    let board = Board::new(1);
    program(&board, 0, 3, 1000);
    program(&board, 2, 0, 500);
    board.out(CONTROL, 0xC0 | 2 | 8);
    assert_eq!(board.input(0x40), 0x80 | 0x30 | 3 << 1);
    assert_eq!(u16::from_le_bytes([board.input(0x40), board.input(0x40)]), 1000);
    assert_eq!(board.input(0x42), 0x30, "mode 0, its output low");
}

#[test]
fn bcd_counts_in_decimal() {
    let board = Board::new(1);
    board.out(CONTROL, 0x35);
    board.out(0x40, 0x00);
    board.out(0x40, 0x10);
    board.pass_to(ticks(1));
    assert_eq!(count(&board, 0), 0x0999);
    board.out(CONTROL, 0x35);
    board.out(0x40, 0);
    board.out(0x40, 0);
    board.pass_to(ticks(2) + 1);
    assert_eq!(count(&board, 0), 0x9999, "0 stands for 10000");
}

#[test]
fn calibration_by_mode_0_of_counter_2_works() {
    let board = Board::new(1);
    board.out(SPEAKER, 1);
    program(&board, 2, 0, 11932);
    assert!(!out2(&board));
    board.pass_to(ticks(11931));
    assert!(!out2(&board));
    board.pass_to(ticks(11932));
    assert!(out2(&board));
}

#[test]
fn gate_stops_mode_0_and_lets_it_go_on() {
    let board = Board::new(1);
    program(&board, 2, 0, 1000);
    board.pass_to(ticks(500));
    assert_eq!(count(&board, 2), 1000, "the gate is low at reset");
    board.out(SPEAKER, 1);
    board.pass_to(ticks(700) + 1);
    assert_eq!(count(&board, 2), 800);
    board.out(SPEAKER, 0);
    board.pass_to(ticks(5000));
    assert_eq!(count(&board, 2), 800);
    board.out(SPEAKER, 1);
    board.pass_to(ticks(5800) + 1);
    assert!(out2(&board));
}

#[test]
fn gate_restarts_mode_2_and_keeps_its_output_high() {
    let board = Board::new(1);
    board.out(SPEAKER, 1);
    program(&board, 2, 2, 1000);
    board.pass_to(ticks(999));
    assert!(!out2(&board), "low for the last tick");
    board.out(SPEAKER, 0);
    assert!(out2(&board));
    board.pass_to(ticks(2000));
    board.out(SPEAKER, 1);
    board.pass_to(ticks(2100) + 1);
    assert_eq!(count(&board, 2), 900);
}

#[test]
fn mode_3_output_is_a_square_wave() {
    let board = Board::new(1);
    board.out(SPEAKER, 1);
    program(&board, 2, 3, 5);
    let wave: Vec<bool> = (0..10)
        .map(|tick| {
            board.pass_to(ticks(tick));
            out2(&board)
        })
        .collect();
    assert_eq!(wave, [true, true, true, false, false, true, true, true, false, false]);
}

#[test]
fn mode_1_output_is_low_from_the_trigger_on() {
    let board = Board::new(1);
    program(&board, 2, 1, 100);
    assert!(out2(&board));
    board.out(SPEAKER, 1);
    assert!(!out2(&board));
    board.pass_to(ticks(50));
    board.out(SPEAKER, 0);
    assert!(!out2(&board), "the gate's level does not matter");
    board.out(SPEAKER, 1);
    board.pass_to(ticks(149));
    assert!(!out2(&board), "triggered anew");
    board.pass_to(ticks(150) + 1);
    assert!(out2(&board));
}

#[test]
fn mode_5_strobes_after_its_trigger() {
    let board = Board::new(1);
    program(&board, 2, 5, 100);
    assert!(out2(&board));
    board.out(SPEAKER, 1);
    assert!(out2(&board));
    board.pass_to(ticks(100));
    assert!(!out2(&board));
    board.pass_to(ticks(101));
    assert!(out2(&board));
}

#[test]
fn modes_6_and_7_are_2_and_3() {
    let board = Board::new(1);
    program(&board, 0, 6, 100);
    assert_eq!(status(&board, 0) & 0xE, 2 << 1);
    program(&board, 0, 7, 100);
    assert_eq!(status(&board, 0) & 0xE, 3 << 1);
}

#[test]
fn speaker_port_keeps_its_low_bits_and_toggles_the_refresh() {
    let board = Board::new(1);
    board.out(SPEAKER, 0xFF);
    assert_eq!(board.input(SPEAKER) & 0xCF, 0x0F);
    let refresh: Vec<u8> = (0..4)
        .map(|times| {
            board.pass_to(times * 15_085);
            board.input(SPEAKER) & 0x10
        })
        .collect();
    assert_eq!(refresh, [0, 0x10, 0, 0x10]);
}

#[test]
fn control_port_reads_as_0() {
    assert_eq!(Board::new(1).input(CONTROL), 0);
}

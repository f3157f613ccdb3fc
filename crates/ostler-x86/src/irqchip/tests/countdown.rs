//! The local APIC timer (SDM 3A 11.5.4). Counts and deadlines are nanoseconds.

use super::Board;

const LVT_TIMER: u64 = 0x320;
const INITIAL_COUNT: u64 = 0x380;
const CURRENT_COUNT: u64 = 0x390;
const DIVIDE: u64 = 0x3E0;
const DIVIDE_BY_1: u32 = 0xB;
const PERIODIC: u32 = 1 << 17;
const DEADLINE: u32 = 2 << 17;
const MASKED: u32 = 1 << 16;
const TSC_DEADLINE: u32 = 0x6E0;

/// A board whose timer has vector 0x40, in `mode`, and counts nanoseconds.
fn board(mode: u32) -> Board {
    let board = Board::new(1);
    board.lapics[0].write(LVT_TIMER, mode | 0x40);
    board.lapics[0].write(DIVIDE, DIVIDE_BY_1);
    board
}

/// How many timer interrupts come until `ns`, looking each `step` nanoseconds.
fn interrupts_until(board: &Board, ns: u64, step: usize) -> usize {
    let start = board.clock.now_ns();
    let times = (start..=ns).step_by(step).skip(1);
    times
        .filter(|&now| {
            board.pass_to(now);
            let taken = board.take(0) == Some(0x40);
            board.lapics[0].eoi();
            taken
        })
        .count()
}

#[test]
fn one_shot_counts_down_and_expires_once() {
    let board = board(0);
    let lapic = &board.lapics[0];
    lapic.write(INITIAL_COUNT, 1_000_000);
    assert_eq!(lapic.next_deadline_ns(), Some(1_000_000));
    board.pass_to(400_000);
    assert_eq!(lapic.read(CURRENT_COUNT), 600_000);
    assert_eq!(board.take(0), None);
    board.pass_to(1_000_000);
    assert_eq!(board.take(0), Some(0x40));
    assert_eq!((lapic.read(CURRENT_COUNT), lapic.read(INITIAL_COUNT)), (0, 1_000_000));
    assert_eq!(lapic.next_deadline_ns(), None);
    assert_eq!(interrupts_until(&board, 10_000_000, 100_000), 0);
}

#[test]
fn divisors_are_the_manuals() {
    let board = board(0);
    let lapic = &board.lapics[0];
    for (value, divisor) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (0xA, 128), (0xB, 1)] {
        lapic.write(DIVIDE, value);
        lapic.write(INITIAL_COUNT, 1000);
        assert_eq!(lapic.next_deadline_ns(), Some(1000 * divisor), "{value:#x}");
        assert_eq!(lapic.read(DIVIDE), value);
    }
}

#[test]
fn divisor_changed_while_counting_keeps_the_count() {
    let board = board(0);
    let lapic = &board.lapics[0];
    lapic.write(INITIAL_COUNT, 1000);
    board.pass_to(400);
    lapic.write(DIVIDE, 0);
    assert_eq!(lapic.read(CURRENT_COUNT), 600);
    assert_eq!(lapic.next_deadline_ns(), Some(400 + 1200));
}

#[test]
fn periodic_expires_again_and_again() {
    let board = board(PERIODIC);
    board.lapics[0].write(INITIAL_COUNT, 1_000_000);
    assert_eq!(interrupts_until(&board, 10_000_000, 50_000), 10);
    board.pass_to(10_300_000);
    assert_eq!(board.lapics[0].read(CURRENT_COUNT), 700_000);
}

#[test]
fn periodic_that_is_late_keeps_its_phase() {
    let board = board(PERIODIC);
    board.lapics[0].write(INITIAL_COUNT, 1_000_000);
    board.pass_to(3_600_000);
    assert_eq!(board.take(0), Some(0x40), "the missed ones are one");
    assert_eq!(board.lapics[0].next_deadline_ns(), Some(4_000_000));
}

#[test]
fn periodic_of_one_tick_is_coalesced() {
    let board = board(PERIODIC);
    board.lapics[0].write(INITIAL_COUNT, 1);
    assert_eq!(interrupts_until(&board, 10_000_000, 10_000), 50, "one each 200 us");
    assert_eq!(board.lapics[0].read(CURRENT_COUNT), 1);
}

#[test]
fn initial_count_0_stops() {
    let board = board(PERIODIC);
    board.lapics[0].write(INITIAL_COUNT, 1_000_000);
    board.lapics[0].write(INITIAL_COUNT, 0);
    assert_eq!(board.lapics[0].next_deadline_ns(), None);
    assert_eq!(interrupts_until(&board, 10_000_000, 500_000), 0);
}

#[test]
fn masked_timer_counts_in_silence() {
    let board = board(MASKED);
    board.lapics[0].write(INITIAL_COUNT, 1000);
    board.pass_to(500);
    assert_eq!(board.lapics[0].read(CURRENT_COUNT), 500);
    board.pass_to(1000);
    assert_eq!(board.take(0), None);
}

#[test]
fn deadline_expires_once_and_reads_as_0_then() {
    let board = board(DEADLINE);
    let lapic = &board.lapics[0];
    assert!(lapic.write_msr(TSC_DEADLINE, 5_000));
    assert_eq!(lapic.read_msr(TSC_DEADLINE), Some(5_000));
    board.pass_to(4_999);
    assert_eq!(board.take(0), None);
    board.pass_to(5_000);
    assert_eq!(board.take(0), Some(0x40));
    assert_eq!(lapic.read_msr(TSC_DEADLINE), Some(0));
}

#[test]
fn deadline_in_the_past_expires_at_once() {
    let board = board(DEADLINE);
    board.clock.set_ns(1_000_000);
    assert!(board.lapics[0].write_msr(TSC_DEADLINE, 999_999));
    assert_eq!(board.take(0), Some(0x40));
}

#[test]
fn deadline_0_disarms() {
    let board = board(DEADLINE);
    assert!(board.lapics[0].write_msr(TSC_DEADLINE, 5_000));
    assert!(board.lapics[0].write_msr(TSC_DEADLINE, 0));
    board.pass_to(10_000);
    assert_eq!(board.take(0), None);
}

#[test]
fn deadline_outside_its_mode_is_ignored() {
    let board = board(0);
    assert!(board.lapics[0].write_msr(TSC_DEADLINE, 5_000));
    assert_eq!(board.lapics[0].read_msr(TSC_DEADLINE), Some(0));
    board.pass_to(10_000);
    assert_eq!(board.take(0), None);
}

#[test]
fn counts_in_deadline_mode_are_ignored() {
    let board = board(DEADLINE);
    board.lapics[0].write(INITIAL_COUNT, 1000);
    assert_eq!((board.lapics[0].read(INITIAL_COUNT), board.lapics[0].read(CURRENT_COUNT)), (0, 0));
    assert_eq!(board.lapics[0].next_deadline_ns(), None);
}

#[test]
fn entering_or_leaving_deadline_mode_disarms() {
    let board = board(0);
    let lapic = &board.lapics[0];
    lapic.write(INITIAL_COUNT, 1000);
    lapic.write(LVT_TIMER, DEADLINE | 0x40);
    assert_eq!(lapic.next_deadline_ns(), None);
    assert!(lapic.write_msr(TSC_DEADLINE, 5_000));
    lapic.write(LVT_TIMER, 0x40);
    assert_eq!(lapic.next_deadline_ns(), None);
}

#[test]
fn one_shot_made_periodic_goes_on() {
    let board = board(0);
    let lapic = &board.lapics[0];
    lapic.write(INITIAL_COUNT, 1_000_000);
    board.pass_to(250_000);
    lapic.write(LVT_TIMER, PERIODIC | 0x40);
    assert_eq!(lapic.next_deadline_ns(), Some(1_000_000));
    assert_eq!(interrupts_until(&board, 5_250_000, 50_000), 5);
}

#[test]
fn init_and_disabling_disarm() {
    let board = board(PERIODIC);
    board.lapics[0].write(INITIAL_COUNT, 1000);
    board.lapics[0].reset_by_init();
    assert_eq!(board.lapics[0].next_deadline_ns(), None);
}

#[test]
fn sleeper_may_expire_its_timer_itself() {
    let board = board(DEADLINE);
    assert!(board.lapics[0].write_msr(TSC_DEADLINE, 5_000));
    board.clock.set_ns(5_000);
    board.lapics[0].expire_timer();
    assert_eq!(board.take(0), Some(0x40));
    board.pass_to(6_000);
    board.lapics[0].eoi();
    assert_eq!(board.take(0), None, "the thread has nothing left to do");
}

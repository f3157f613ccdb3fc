//! A guest that does anything at all: nothing panics, nothing hangs.

use ostler_engine::Msi;

use super::Board;

/// SplitMix64: the same numbers in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    /// Numbers with few bits are as likely as large ones.
    fn value(&mut self) -> u64 {
        let shift = self.next() % 64;
        self.next() >> shift
    }
}

const PORTS: [u16; 12] = [0x20, 0x21, 0xA0, 0xA1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x4D0, 0x4D1, 0xFFFF];

/// One random access of a random vCPU.
fn act(board: &Board, numbers: &mut Numbers) {
    let cpu = (numbers.next() % 3) as usize;
    let lapic = &board.lapics[cpu];
    let value = numbers.value();
    let bytes = value.to_le_bytes();
    let size = 1 << (numbers.next() % 4);
    let port = PORTS[numbers.next() as usize % PORTS.len()];
    match numbers.next() % 16 {
        0..4 => _ = board.chip.io_write(port, &bytes[..size]),
        4 => _ = board.chip.io_read(port, &mut [0; 8][..size]),
        5 | 6 => board.chip.ioapic_write([0, 0x10, 0x40, value][numbers.next() as usize % 4], &bytes[..size]),
        7 => board.chip.ioapic_read(value, &mut [0; 8][..size]),
        8 | 9 => lapic.write(numbers.next() & 0xFF0, value as u32),
        10 => lapic.write(numbers.next(), lapic.read(numbers.next() & 0xFFF)),
        11 => _ = lapic.write_msr([0x1B, 0x6E0][numbers.next() as usize % 2], value),
        12 => _ = lapic.write_msr(0x800 + (numbers.next() & 0xFF) as u32, value),
        13 => _ = lapic.read_msr(0x800 + (numbers.next() & 0xFF) as u32),
        14 => _ = board.chip.signal_msi(Msi { address: 0xFEE0_0000 | value & 0xF_FFFF, data: numbers.next() as u32 }),
        _ => board.chip.set_irq_line(numbers.value() as u32, value & 1 != 0),
    }
}

fn run(seed: u64) {
    let mut numbers = Numbers(seed);
    let board = Board::new(3);
    for _ in 0..20_000 {
        act(&board, &mut numbers);
        let cpu = (numbers.next() % 3) as usize;
        if board.chip.has_interrupt(&board.lapics[cpu]) {
            board.chip.acknowledge(&board.lapics[cpu]);
        }
        if numbers.next().is_multiple_of(4) {
            board.pass_to(numbers.value());
        }
    }
    assert!(board.chip.set_state(&board.chip.state()).is_ok(), "what it saves, it loads");
    for lapic in &board.lapics {
        assert!(lapic.set_state(&lapic.state()));
    }
}

#[test]
fn random_accesses_do_no_harm() {
    (0..8).for_each(run);
}

#[test]
fn random_states_are_refused_or_do_no_harm() {
    let mut numbers = Numbers(99);
    for _ in 0..2_000 {
        let board = Board::new(3);
        board.clock.set_ns(numbers.value());
        let mut state = board.chip.state();
        for channel in &mut state.pit {
            channel.count = numbers.value() as u32 & 0x1_FFFF;
            channel.mode = numbers.next() as u8 % 7;
            channel.bcd = numbers.next() as u8 & 1;
            channel.gate = numbers.next() as u8 & 1;
            channel.count_load_time_ns = numbers.value() as i64;
            channel.read_state = numbers.next() as u8 % 6;
        }
        for pic in &mut state.pics {
            (pic.irr, pic.isr, pic.imr) = (numbers.next() as u8, numbers.next() as u8, numbers.next() as u8);
            (pic.priority_add, pic.poll) = (numbers.next() as u8 % 9, numbers.next() as u8);
        }
        let loaded = board.chip.set_state(&state).is_ok();
        for _ in 0..20 {
            act(&board, &mut numbers);
            board.pass_to(numbers.value());
        }
        assert!(
            loaded
                || state
                    .pit
                    .iter()
                    .any(|channel| channel.count > 0x1_0000 || channel.mode > 5 || channel.read_state > 4)
                || state.pics.iter().any(|pic| pic.priority_add > 7)
        );
    }
}

#[test]
fn clock_at_the_end_of_time_does_no_harm() {
    let board = Board::new(3);
    board.clock.set_ns(u64::MAX - 10);
    let mut numbers = Numbers(7);
    for _ in 0..5_000 {
        act(&board, &mut numbers);
        board.chip.deadlines.expire_due();
    }
}

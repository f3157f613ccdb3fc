//! The local APIC by way of MSRs (SDM 3A 11.12).

use ostler_engine::Msi;

use super::Board;
use crate::signals::signal;

const APIC_BASE: u32 = 0x1B;
const DISABLED: u64 = 0xFEE0_0000;
const XAPIC: u64 = 0xFEE0_0800;
const X2APIC: u64 = 0xFEE0_0C00;
const INVALID: u64 = 0xFEE0_0400;
const ICR: u32 = 0x830;

/// A board whose local APICs are in x2APIC mode and software-enabled.
fn board(cpus: u32) -> Board {
    let board = Board::new(cpus);
    board.lapics.iter().for_each(|lapic| assert!(lapic.write_msr(APIC_BASE, X2APIC)));
    board
}

fn taken<const N: usize>(board: &Board) -> [Option<u8>; N] {
    std::array::from_fn(|cpu| board.take(cpu))
}

#[test]
fn apic_base_takes_only_the_manuals_transitions() {
    let legal = [
        (XAPIC, XAPIC, true),
        (XAPIC, X2APIC, true),
        (XAPIC, DISABLED, true),
        (XAPIC, INVALID, false),
        (X2APIC, X2APIC, true),
        (X2APIC, XAPIC, false),
        (X2APIC, DISABLED, true),
        (X2APIC, INVALID, false),
        (DISABLED, DISABLED, true),
        (DISABLED, XAPIC, true),
        (DISABLED, X2APIC, false),
        (DISABLED, INVALID, false),
    ];
    for (from, to, expected) in legal {
        let board = Board::new(2);
        let lapic = &board.lapics[1];
        assert!(lapic.write_msr(APIC_BASE, from));
        assert_eq!(lapic.write_msr(APIC_BASE, to), expected, "{from:#x} to {to:#x}");
        assert_eq!(lapic.read_msr(APIC_BASE), Some(if expected { to } else { from }));
    }
}

#[test]
fn apic_base_refuses_reserved_bits_and_moves_the_page() {
    let board = Board::new(1);
    for reserved in [1, 1 << 7, 1 << 9, 1 << 52, 1 << 63] {
        assert!(!board.lapics[0].write_msr(APIC_BASE, XAPIC | reserved), "{reserved:#x}");
    }
    assert!(board.lapics[0].write_msr(APIC_BASE, 0x12_3456_7900));
    assert_eq!(board.lapics[0].base(), Some(0x12_3456_7000));
}

#[test]
fn restored_apic_base_may_go_anywhere_valid() {
    let board = board(1);
    assert!(board.lapics[0].restore_apic_base(XAPIC));
    assert!(board.lapics[0].restore_apic_base(DISABLED));
    assert!(board.lapics[0].restore_apic_base(X2APIC));
    assert!(!board.lapics[0].restore_apic_base(INVALID));
    assert!(!board.lapics[0].restore_apic_base(X2APIC | 1));
    assert_eq!(board.lapics[0].apic_base_msr(), X2APIC);
}

#[test]
fn disabling_loses_the_registers_and_entering_x2apic_keeps_them() {
    let board = Board::new(1);
    let lapic = &board.lapics[0];
    lapic.write(0x80, 0x20);
    assert!(lapic.write_msr(APIC_BASE, X2APIC));
    assert_eq!(lapic.read_msr(0x808), Some(0x20));
    assert!(lapic.write_msr(APIC_BASE, DISABLED));
    assert!(lapic.write_msr(APIC_BASE, XAPIC));
    assert_eq!((lapic.tpr(), lapic.read(0xF0)), (0, 0xFF));
}

#[test]
fn msrs_exist_in_x2apic_mode_only() {
    let board = Board::new(1);
    assert_eq!(board.lapics[0].read_msr(0x802), None);
    assert!(!board.lapics[0].write_msr(0x80B, 0));
    assert!(board.lapics[0].write_msr(APIC_BASE, X2APIC));
    assert_eq!(board.lapics[0].read_msr(0x802), Some(0));
    assert!(board.lapics[0].write_msr(0x80B, 0));
    assert_eq!(board.lapics[0].base(), None, "the page is gone");
}

#[test]
fn registers_are_readable_as_in_the_manuals_table() {
    let board = board(1);
    let readable: Vec<u32> = (0x800..0x900).filter(|&index| board.lapics[0].read_msr(index).is_some()).collect();
    let mut expected = vec![0x802, 0x803, 0x808, 0x80A, 0x80D, 0x80F];
    expected.extend(0x810..=0x828);
    expected.extend([0x830, 0x832, 0x833, 0x834, 0x835, 0x836, 0x837, 0x838, 0x839, 0x83E]);
    assert_eq!(readable, expected);
}

#[test]
fn registers_are_writable_as_in_the_manuals_table() {
    let board = board(1);
    let writable: Vec<u32> = (0x800..0x900).filter(|&index| board.lapics[0].write_msr(index, 0)).collect();
    let expected = [0x808, 0x80B, 0x80F, 0x828, 0x830, 0x832, 0x833, 0x834, 0x835, 0x836, 0x837, 0x838, 0x83E, 0x83F];
    assert_eq!(writable, expected);
}

#[test]
fn reserved_bits_fault() {
    let board = board(1);
    let bad = [
        (0x808, 0x100),
        (0x80B, 1),
        (0x80F, 1 << 10),
        (0x828, 1),
        (0x832, 1 << 8),
        (0x835, 1 << 11),
        (0x837, 1 << 17),
        (0x838, 1 << 32),
        (0x83E, 4),
        (0x83F, 0x100),
        (0x808, 1 << 63),
        (ICR, 1 << 13),
        (ICR, 1 << 16),
        (ICR, 1 << 20),
    ];
    for (index, value) in bad {
        assert!(!board.lapics[0].write_msr(index, value), "{index:#x} = {value:#x}");
    }
}

#[test]
fn id_and_ldr_have_32_bits() {
    let board = Board::new(0);
    let lapic = board.chip.add_lapic(0x123, std::sync::Arc::default());
    assert!(lapic.write_msr(APIC_BASE, X2APIC));
    assert_eq!(lapic.read_msr(0x802), Some(0x123));
    assert_eq!(lapic.read_msr(0x80D), Some(0x12_0008));
}

#[test]
fn icr_is_one_64_bit_register() {
    let board = board(3);
    assert!(board.lapics[0].write_msr(ICR, 2 << 32 | 0x1061));
    assert_eq!(taken(&board), [None, None, Some(0x61)]);
    assert_eq!(board.lapics[0].read_msr(ICR), Some(2 << 32 | 0x61));
    assert!(board.lapics[1].write_msr(ICR, 0xFFFF_FFFF_0000_0062));
    assert_eq!(taken(&board), [Some(0x62), Some(0x62), None], "2 has 0x61 in service, of the same class");
}

#[test]
fn logical_destination_is_a_cluster_and_a_set() {
    let board = board(18);
    assert!(board.lapics[0].write_msr(ICR, 0x0001_0003 << 32 | 0x861));
    let taken: Vec<_> = (0..18).filter(|&cpu| board.take(cpu).is_some()).collect();
    assert_eq!(taken, [16, 17]);
}

#[test]
fn self_ipi_stays_here() {
    let board = board(2);
    assert!(board.lapics[1].write_msr(0x83F, 0x71));
    assert_eq!(taken(&board), [None, Some(0x71)]);
}

#[test]
fn ids_past_255_are_reached_by_extended_destinations() {
    let board = board(1);
    let signals: std::sync::Arc<crate::signals::Signals> = std::sync::Arc::default();
    let lapic = board.chip.add_lapic(0x1FE, std::sync::Arc::clone(&signals));
    assert!(lapic.write_msr(APIC_BASE, X2APIC));
    assert!(lapic.write_msr(0x80F, 0x1FF));
    assert!(board.chip.signal_msi(Msi { address: 0xFEEF_E020, data: 0x45 }));
    assert_eq!(signals.take(!0), signal::INTERRUPT);
    assert_eq!(board.chip.acknowledge(&lapic), Some(0x45));
    assert!(lapic.write_msr(0x80B, 0));
    board.redirect(5, 0xFE << 56 | 1 << 49 | 0x46);
    board.pulse(5);
    assert_eq!(board.chip.acknowledge(&lapic), Some(0x46));
}

#[test]
fn broadcast_of_an_xapic_reaches_x2apics() {
    let board = Board::new(2);
    assert!(board.lapics[1].write_msr(APIC_BASE, X2APIC));
    board.lapics[0].write(0x310, 0xFF << 24);
    board.lapics[0].write(0x300, 0x61);
    assert_eq!(taken(&board), [Some(0x61), Some(0x61)]);
}

//! The local APIC in xAPIC mode (SDM 3A chapter 11).

use ostler_engine::Msi;

use super::Board;
use crate::signals::signal;

const TPR: u64 = 0x80;
const PPR: u64 = 0xA0;
const EOI: u64 = 0xB0;
const LDR: u64 = 0xD0;
const DFR: u64 = 0xE0;
const SVR: u64 = 0xF0;
const ESR: u64 = 0x280;
const ICR_LOW: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
const LVT_TIMER: u64 = 0x320;
const LVT_LINT0: u64 = 0x350;
const LVT_ERROR: u64 = 0x370;
const DISABLED: u64 = 0xFEE0_0000;

fn fixed(board: &Board, cpu: u32, vector: u32) -> bool {
    board.chip.signal_msi(Msi { address: 0xFEE0_0000 | u64::from(cpu) << 12, data: vector })
}

/// What each vCPU takes.
fn taken<const N: usize>(board: &Board) -> [Option<u8>; N] {
    std::array::from_fn(|cpu| board.take(cpu))
}

#[test]
fn registers_after_power_up_are_the_manuals() {
    let board = Board::at_reset(2);
    let [boot, application] = &board.lapics[..] else { panic!("two local APICs") };
    assert_eq!((boot.read(0x20), application.read(0x20)), (0, 1 << 24));
    assert_eq!(boot.read(0x30), 0x0105_0014);
    assert_eq!((boot.read(DFR), boot.read(SVR), boot.read(LDR)), (0xFFFF_FFFF, 0xFF, 0));
    assert_eq!((boot.read(LVT_LINT0), application.read(LVT_LINT0)), (0x700, 0x1_0000));
    assert_eq!((boot.read(LVT_TIMER), boot.read(LVT_ERROR)), (0x1_0000, 0x1_0000));
    assert_eq!((boot.apic_base_msr(), application.apic_base_msr()), (0xFEE0_0900, 0xFEE0_0800));
    assert_eq!(boot.base(), Some(0xFEE0_0000));
}

#[test]
fn request_needs_a_higher_class_than_tpr() {
    let board = Board::new(1);
    board.lapics[0].write(TPR, 0x40);
    fixed(&board, 0, 0x4F);
    assert_eq!(board.take(0), None);
    fixed(&board, 0, 0x50);
    assert_eq!(board.take(0), Some(0x50));
    board.lapics[0].eoi();
    board.lapics[0].set_tpr(0x3F);
    assert_eq!(board.take(0), Some(0x4F));
}

#[test]
fn request_waits_for_what_is_in_service() {
    let board = Board::new(1);
    fixed(&board, 0, 0x55);
    fixed(&board, 0, 0x5A);
    fixed(&board, 0, 0x81);
    assert_eq!(board.take(0), Some(0x81));
    assert_eq!(board.lapics[0].read(PPR), 0x80);
    assert_eq!(board.take(0), None);
    board.lapics[0].write(EOI, 0);
    assert_eq!(board.take(0), Some(0x5A), "told by the EOI");
    fixed(&board, 0, 0x91);
    assert_eq!(board.take(0), Some(0x91), "nested");
    board.lapics[0].write(EOI, 0);
    assert_eq!(board.take(0), None);
    board.lapics[0].write(EOI, 0);
    assert_eq!(board.take(0), Some(0x55));
    board.lapics[0].write(EOI, 0);
    board.lapics[0].write(EOI, 0);
    assert_eq!(board.lapics[0].read(PPR), 0);
}

#[test]
fn request_shows_in_irr_then_isr() {
    let board = Board::new(1);
    fixed(&board, 0, 0x65);
    assert_eq!((board.lapics[0].read(0x230), board.lapics[0].read(0x130)), (1 << 5, 0));
    board.take(0);
    assert_eq!((board.lapics[0].read(0x230), board.lapics[0].read(0x130)), (0, 1 << 5));
    fixed(&board, 0, 0x65);
    assert_eq!(board.lapics[0].read(0x230), 1 << 5, "one may wait behind the one in service");
}

#[test]
fn trigger_mode_shows_in_tmr() {
    let board = Board::new(1);
    board.chip.signal_msi(Msi { address: 0xFEE0_0000, data: 0xC045 });
    assert_eq!(board.lapics[0].read(0x1A0), 1 << 5);
    fixed(&board, 0, 0x45);
    assert_eq!(board.lapics[0].read(0x1A0), 0);
}

#[test]
fn software_disabled_apic_refuses_vectors_but_takes_nmi_and_init() {
    let board = Board::at_reset(1);
    assert!(!fixed(&board, 0, 0x45));
    assert_eq!(board.take(0), None);
    assert!(board.chip.signal_msi(Msi { address: 0xFEE0_0000, data: 0x400 }));
    assert!(board.chip.signal_msi(Msi { address: 0xFEE0_0000, data: 0x500 }));
    assert_eq!(board.signals[0].take(!0), signal::NMI | signal::INIT);
}

#[test]
fn software_disabling_masks_the_lvt_until_enabled() {
    let board = Board::new(1);
    let lapic = &board.lapics[0];
    lapic.write(LVT_TIMER, 0x41);
    lapic.write(SVR, 0xFF);
    assert_eq!(lapic.read(LVT_TIMER), 0x1_0041);
    lapic.write(LVT_TIMER, 0x42);
    assert_eq!(lapic.read(LVT_TIMER), 0x1_0042);
    lapic.write(SVR, 0x1FF);
    lapic.write(LVT_TIMER, 0x42);
    assert_eq!(lapic.read(LVT_TIMER), 0x42);
}

#[test]
fn lvt_entries_keep_only_their_fields() {
    let board = Board::new(1);
    let lapic = &board.lapics[0];
    let kept = [0x320, 0x330, 0x340, 0x350, 0x360, 0x370].map(|entry| {
        lapic.write(entry, u32::MAX);
        lapic.read(entry)
    });
    assert_eq!(kept, [0x7_00FF, 0x1_07FF, 0x1_07FF, 0x1_A7FF, 0x1_A7FF, 0x1_00FF]);
}

#[test]
fn logical_flat_destination_selects_by_bits() {
    let board = Board::new(3);
    for (cpu, lapic) in board.lapics.iter().enumerate() {
        lapic.write(LDR, 1 << (24 + cpu));
    }
    board.chip.signal_msi(Msi { address: 0xFEE0_5004, data: 0x45 });
    assert_eq!(taken(&board), [Some(0x45), None, Some(0x45)]);
}

#[test]
fn logical_cluster_destination_selects_within_a_cluster() {
    let board = Board::new(3);
    for (lapic, ldr) in board.lapics.iter().zip([0x11, 0x12, 0x21]) {
        lapic.write(DFR, 0);
        lapic.write(LDR, ldr << 24);
    }
    assert_eq!(board.lapics[0].read(DFR), 0x0FFF_FFFF);
    board.chip.signal_msi(Msi { address: 0xFEE1_3004, data: 0x45 });
    assert_eq!(taken(&board), [Some(0x45), Some(0x45), None]);
    board.chip.signal_msi(Msi { address: 0xFEEF_F004, data: 0x56 });
    assert_eq!(taken(&board), [Some(0x56); 3]);
}

#[test]
fn msi_to_nobody_is_not_delivered() {
    let board = Board::new(1);
    assert!(!fixed(&board, 7, 0x45));
    assert!(!board.chip.signal_msi(Msi { address: 0x1000, data: 0x45 }));
}

#[test]
fn ipi_reaches_the_id_in_icr_high() {
    let board = Board::new(3);
    board.lapics[0].write(ICR_HIGH, 2 << 24);
    board.lapics[0].write(ICR_LOW, 0x4_1061 & !(3 << 18));
    assert_eq!(taken(&board), [None, None, Some(0x61)]);
    assert_eq!(board.lapics[0].read(ICR_LOW), 0x61, "idle, and no reserved bits");
}

#[test]
fn ipi_shorthands_select_the_targets() {
    let board = Board::new(3);
    for (shorthand, targets) in [(1, [false, true, false]), (2, [true; 3]), (3, [true, false, true])] {
        board.lapics[1].write(ICR_LOW, shorthand << 18 | 0x61);
        let expected = targets.map(|target| target.then_some(0x61));
        assert_eq!(taken(&board), expected, "shorthand {shorthand}");
        board.lapics.iter().for_each(|lapic| lapic.eoi());
    }
}

#[test]
fn init_and_startup_ipis_raise_their_signals() {
    let board = Board::new(2);
    let send = |command| {
        board.lapics[0].write(ICR_HIGH, 1 << 24);
        board.lapics[0].write(ICR_LOW, command);
    };
    send(0xC500);
    assert_eq!(board.signals[1].take(!0), signal::INIT);
    send(0x8500);
    assert_eq!(board.signals[1].take(!0), 0, "INIT level de-assert is of no effect");
    send(0x069A);
    assert_eq!(board.signals[1].take(!0), signal::SIPI);
    assert_eq!(board.lapics[1].sipi_vector(), 0x9A);
    send(0x069B);
    send(0xC500);
    assert_eq!(board.signals[1].take(!0), signal::INIT, "INIT cancels the startup before it");
    send(0x0400);
    assert_eq!(board.signals[1].take(!0), signal::NMI);
    for ignored in [0x0200, 0x0330, 0x0730] {
        send(ignored);
    }
    assert_eq!(board.signals[1].take(!0), 0);
}

#[test]
fn ipi_with_an_illegal_vector_is_an_error() {
    let board = Board::new(1);
    let lapic = &board.lapics[0];
    lapic.write(LVT_ERROR, 0xFE);
    lapic.write(ICR_LOW, 2 << 18 | 0x0F);
    assert_eq!(lapic.read(ESR), 0, "ESR shows errors after it is written");
    lapic.write(ESR, 0);
    assert_eq!(lapic.read(ESR), 1 << 5);
    assert_eq!(board.take(0), Some(0xFE));
    lapic.write(ESR, 0);
    assert_eq!(lapic.read(ESR), 0);
}

#[test]
fn error_entry_with_an_illegal_vector_ends_somewhere() {
    let board = Board::new(1);
    let lapic = &board.lapics[0];
    lapic.write(LVT_ERROR, 0x01);
    fixed(&board, 0, 3);
    lapic.write(ESR, 0);
    assert_eq!(lapic.read(ESR), 1 << 6);
}

#[test]
fn reserved_register_is_an_error() {
    let board = Board::new(1);
    let lapic = &board.lapics[0];
    assert_eq!(lapic.read(0x3F0), 0);
    lapic.write(0x84, 0xFF);
    assert_eq!(lapic.read(TPR), 0);
    lapic.write(ESR, 0);
    assert_eq!(lapic.read(ESR), 1 << 7);
}

#[test]
fn read_only_registers_keep_their_value() {
    let board = Board::new(1);
    let lapic = &board.lapics[0];
    for offset in [0x20, 0x30, 0x90, PPR, 0xC0, 0x100, 0x180, 0x200, 0x390] {
        let before = lapic.read(offset);
        lapic.write(offset, 0x5555_5555);
        assert_eq!(lapic.read(offset), before, "{offset:#x}");
    }
    lapic.write(ESR, 0);
    assert_eq!(lapic.read(ESR), 0);
}

#[test]
fn lint0_takes_the_pic_by_its_delivery_mode() {
    let board = Board::new(1);
    board.init_pics(1);
    board.lapics[0].write(LVT_LINT0, 0x1_0700);
    board.pulse(3);
    assert_eq!(board.take(0), None, "masked");
    board.lapics[0].write(LVT_LINT0, 0x700);
    assert_eq!(board.take(0), Some(0x23), "told when unmasked");
    board.out(0x20, 0x20);
    board.lapics[0].write(LVT_LINT0, 0x400);
    board.pulse(3);
    assert_eq!(board.signals[0].take(!0), signal::NMI);
    board.out(0x20, 0x0C);
    assert_eq!(board.input(0x20), 0x83);
    board.out(0x20, 0x20);
    board.lapics[0].write(LVT_LINT0, 0x45);
    board.pulse(3);
    assert_eq!(board.take(0), Some(0x45));
}

#[test]
fn globally_disabled_apic_leaves_the_pic_to_the_cpu() {
    let board = Board::new(1);
    board.init_pics(1);
    board.lapics[0].write(LVT_LINT0, 0x1_0000);
    board.pulse(3);
    assert!(board.lapics[0].write_msr(0x1B, DISABLED));
    assert_eq!(board.lapics[0].base(), None);
    assert_eq!(board.take(0), Some(0x23));
    assert!(!fixed(&board, 0, 0x45));
}

#[test]
fn pic_and_apic_requests_are_both_taken() {
    let board = Board::new(1);
    board.init_pics(1);
    fixed(&board, 0, 0x90);
    board.pulse(3);
    assert_eq!(board.take(0), Some(0x23));
    assert_eq!(board.take(0), Some(0x90), "told again after the PIC's");
}

#[test]
fn init_resets_all_but_id_and_base() {
    let board = Board::new(2);
    let lapic = &board.lapics[1];
    lapic.write(TPR, 0x30);
    lapic.write(LDR, 0x0200_0000);
    fixed(&board, 1, 0x45);
    lapic.reset_by_init();
    assert_eq!((lapic.read(TPR), lapic.read(LDR), lapic.read(SVR), lapic.read(0x220)), (0, 0, 0xFF, 0));
    assert_eq!((lapic.id(), lapic.apic_base_msr()), (1, 0xFEE0_0800));
    assert_eq!(board.take(1), None);
}

#[test]
fn arbitration_priority_follows_the_manual() {
    let board = Board::new(1);
    let lapic = &board.lapics[0];
    lapic.write(TPR, 0x35);
    assert_eq!(lapic.read(0x90), 0x35);
    fixed(&board, 0, 0x62);
    assert_eq!(lapic.read(0x90), 0x60);
}

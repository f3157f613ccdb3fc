//! Unmasked exceptions: when they are reported, and what they leave undone.

use ostler_x86::cpu::control::cr0;
use ostler_x86::cpu::stop::{Stop, vector};

use crate::bench::{Bench, OPERAND};

const FLDZ: &[u8] = &[0xd9, 0xee];
const FLD1: &[u8] = &[0xd9, 0xe8];
const FDIVP: &[u8] = &[0xde, 0xf9];
const FWAIT: &[u8] = &[0x9b];
const FNCLEX: &[u8] = &[0xdb, 0xe2];
const FNINIT: &[u8] = &[0xdb, 0xe3];
const FNSTCW: &[u8] = &[0xd9, 0x3e];
const FNSTENV: &[u8] = &[0xd9, 0x36];
const FLDCW: &[u8] = &[0xd9, 0x2e];
const FSTP_M32: &[u8] = &[0xd9, 0x1e];
const MOVQ: &[u8] = &[0x0f, 0x6f, 0x1e];

/// 1 / 0 was computed with the exception unmasked.
fn divided_by_zero() -> Bench {
    let mut bench = Bench::new();
    bench.cpu.vector.x87.fcw = 0x37b;
    for code in [FLD1, FLDZ, FDIVP] {
        bench.run(code).expect("nothing is pending yet");
    }
    assert_eq!(bench.cpu.vector.x87.fsw & 0x8084, 0x8084);
    bench
}

#[test]
fn an_unmasked_exception_is_reported_by_the_next_instruction_that_waits() {
    for code in [FLDZ, FWAIT, FLDCW, MOVQ, FSTP_M32] {
        let mut bench = divided_by_zero();
        assert_eq!(bench.run(code), Err(vector::MF), "{code:x?}");
        assert_eq!(bench.cpu.vector.x87.fsw & 0x8084, 0x8084, "{code:x?} changes nothing");
    }
    for code in [FNSTCW, FNSTENV, FNCLEX, FNINIT] {
        assert_eq!(divided_by_zero().run(code), Ok(()), "{code:x?}");
    }
}

#[test]
fn clearing_or_masking_the_exception_ends_it() {
    for code in [FNCLEX, FNINIT, FNSTENV] {
        let mut bench = divided_by_zero();
        bench.run(code).expect("does not wait");
        assert_eq!(bench.run(FWAIT), Ok(()), "after {code:x?}");
    }
}

#[test]
fn unmasking_a_sticky_exception_makes_it_pending() {
    let mut bench = Bench::new();
    for code in [FLD1, FLDZ, FDIVP] {
        bench.run(code).expect("masked");
    }
    bench.write(OPERAND, &0x37bu16.to_le_bytes());
    bench.run(FLDCW).expect("FLDCW");
    assert_eq!(bench.run(FWAIT), Err(vector::MF));
}

#[test]
fn a_store_that_raises_an_unmasked_exception_stores_and_pops_nothing() {
    let mut bench = Bench::new();
    bench.cpu.vector.x87.fcw = 0x37e;
    bench.write(OPERAND, &[0xaa; 4]);
    // The stack is empty: invalid operation.
    bench.run(FSTP_M32).expect("reported later");
    assert_eq!(bench.read::<4>(OPERAND), [0xaa; 4]);
    assert_eq!(bench.cpu.vector.x87.fsw & 0x38c1, 0x00c1);
}

#[test]
fn fwait_obeys_mp_and_ts() {
    let mut bench = Bench::new();
    bench.cpu.cr0 |= cr0::TS;
    assert_eq!(bench.run(FWAIT), Err(vector::NM));
    bench.cpu.cr0 &= !cr0::MP;
    assert_eq!(bench.run(FWAIT), Ok(()));
    assert_eq!(bench.run(FLDZ), Err(vector::NM));
}

#[test]
fn the_pointers_name_the_last_instruction_and_its_operand() {
    let mut bench = Bench::new();
    bench.run(&[0xd9, 0x46, 0x08]).expect("FLD dword [rsi+8]");
    let x87 = &bench.cpu.vector.x87;
    assert_eq!((x87.fip, x87.fdp, x87.fop), (0x4000, OPERAND + 8, 0x146));
    bench.run(FLDZ).expect("FLDZ");
    let x87 = &bench.cpu.vector.x87;
    assert_eq!((x87.fdp, x87.fop), (OPERAND + 8, 0x1ee));
    bench.run(FNSTCW).expect("FNSTCW");
    assert_eq!(bench.cpu.vector.x87.fop, 0x1ee, "control instructions leave the pointers");
}

/// The level of IRQ 13, as the second PIC last saw it.
fn irq_13(bench: &Bench) -> bool {
    bench.cpu.vm.irqchip().expect("interrupt controllers").state().pics[1].last_irr & 1 << 5 != 0
}

#[test]
fn without_ne_the_exception_is_irq_13_and_the_cpu_stands_still() {
    let mut bench = divided_by_zero();
    bench.cpu.cr0 &= !cr0::NE;
    bench.cpu.vm.create_irqchip().expect("interrupt controllers");
    assert!(!irq_13(&bench));
    assert_eq!(bench.step(FLDZ), Err(Stop::Repeat));
    assert!(irq_13(&bench));
    assert_eq!(bench.step(FLDZ), Err(Stop::Repeat), "until the handler clears the exception");
    bench.run(FNCLEX).expect("does not wait");
    assert!(!irq_13(&bench));
    assert_eq!(bench.step(FLDZ), Ok(()));
}

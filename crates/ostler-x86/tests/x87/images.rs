//! FXSAVE, XSAVE and MXCSR.

use ostler_x86::cpu::control::{cr0, cr4};
use ostler_x86::cpu::regs::{RAX, RSI};
use ostler_x86::cpu::stop::vector;
use ostler_x86::cpu::vector::X87Image;

use crate::bench::{Bench, OPERAND};

const FXSAVE: &[u8] = &[0x0f, 0xae, 0x06];
const FXSAVE64: &[u8] = &[0x48, 0x0f, 0xae, 0x06];
const FXRSTOR64: &[u8] = &[0x48, 0x0f, 0xae, 0x0e];
const XSAVE64: &[u8] = &[0x48, 0x0f, 0xae, 0x26];
const XRSTOR64: &[u8] = &[0x48, 0x0f, 0xae, 0x2e];
const XSAVEOPT64: &[u8] = &[0x48, 0x0f, 0xae, 0x36];
const LDMXCSR: &[u8] = &[0x0f, 0xae, 0x16];
const STMXCSR: &[u8] = &[0x0f, 0xae, 0x1e];
const FNINIT: &[u8] = &[0xdb, 0xe3];
const EMMS: &[u8] = &[0x0f, 0x77];

fn busy() -> Bench {
    let mut bench = Bench::new();
    for (index, register) in bench.cpu.vector.ymm.iter_mut().enumerate() {
        register.fill(0x10 + index as u8);
        register[16..].fill(0x80 + index as u8);
    }
    for (index, register) in bench.cpu.vector.x87.st.iter_mut().enumerate() {
        register[..10].fill(0x30 + index as u8);
    }
    let x87 = &mut bench.cpu.vector.x87;
    (x87.fcw, x87.fsw, x87.ftw, x87.fop) = (0x027f, 0x1900, 0xf3, 0x123);
    (x87.fip, x87.fdp) = (0x1122_3344_5566_7788, 0x99aa_bbcc_ddee_ff00);
    bench.cpu.vector.mxcsr = 0x1fa0;
    bench
}

fn x87_bytes(x87: &X87Image) -> (u16, u16, u8, u16, u64, u64, [[u8; 16]; 8]) {
    (x87.fcw, x87.fsw, x87.ftw, x87.fop, x87.fip, x87.fdp, x87.st)
}

#[test]
fn fxsave_lays_the_image_out_as_the_manual_does() {
    let mut bench = busy();
    bench.write(OPERAND, &[0xee; 512]);
    bench.run(FXSAVE64).expect("FXSAVE64");
    let image: [u8; 512] = bench.read(OPERAND);
    assert_eq!(image[0..8], [0x7f, 0x02, 0x00, 0x19, 0xf3, 0x00, 0x23, 0x01]);
    assert_eq!(image[8..16], 0x1122_3344_5566_7788u64.to_le_bytes());
    assert_eq!(image[24..32], [0xa0, 0x1f, 0, 0, 0xff, 0xff, 0, 0]);
    assert_eq!(image[32..48], [0x30, 0x30, 0x30, 0x30, 0x30, 0x30, 0x30, 0x30, 0x30, 0x30, 0, 0, 0, 0, 0, 0]);
    assert_eq!(image[160 + 15 * 16..416], [0x1f; 16]);
    assert_eq!(image[416..], [0xee; 96], "the end belongs to software");
    bench.run(FXSAVE).expect("FXSAVE");
    assert_eq!(bench.read::<8>(OPERAND + 8), 0x5566_7788u64.to_le_bytes());
}

#[test]
fn fxrstor_takes_back_what_fxsave_wrote() {
    let mut bench = busy();
    let (x87, ymm) = (bench.cpu.vector.x87, bench.cpu.vector.ymm);
    bench.run(FXSAVE64).expect("FXSAVE64");
    bench.run(FNINIT).expect("FNINIT");
    bench.cpu.vector.ymm.iter_mut().for_each(|register| register[..16].fill(0));
    bench.cpu.vector.mxcsr = 0x1f80;
    bench.run(FXRSTOR64).expect("FXRSTOR64");
    assert_eq!(x87_bytes(&bench.cpu.vector.x87), x87_bytes(&x87));
    assert_eq!(bench.cpu.vector.ymm, ymm);
    assert_eq!(bench.cpu.vector.mxcsr, 0x1fa0);
}

#[test]
fn fxrstor_with_a_bad_mxcsr_or_address_faults_and_changes_nothing() {
    let mut bench = busy();
    bench.run(FXSAVE64).expect("FXSAVE64");
    bench.write(OPERAND + 24, &[0, 0, 1, 0]);
    bench.write(OPERAND + 160, &[0; 16]);
    assert_eq!(bench.run(FXRSTOR64), Err(vector::GP));
    assert_eq!(bench.cpu.vector.ymm[0][..16], [0x10; 16]);
    bench.cpu.regs.set(RSI, OPERAND + 8);
    assert_eq!(bench.run(FXRSTOR64), Err(vector::GP));
    assert_eq!(bench.run(FXSAVE64), Err(vector::GP));
}

#[test]
fn availability_of_the_images_follows_the_control_registers() {
    let mut bench = busy();
    bench.cpu.cr0 |= cr0::TS;
    for code in [FXSAVE64, FXRSTOR64, XSAVE64, XRSTOR64, LDMXCSR, FNINIT, EMMS] {
        assert_eq!(bench.run(code), Err(vector::NM), "{code:x?}");
    }
    bench.cpu.cr0 = bench.cpu.cr0 & !cr0::TS | cr0::EM;
    for (code, fault) in [(FXSAVE64, vector::NM), (FNINIT, vector::NM), (EMMS, vector::UD), (STMXCSR, vector::UD)] {
        assert_eq!(bench.run(code), Err(fault), "{code:x?}");
    }
    bench.cpu.cr0 &= !cr0::EM;
    bench.cpu.cr4 &= !cr4::OSXSAVE;
    for code in [XSAVE64, XRSTOR64, XSAVEOPT64] {
        assert_eq!(bench.run(code), Err(vector::UD), "{code:x?}");
    }
}

#[test]
fn xsave_and_xrstor_round_trip_every_component() {
    let mut bench = busy();
    let (x87, ymm) = (bench.cpu.vector.x87, bench.cpu.vector.ymm);
    bench.run(XSAVE64).expect("XSAVE64");
    assert_eq!(bench.read::<8>(OPERAND + 512), 7u64.to_le_bytes());
    assert_eq!(bench.read::<16>(OPERAND + 576 + 16 * 3), [0x83; 16]);
    bench.cpu.vector = Default::default();
    bench.run(XRSTOR64).expect("XRSTOR64");
    assert_eq!(x87_bytes(&bench.cpu.vector.x87), x87_bytes(&x87));
    assert_eq!((bench.cpu.vector.ymm, bench.cpu.vector.mxcsr), (ymm, 0x1fa0));
}

#[test]
fn xrstor_gives_the_initial_state_to_components_that_the_header_does_not_name() {
    let mut bench = busy();
    bench.run(XSAVE64).expect("XSAVE64");
    bench.write(OPERAND + 512, &[0]);
    bench.run(XRSTOR64).expect("XRSTOR64");
    assert_eq!(bench.cpu.vector.ymm, [[0; 32]; 16]);
    assert_eq!(bench.cpu.vector.x87.fcw, 0x37f);
    assert_eq!(bench.cpu.vector.mxcsr, 0x1fa0, "MXCSR comes from the image all the same");
}

#[test]
fn xrstor_of_some_components_leaves_the_others() {
    let mut bench = busy();
    bench.write(OPERAND, &[0; 832]);
    bench.cpu.regs.set(RAX, 4);
    bench.write(OPERAND + 24, &0x1f80u32.to_le_bytes());
    bench.run(XRSTOR64).expect("XRSTOR64");
    assert_eq!(bench.cpu.vector.ymm[5][..16], [0x15; 16]);
    assert_eq!(bench.cpu.vector.ymm[5][16..], [0; 16]);
    assert_eq!(bench.cpu.vector.x87.fcw, 0x27f);
}

#[test]
fn xrstor_with_a_bad_header_faults() {
    for (offset, value) in [(512, 8u8), (520, 1), (527, 0x80), (528, 1)] {
        let mut bench = busy();
        bench.run(XSAVE64).expect("XSAVE64");
        bench.write(OPERAND + offset, &[value]);
        assert_eq!(bench.run(XRSTOR64), Err(vector::GP), "byte {offset}");
    }
}

#[test]
fn xsaveopt_skips_what_is_in_its_initial_state() {
    let mut bench = Bench::new();
    bench.write(OPERAND, &[0xee; 832]);
    bench.write(OPERAND + 512, &[0; 64]);
    bench.cpu.vector.ymm[2][..16].fill(9);
    bench.run(XSAVEOPT64).expect("XSAVEOPT64");
    assert_eq!(bench.read::<8>(OPERAND + 512), 2u64.to_le_bytes());
    assert_eq!(bench.read::<16>(OPERAND + 160 + 32), [9; 16]);
    assert_eq!(bench.read::<16>(OPERAND + 32), [0xee; 16]);
    assert_eq!(bench.read::<16>(OPERAND + 576), [0xee; 16]);
}

#[test]
fn mxcsr_refuses_bits_that_do_not_exist() {
    let mut bench = Bench::new();
    bench.write(OPERAND, &0x1_1f80u32.to_le_bytes());
    assert_eq!(bench.run(LDMXCSR), Err(vector::GP));
    bench.write(OPERAND, &0xffffu32.to_le_bytes());
    bench.run(LDMXCSR).expect("LDMXCSR");
    bench.write(OPERAND, &[0; 4]);
    bench.run(STMXCSR).expect("STMXCSR");
    assert_eq!(bench.read::<4>(OPERAND), 0xffffu32.to_le_bytes());
}

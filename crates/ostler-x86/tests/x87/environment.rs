//! The four formats of the environment.

use ostler_x86::cpu::Mode;
use ostler_x86::cpu::segment::{DATA_RIGHTS, DS, SegmentRegister};

use crate::bench::{Bench, OPERAND};

/// [SI] in 16-bit code, [ESI] in 32-bit code.
const OPERAND_16: u8 = 0x04;
const OPERAND_32: u8 = 0x06;

fn bench(mode: Mode, bitness: u32) -> Bench {
    let mut bench = Bench::new();
    bench.cpu.mode = mode;
    bench.cpu.bitness = bitness;
    bench.cpu.efer = 0;
    bench.cpu.segments[DS] = SegmentRegister { limit: 0xffff, rights: DATA_RIGHTS, ..SegmentRegister::real(0) };
    let x87 = &mut bench.cpu.vector.x87;
    (x87.fcw, x87.fsw, x87.ftw, x87.fop) = (0x37f, 0x3000, 0x40, 0x5a5);
    (x87.fip, x87.fdp) = (0x0008_0001_2345, 0x0010_0006_789a);
    bench
}

fn stored(mode: Mode, bitness: u32, prefix: Option<u8>) -> [u8; 28] {
    let mut bench = bench(mode, bitness);
    let operand = if bitness == 16 { OPERAND_16 } else { OPERAND_32 };
    bench.write(OPERAND, &[0xee; 28]);
    let code = |group: u8| prefix.into_iter().chain([0xd9, group << 3 | operand]).collect::<Vec<_>>();
    bench.run(&code(6)).expect("FNSTENV");
    let image = bench.read(OPERAND);
    bench.run(&code(4)).expect("FLDENV");
    bench.write(OPERAND, &[0xee; 28]);
    bench.run(&code(6)).expect("FNSTENV");
    assert_eq!(bench.read::<28>(OPERAND), image, "FLDENV takes back what FNSTENV wrote");
    image
}

#[test]
fn protected_32_bit_environment_has_far_pointers_and_the_opcode() {
    let image = stored(Mode::Protected, 32, None);
    let expected: [u32; 7] =
        [0xffff_037f, 0xffff_3000, 0xffff_dfff, 0x0001_2345, 0x05a5_0008, 0x0006_789a, 0x0000_0010];
    let words: Vec<u32> =
        image.chunks(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect();
    // The operand's selector has ones above it, or zeros.
    assert_eq!(words[..6], expected[..6]);
    assert_eq!(words[6] & 0xffff, expected[6]);
}

#[test]
fn protected_16_bit_environment_has_far_pointers_only() {
    let image = stored(Mode::Protected, 32, Some(0x66));
    let expected: [u16; 7] = [0x037f, 0x3000, 0xdfff, 0x2345, 0x0008, 0x789a, 0x0010];
    let words: Vec<u16> = image[..14].chunks(2).map(|word| u16::from_le_bytes([word[0], word[1]])).collect();
    assert_eq!(words, expected);
    assert_eq!(image[14..], [0xee; 14]);
}

#[test]
fn real_mode_16_bit_environment_has_20_bit_addresses() {
    let image = stored(Mode::Real, 16, None);
    // 0x12345 + 0x80 and 0x6789a + 0x100.
    let expected: [u16; 7] = [0x037f, 0x3000, 0xdfff, 0x23c5, 0x15a5, 0x799a, 0x6000];
    let words: Vec<u16> = image[..14].chunks(2).map(|word| u16::from_le_bytes([word[0], word[1]])).collect();
    assert_eq!(words, expected);
}

#[test]
fn real_mode_32_bit_environment_has_32_bit_addresses() {
    let image = stored(Mode::Real, 16, Some(0x66));
    let words: Vec<u32> =
        image.chunks(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect();
    assert_eq!(words[3..], [0x23c5, 0x15a5, 0x799a, 0x6000]);
}

//! Every x87 instruction and what MMX does to the x87 state, on random states, by the host and by us.

use iced_x86::{Decoder, DecoderOptions, Mnemonic};

use crate::bench::{Bench, OPERAND};
use crate::native::{Image, Native, State};
use crate::values::Values;

const ROUNDS: u64 = 60;
/// CF, PF, AF, ZF, SF, OF.
const ARITHMETIC: u64 = 0x8d5;

/// Every opcode and ModRM byte with a register operand, or with the memory operand [RSI].
fn every_form() -> impl Iterator<Item = [u8; 2]> {
    (0xd8..=0xdf).flat_map(|opcode| {
        let memory = (0..8).map(|group| group << 3 | 6);
        memory.chain(0xc0..=0xff).map(move |modrm| [opcode, modrm])
    })
}

fn mnemonic(code: &[u8]) -> Mnemonic {
    Decoder::new(64, code, DecoderOptions::NONE).decode().mnemonic()
}

/// Runs `code` on both CPUs, from the same random state.
fn compare(native: &mut Native, code: &[u8], values: &mut Values) {
    let name = mnemonic(code);
    let before = values.state();
    let mut memory = values.memory();
    let flags = values.next() & ARITHMETIC | 2;
    let mut bench = Bench::new();
    bench.cpu.vector.x87 = before;
    bench.cpu.flags.set_u64(flags);
    bench.write(OPERAND, &memory);
    let mut image = Image::of(&before);
    // SAFETY: an x87 instruction with at most 108 bytes of operand; nothing is pending.
    let flags_after = unsafe { native.run(code, &mut image, &mut memory, flags) };
    bench.run(code).unwrap_or_else(|vector| panic!("{name:?} raised exception {vector}"));
    let ours = State::of(&bench.cpu.vector.x87);
    assert_eq!(ours, image.state(), "{name:?} {code:02x?} after\n{:?}and {memory:02x?}", State::of(&before));
    assert_eq!(bench.cpu.flags.to_u64() & ARITHMETIC, flags_after & ARITHMETIC, "{name:?}: RFLAGS");
    let (ours, theirs): ([u8; 128], _) = (bench.read(OPERAND), memory);
    if matches!(name, Mnemonic::Fnstenv | Mnemonic::Fnsave) {
        // The pointers are the instruction's, which the host ran elsewhere.
        assert_eq!((&ours[..12], &ours[28..]), (&theirs[..12], &theirs[28..]), "{name:?}: memory");
    } else {
        assert_eq!(ours, theirs, "{name:?} {code:02x?}: memory, after {:?}", State::of(&before));
    }
}

#[test]
fn every_x87_instruction_does_what_the_host_does() {
    let mut native = Native::new();
    let mut values = Values::new(1);
    let mut forms = 0;
    for code in every_form() {
        // FNSTSW AX writes a register that the harness uses.
        let name = mnemonic(&code);
        if name == Mnemonic::INVALID || code == [0xdf, 0xe0] || ostler_x86::isa::row(name).is_none() {
            continue;
        }
        forms += 1;
        (0..ROUNDS).for_each(|_| compare(&mut native, &code, &mut values));
    }
    assert_eq!(forms, 479, "processors accept 480 forms, FNSTSW AX among them");
}

#[test]
fn mmx_instructions_leave_the_x87_state_that_the_host_leaves() {
    let mut native = Native::new();
    let mut values = Values::new(2);
    let codes: [&[u8]; 7] = [
        &[0x0f, 0x77],             // EMMS
        &[0x0f, 0x6f, 0x1e],       // MOVQ MM3, [RSI]
        &[0x0f, 0x7f, 0x2e],       // MOVQ [RSI], MM5
        &[0x0f, 0xfc, 0xd1],       // PADDB MM2, MM1
        &[0x0f, 0xef, 0x3e],       // PXOR MM7, [RSI]
        &[0x0f, 0x6e, 0x26],       // MOVD MM4, [RSI]
        &[0x0f, 0x70, 0xc8, 0x1b], // PSHUFW MM1, MM0, 0x1b
    ];
    for code in codes {
        (0..ROUNDS).for_each(|_| compare(&mut native, code, &mut values));
    }
}

#[test]
fn fnstsw_ax_gives_the_status_word() {
    let mut values = Values::new(3);
    let mut bench = Bench::new();
    bench.cpu.vector.x87 = values.state();
    bench.run(&[0xdf, 0xe0]).expect("FNSTSW AX");
    let expected = u64::MAX << 16 | u64::from(bench.cpu.vector.x87.fsw);
    assert_eq!(bench.cpu.regs.get(ostler_x86::cpu::regs::RAX), expected);
}

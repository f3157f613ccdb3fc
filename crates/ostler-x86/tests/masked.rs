//! Masked moves and gathers, against the host's own.

#[path = "x87/bench.rs"]
mod bench;

use iced_x86::code_asm::*;
use iced_x86::{Code, Encoder, IcedError, Instruction, MemoryOperand, Register as R};
use ostler_x86::cpu::control::{cr0, cr4};
use ostler_x86::cpu::regs::{RDI, RSI};
use ostler_x86::cpu::stop::vector;

use bench::{Bench, OPERAND};

const ROUNDS: usize = 200;
/// Bytes around the operand that the instructions may reach.
const AREA_BYTES: usize = 4096;
/// The operand is in the middle of the area.
const MIDDLE: usize = AREA_BYTES / 2;

type Registers = [[u8; 32]; 16];

fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
    *state >> 32 ^ *state << 16
}

/// One instruction with its memory operand based on RSI.
fn instruction(write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(64).expect("64 bits");
    write(&mut assembler).expect("an instruction");
    assembler.assemble(0).expect("code")
}

/// `code target, [rsi + indices * scale + displacement], mask`.
fn gather(code: Code, target: R, indices: R, scale: u32, displacement: i64, mask: R) -> Vec<u8> {
    let memory = MemoryOperand::with_base_index_scale_displ_size(R::RSI, indices, scale, displacement, 1);
    let instruction = Instruction::with3(code, target, memory, mask).expect("an instruction");
    let mut encoder = Encoder::new(64);
    encoder.encode(&instruction, 0).expect("code");
    encoder.take_buffer()
}

fn cases() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("vmaskmovps load", instruction(|a| a.vmaskmovps(xmm3, xmm5, ptr(rsi)))),
        ("vmaskmovpd load", instruction(|a| a.vmaskmovpd(ymm3, ymm5, ptr(rsi)))),
        ("vpmaskmovd load", instruction(|a| a.vpmaskmovd(ymm3, ymm5, ptr(rsi)))),
        ("vpmaskmovq load", instruction(|a| a.vpmaskmovq(xmm3, xmm5, ptr(rsi)))),
        ("vmaskmovps store", instruction(|a| a.vmaskmovps(ptr(rsi), ymm5, ymm3))),
        ("vmaskmovpd store", instruction(|a| a.vmaskmovpd(ptr(rsi), xmm5, xmm3))),
        ("vpmaskmovd store", instruction(|a| a.vpmaskmovd(ptr(rsi), xmm5, xmm3))),
        ("vpmaskmovq store", instruction(|a| a.vpmaskmovq(ptr(rsi), ymm5, ymm3))),
        ("maskmovdqu", instruction(|a| a.maskmovdqu(xmm3, xmm5))),
        ("vmaskmovdqu", instruction(|a| a.vmaskmovdqu(xmm3, xmm5))),
        ("vpgatherdd", gather(Code::VEX_Vpgatherdd_ymm_vm32y_ymm, R::YMM3, R::YMM12, 4, 0, R::YMM5)),
        ("vpgatherdd x", gather(Code::VEX_Vpgatherdd_xmm_vm32x_xmm, R::XMM3, R::XMM12, 1, 0, R::XMM5)),
        ("vpgatherdq", gather(Code::VEX_Vpgatherdq_ymm_vm32x_ymm, R::YMM3, R::XMM12, 8, 0, R::YMM5)),
        ("vpgatherqd", gather(Code::VEX_Vpgatherqd_xmm_vm64y_xmm, R::XMM3, R::YMM12, 2, 0, R::XMM5)),
        ("vpgatherqd x", gather(Code::VEX_Vpgatherqd_xmm_vm64x_xmm, R::XMM3, R::XMM12, 2, 7, R::XMM5)),
        ("vpgatherqq", gather(Code::VEX_Vpgatherqq_ymm_vm64y_ymm, R::YMM3, R::YMM12, 1, 0, R::YMM5)),
        ("vgatherdps", gather(Code::VEX_Vgatherdps_xmm_vm32x_xmm, R::XMM3, R::XMM12, 4, 0, R::XMM5)),
        ("vgatherdpd", gather(Code::VEX_Vgatherdpd_xmm_vm32x_xmm, R::XMM3, R::XMM12, 8, 0, R::XMM5)),
        ("vgatherqps", gather(Code::VEX_Vgatherqps_xmm_vm64y_xmm, R::XMM3, R::YMM12, 4, 0, R::XMM5)),
        ("vgatherqpd", gather(Code::VEX_Vgatherqpd_ymm_vm64y_ymm, R::YMM3, R::YMM12, 8, 0, R::YMM5)),
    ]
}

/// Runs `code` by the host with RSI and RDI at `operand`.
fn run_natively(code: &[u8], registers: &mut Registers, operand: *mut u8) {
    let mut assembler = CodeAssembler::new(64).expect("64 bits");
    let all = [ymm0, ymm1, ymm2, ymm3, ymm4, ymm5, ymm6, ymm7, ymm8, ymm9, ymm10, ymm11, ymm12, ymm13, ymm14, ymm15];
    let body = |a: &mut CodeAssembler| -> Result<(), IcedError> {
        a.mov(rax, rdi)?;
        for (index, register) in all.into_iter().enumerate() {
            a.vmovups(register, ymmword_ptr(rax + 32 * index as i32))?;
        }
        a.mov(rdi, rsi)?;
        a.db(code)?;
        for (index, register) in all.into_iter().enumerate() {
            a.vmovups(ymmword_ptr(rax + 32 * index as i32), register)?;
        }
        a.vzeroupper()?;
        a.ret()
    };
    body(&mut assembler).expect("the frame");
    let bytes = assembler.assemble(0).expect("code");
    // SAFETY: the page is new; the code touches the registers' array and the area around `operand`.
    unsafe {
        let page = libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        assert_ne!(page, libc::MAP_FAILED);
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), page.cast(), bytes.len());
        let run: extern "sysv64" fn(*mut Registers, *mut u8) = std::mem::transmute(page);
        run(registers, operand);
        libc::munmap(page, 4096);
    }
}

/// Random registers; those of YMM12 are small indices of 4 or 8 bytes.
fn random_registers(state: &mut u64, index_bytes: usize) -> Registers {
    let mut registers = [[0; 32]; 16];
    registers.iter_mut().flatten().for_each(|byte| *byte = next(state) as u8);
    for index in registers[12].chunks_mut(index_bytes) {
        let value = (next(state) % 200) as i64 - 100;
        index.copy_from_slice(&value.to_le_bytes()[..index_bytes]);
    }
    registers
}

fn compare(name: &str, code: &[u8], state: &mut u64) {
    let index_bytes = if name.contains("gatherq") { 8 } else { 4 };
    let mut registers = random_registers(state, index_bytes);
    let mut area: [u8; AREA_BYTES] = std::array::from_fn(|_| next(state) as u8);
    let mut bench = Bench::new();
    bench.cpu.vector.ymm = registers;
    bench.cpu.regs.set(RDI, OPERAND);
    let start = OPERAND - MIDDLE as u64;
    bench.write(start, &area);
    bench.run(code).unwrap_or_else(|vector| panic!("{name}: exception {vector}"));
    run_natively(code, &mut registers, area[MIDDLE..].as_mut_ptr());
    assert_eq!(bench.cpu.vector.ymm, registers, "{name}: registers");
    assert_eq!(bench.read::<AREA_BYTES>(start), area, "{name}: memory");
}

#[test]
fn masked_moves_and_gathers_do_what_the_host_does() {
    if !is_x86_feature_detected!("avx2") {
        return;
    }
    let mut state = 1;
    for (name, code) in cases() {
        (0..ROUNDS).for_each(|_| compare(name, &code, &mut state));
    }
}

#[test]
fn disabled_elements_are_not_accessed() {
    let mut bench = Bench::new();
    // The first half is not canonical, the second half wraps to 0.
    bench.cpu.regs.set(RSI, 0u64.wrapping_sub(16));
    bench.cpu.regs.set(RDI, 1 << 47);
    bench.cpu.vector.ymm[5] = [0; 32];
    for (name, code) in cases() {
        assert_eq!(bench.run(&code), Ok(()), "{name}");
    }
    bench.cpu.regs.set(RSI, 1 << 47);
    for (name, code) in cases() {
        bench.cpu.vector.ymm[12] = [0; 32];
        bench.cpu.vector.ymm[5] = [0xff; 32];
        assert_eq!(bench.run(&code), Err(vector::GP), "{name}");
    }
}

/// Identity paging of the first 32 KiB, but page 2 is absent.
fn with_page_2_absent() -> Bench {
    const TABLES: u64 = 0x8000;
    const PRESENT_WRITABLE: u64 = 3;
    let mut bench = Bench::new();
    for level in 0..3 {
        let next = TABLES + 0x1000 * (level + 1);
        bench.write(TABLES + 0x1000 * level, &(next | PRESENT_WRITABLE).to_le_bytes());
    }
    for page in [0, 1, 3, 4, 5, 6, 7] {
        bench.write(TABLES + 0x3000 + 8 * page, &(page << 12 | PRESENT_WRITABLE).to_le_bytes());
    }
    bench.cpu.cr3 = TABLES;
    bench.cpu.cr4 |= cr4::PAE;
    bench.cpu.cr0 |= cr0::PG;
    bench
}

#[test]
fn a_masked_store_that_faults_stores_nothing() {
    let mut bench = with_page_2_absent();
    let code = instruction(|a| a.vpmaskmovd(ptr(rsi), ymm5, ymm3));
    bench.write(0x1ff0, &[0xee; 16]);
    bench.cpu.regs.set(RSI, 0x1ff0);
    bench.cpu.vector.ymm[5] = [0xff; 32];
    bench.cpu.vector.ymm[3] = [0x77; 32];
    assert_eq!(bench.run(&code), Err(vector::PF));
    assert_eq!(bench.cpu.fault.address, 0x2000);
    assert_eq!(bench.read(0x1ff0), [0xee; 16]);
    bench.cpu.vector.ymm[5][16..].fill(0);
    assert_eq!(bench.run(&code), Ok(()), "the elements of the absent page are disabled");
    assert_eq!(bench.read(0x1ff0), [0x77; 16]);
}

#[test]
fn a_gather_that_faults_keeps_what_it_has_done() {
    let mut bench = Bench::new();
    let code = gather(Code::VEX_Vpgatherqq_ymm_vm64y_ymm, R::YMM3, R::YMM12, 1, 0, R::YMM5);
    bench.write(OPERAND, &[0x11; 8]);
    bench.write(OPERAND + 8, &[0x22; 8]);
    bench.cpu.vector.ymm[3] = [0xaa; 32];
    bench.cpu.vector.ymm[5] = [0xff; 32];
    bench.cpu.vector.ymm[12] = [0; 32];
    bench.cpu.vector.ymm[12][8] = 8;
    bench.cpu.vector.ymm[12][16 + 7] = 0x40;
    assert_eq!(bench.run(&code), Err(vector::GP));
    let target = bench.cpu.vector.ymm[3];
    assert_eq!((target[..8].to_vec(), target[8..16].to_vec()), (vec![0x11; 8], vec![0x22; 8]));
    assert_eq!(target[16..], [0xaa; 16]);
    assert_eq!((&bench.cpu.vector.ymm[5][..16], &bench.cpu.vector.ymm[5][16..]), (&[0; 16][..], &[0xff; 16][..]));
    // The handler repairs the index, and the instruction runs again.
    bench.cpu.vector.ymm[12][16 + 7] = 0;
    bench.write(OPERAND, &[0x33; 8]);
    bench.run(&code).expect("no fault any more");
    assert_eq!(bench.cpu.vector.ymm[3][..8], [0x11; 8], "not loaded again");
    assert_eq!(bench.cpu.vector.ymm[3][16..], [0x33; 16]);
    assert_eq!(bench.cpu.vector.ymm[5], [0; 32]);
}

#[test]
fn a_gather_with_two_equal_registers_is_undefined() {
    let mut bench = Bench::new();
    // VPGATHERDD XMM3, [RSI + XMM3], XMM5 and VPGATHERDD XMM3, [RSI + XMM4], XMM3.
    for code in [[0xc4, 0xe2, 0x51, 0x90, 0x1c, 0x1e], [0xc4, 0xe2, 0x61, 0x90, 0x1c, 0x26]] {
        assert_eq!(bench.run(&code), Err(vector::UD));
    }
}

#[test]
fn maskmovq_stores_the_bytes_of_an_mmx_register() {
    let mut bench = Bench::new();
    bench.cpu.regs.set(RDI, OPERAND);
    bench.cpu.vector.x87.st[1][..8].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
    bench.cpu.vector.x87.st[2][..8].copy_from_slice(&[0x80, 0, 0xff, 0x7f, 0, 0x80, 0, 0x80]);
    bench.write(OPERAND, &[0xee; 8]);
    bench.run(&[0x0f, 0xf7, 0xca]).expect("MASKMOVQ MM1, MM2");
    assert_eq!(bench.read(OPERAND), [1, 0xee, 3, 0xee, 0xee, 6, 0xee, 8]);
    assert_eq!(bench.cpu.vector.x87.ftw, 0xff);
}

//! Whole-register moves, which need no stub.

use iced_x86::{EncodingKind, Instruction, Mnemonic};

use crate::cpu::Cpu;
use crate::cpu::stop::{Exec, Stop};
use crate::decode::op::{Handler, Op};
use crate::exec::operand::is_memory;
use crate::exec::vector::host_has;

/// Bytes that the move is aligned to when it touches memory, in `sub`; 0 for none.
fn operand_address(cpu: &mut Cpu, op: &Op, bytes: usize, write: bool) -> Result<u64, Stop> {
    let linear = cpu.linear(op, bytes, write)?;
    if op.sub != 0 && linear % u64::from(op.sub) != 0 {
        return Err(cpu.gp(0));
    }
    Ok(linear)
}

fn check<const VEX: bool>(cpu: &mut Cpu) -> Exec {
    if VEX { cpu.check_avx() } else { cpu.check_sse() }
}

/// Loads `N` bytes into a register; VEX clears what is above.
fn load<const N: usize, const VEX: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    check::<VEX>(cpu)?;
    let linear = operand_address(cpu, op, N, false)?;
    let mut value = [0; 32];
    cpu.load_vector(linear, &mut value[..N])?;
    set_register::<N, VEX>(cpu, op.reg0, &value);
    Ok(())
}

fn store<const N: usize, const VEX: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    check::<VEX>(cpu)?;
    let linear = operand_address(cpu, op, N, true)?;
    let value = cpu.vector.ymm[usize::from(op.reg1 % 16)];
    cpu.store_vector(linear, &value[..N])
}

fn copy<const N: usize, const VEX: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    check::<VEX>(cpu)?;
    let value = cpu.vector.ymm[usize::from(op.reg1 % 16)];
    set_register::<N, VEX>(cpu, op.reg0, &value);
    Ok(())
}

#[inline(always)]
fn set_register<const N: usize, const VEX: bool>(cpu: &mut Cpu, number: u8, value: &[u8; 32]) {
    let register = &mut cpu.vector.ymm[usize::from(number % 16)];
    register[..N].copy_from_slice(&value[..N]);
    if VEX {
        register[N..].fill(0);
    }
}

/// MOVAPS, MOVUPS and their like, 16 or 32 bytes.
pub fn select_move(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let vex = match instruction.code().op_code().encoding() {
        EncodingKind::Legacy => false,
        EncodingKind::VEX => true,
        _ => return None,
    };
    if !host_has(instruction) {
        return None;
    }
    let wide = instruction.op0_register().is_ymm() || instruction.op1_register().is_ymm();
    let bytes: u8 = if wide { 32 } else { 16 };
    op.sub = if is_aligned_move(instruction.mnemonic()) { bytes } else { 0 };
    Some(match (is_memory(instruction, 0), is_memory(instruction, 1), wide, vex) {
        (true, _, true, _) => store::<32, true>,
        (true, _, false, true) => store::<16, true>,
        (true, _, false, false) => store::<16, false>,
        (_, true, true, _) => load::<32, true>,
        (_, true, false, true) => load::<16, true>,
        (_, true, false, false) => load::<16, false>,
        (_, _, true, _) => copy::<32, true>,
        (_, _, false, true) => copy::<16, true>,
        (_, _, false, false) => copy::<16, false>,
    })
}

fn is_aligned_move(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Movaps
            | M::Movapd
            | M::Movdqa
            | M::Movntps
            | M::Movntpd
            | M::Movntdq
            | M::Movntdqa
            | M::Vmovaps
            | M::Vmovapd
            | M::Vmovdqa
            | M::Vmovntps
            | M::Vmovntpd
            | M::Vmovntdq
            | M::Vmovntdqa
    )
}

/// Registers that VZEROUPPER and VZEROALL reach outside 64-bit mode.
fn reachable(cpu: &Cpu) -> usize {
    if cpu.bitness == 64 { 16 } else { 8 }
}

fn vzeroupper(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.check_avx()?;
    let count = reachable(cpu);
    cpu.vector.ymm[..count].iter_mut().for_each(|register| register[16..].fill(0));
    Ok(())
}

fn vzeroall(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.check_avx()?;
    let count = reachable(cpu);
    cpu.vector.ymm[..count].fill([0; 32]);
    Ok(())
}

pub fn select_zeroupper(instruction: &Instruction, _: &mut Op) -> Option<Handler> {
    if !host_has(instruction) {
        return None;
    }
    Some(if instruction.mnemonic() == Mnemonic::Vzeroall { vzeroall } else { vzeroupper })
}

//! Invalidations of translations and caches.

use iced_x86::Instruction;

use crate::cpu::control::cr4;
use crate::cpu::stop::{Exec, Stop};
use crate::cpu::{Cpu, Mode};
use crate::decode::op::{Handler, Op};
use crate::mmu::access::is_canonical;

pub fn invlpg(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.require_cpl0()?;
    let offset = cpu.effective_address(op);
    let linear = cpu.wrap(cpu.segment_base[usize::from(op.seg)].wrapping_add(offset));
    cpu.flush_page(linear);
    serialize();
    Err(Stop::EndBlock)
}

pub fn select_invpcid(_: &Instruction, op: &mut Op) -> Option<Handler> {
    // The type is in the register operand.
    op.size = 16;
    Some(invpcid)
}

/// INVPCID: an address in one address space; one address space; all, with or without global pages.
fn invpcid(cpu: &mut Cpu, op: &Op) -> Exec {
    if cpu.mode == Mode::Virtual8086 {
        return Err(cpu.gp(0));
    }
    cpu.require_cpl0()?;
    let kind = if cpu.bitness == 64 { cpu.regs.read(op.reg0) } else { u64::from(cpu.regs.read::<u32>(op.reg0)) };
    let linear = cpu.linear(op, 16, false)?;
    let pcid = cpu.load::<u64>(linear)?;
    let address = cpu.load::<u64>(cpu.wrap(linear.wrapping_add(8)))?;
    let foreign = matches!(kind, 0 | 1) && pcid & 0xfff != 0 && cpu.cr4 & cr4::PCIDE == 0;
    if kind > 3 || kind < 2 && pcid >> 12 != 0 || foreign || kind == 0 && !is_canonical(address) {
        return Err(cpu.gp(0));
    }
    match kind {
        0 => cpu.flush_page_of(pcid, address),
        1 => cpu.flush_space(pcid),
        2 => cpu.flush_tlb(),
        _ => cpu.flush_spaces(),
    }
    serialize();
    Err(Stop::EndBlock)
}

/// INVD and WBINVD: there is no cache that memory could differ from.
pub fn invalidate_caches(cpu: &mut Cpu, _: &Op) -> Exec {
    serialize();
    cpu.require_cpl0()
}

/// CLFLUSH, CLFLUSHOPT, CLWB: no cache, but the address is accessed as by a load.
pub fn flush_line(cpu: &mut Cpu, op: &Op) -> Exec {
    let linear = cpu.linear(op, 1, false)?;
    cpu.load::<u8>(linear).map(|_| ())
}

/// LFENCE and prefetches.
pub fn nothing(_: &mut Cpu, _: &Op) -> Exec {
    Ok(())
}

/// What serializing instructions do besides their own work: no later load is made before an earlier store is seen
/// (SDM vol. 3, 9.3).
pub fn serialize() {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
}

/// MFENCE and SFENCE: guest loads and stores are host loads and stores.
pub fn fence(_: &mut Cpu, _: &Op) -> Exec {
    serialize();
    Ok(())
}

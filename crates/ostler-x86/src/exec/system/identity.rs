//! What the processor says about itself: CPUID, time stamps, random numbers, MSRs, XCR0.

use iced_x86::{Instruction, Mnemonic};

use crate::cpu::Cpu;
use crate::cpu::control::cr4;
use crate::cpu::regs::{RAX, RBX, RCX, RDX};
use crate::cpu::stop::{Exec, Stop};
use crate::decode::op::{Handler, Op};
use crate::exec::system::tlb::serialize;
use crate::msr;

fn set_edx_eax(cpu: &mut Cpu, value: u64) {
    cpu.regs.set(RAX, value & 0xffff_ffff);
    cpu.regs.set(RDX, value >> 32);
}

fn edx_eax(cpu: &Cpu) -> u64 {
    cpu.regs.get(RAX) & 0xffff_ffff | cpu.regs.get(RDX) << 32
}

pub fn cpuid(cpu: &mut Cpu, _: &Op) -> Exec {
    let (leaf, subleaf) = (cpu.regs.get(RAX) as u32, cpu.regs.get(RCX) as u32);
    let answer = cpu.cpuid_answer(leaf, subleaf);
    serialize();
    for (register, value) in [(RAX, answer.eax), (RBX, answer.ebx), (RCX, answer.ecx), (RDX, answer.edx)] {
        cpu.regs.set(register, u64::from(value));
    }
    Ok(())
}

fn require_tsc(cpu: &mut Cpu) -> Exec {
    if cpu.cpl != 0 && cpu.cr4 & cr4::TSD != 0 { Err(cpu.gp(0)) } else { Ok(()) }
}

pub fn rdtsc(cpu: &mut Cpu, _: &Op) -> Exec {
    require_tsc(cpu)?;
    let tsc = cpu.tsc();
    set_edx_eax(cpu, tsc);
    Ok(())
}

pub fn rdtscp(cpu: &mut Cpu, _: &Op) -> Exec {
    require_tsc(cpu)?;
    let tsc = cpu.tsc();
    set_edx_eax(cpu, tsc);
    cpu.regs.set(RCX, cpu.msrs.tsc_aux & 0xffff_ffff);
    Ok(())
}

pub fn rdpid(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.regs.write(op.reg0, cpu.msrs.tsc_aux & 0xffff_ffff);
    Ok(())
}

/// RDPMC: there are no performance counters.
pub fn rdpmc(cpu: &mut Cpu, _: &Op) -> Exec {
    Err(cpu.gp(0))
}

pub fn rdmsr(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.require_cpl0()?;
    let index = cpu.regs.get(RCX) as u32;
    if (msr::index::X2APIC_FIRST..=msr::index::X2APIC_LAST).contains(&index) {
        cpu.settle_pv_eoi();
    }
    match cpu.read_msr(index) {
        Some(value) => {
            set_edx_eax(cpu, value);
            Ok(())
        }
        None => Err(cpu.gp(0)),
    }
}

pub fn wrmsr(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.require_cpl0()?;
    let (index, value) = (cpu.regs.get(RCX) as u32, edx_eax(cpu));
    serialize();
    if cpu.write_msr(index, value) { Err(Stop::EndBlock) } else { Err(cpu.gp(0)) }
}

fn require_osxsave(cpu: &mut Cpu) -> Exec {
    if cpu.cr4 & cr4::OSXSAVE == 0 { Err(cpu.undefined()) } else { Ok(()) }
}

pub fn xgetbv(cpu: &mut Cpu, _: &Op) -> Exec {
    require_osxsave(cpu)?;
    if cpu.regs.get(RCX) as u32 != 0 {
        return Err(cpu.gp(0));
    }
    let value = cpu.xcr0;
    set_edx_eax(cpu, value);
    Ok(())
}

pub fn xsetbv(cpu: &mut Cpu, _: &Op) -> Exec {
    require_osxsave(cpu)?;
    cpu.require_cpl0()?;
    let value = edx_eax(cpu);
    if cpu.regs.get(RCX) as u32 != 0 || !cpu.set_xcr0(value) {
        return Err(cpu.gp(0));
    }
    Err(Stop::EndBlock)
}

/// RDRAND and RDSEED: both from the host's generator.
pub fn select_random(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    op.sub = u8::from(instruction.mnemonic() == Mnemonic::Rdseed);
    Some(random)
}

fn random(cpu: &mut Cpu, op: &Op) -> Exec {
    let mut bytes = [0; 8];
    // SAFETY: the buffer has the length that is given.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), libc::GRND_NONBLOCK) };
    let value = (got == 8).then(|| u64::from_le_bytes(bytes));
    // CF says whether there is a number; the destination is zero if not.
    cpu.flags.set_arithmetic(u64::from(value.is_some()));
    let value = value.unwrap_or(0);
    match op.size {
        2 => cpu.regs.write(op.reg0, value as u16),
        4 => cpu.regs.write(op.reg0, value as u32),
        _ => cpu.regs.write(op.reg0, value),
    }
    Ok(())
}

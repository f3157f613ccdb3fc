//! Instructions on the control and status words.

use iced_x86::{Instruction, Mnemonic};

use crate::cpu::Cpu;
use crate::cpu::stop::Exec;
use crate::decode::op::{Handler, Op};
use crate::exec::operand::is_memory;
use crate::exec::x87::registers::fsw;

fn wait(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.check_wait()?;
    cpu.report_pending_x87()
}

fn fninit(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.check_fpu()?;
    cpu.vector.x87.initialize();
    cpu.summarize_x87();
    Ok(())
}

fn fnclex(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.check_fpu()?;
    cpu.vector.x87.fsw &= fsw::NOT_CLEARED;
    cpu.summarize_x87();
    Ok(())
}

fn fnstcw(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.check_fpu()?;
    let linear = cpu.linear(op, 2, true)?;
    cpu.store(linear, cpu.vector.x87.fcw)
}

fn fldcw(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.begin_x87()?;
    let linear = cpu.linear(op, 2, false)?;
    let value = cpu.load(linear)?;
    cpu.vector.x87.set_control(value);
    cpu.summarize_x87();
    Ok(())
}

fn fnstsw_ax(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.check_fpu()?;
    cpu.regs.write(op.reg0, cpu.vector.x87.fsw);
    Ok(())
}

fn fnstsw(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.check_fpu()?;
    let linear = cpu.linear(op, 2, true)?;
    cpu.store(linear, cpu.vector.x87.fsw)
}

/// FNENI, FNDISI and FNSETPM meant something to the 8087 and the 287.
fn nothing(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.check_fpu()
}

/// WAIT.
pub fn select_wait(_: &Instruction, _: &mut Op) -> Option<Handler> {
    Some(wait)
}

/// The control instructions but those on the whole environment.
pub fn select_control(instruction: &Instruction, _: &mut Op) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Fninit => fninit,
        Mnemonic::Fnclex => fnclex,
        Mnemonic::Fnstcw => fnstcw,
        Mnemonic::Fldcw => fldcw,
        Mnemonic::Fnstsw if is_memory(instruction, 0) => fnstsw,
        Mnemonic::Fnstsw => fnstsw_ax,
        Mnemonic::Fneni | Mnemonic::Fndisi | Mnemonic::Fnsetpm => nothing,
        _ => return None,
    })
}

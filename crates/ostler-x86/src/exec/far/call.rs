//! Far CALL (SDM vol. 2, CALL; vol. 3, 5.8.4 to 5.8.5).

use crate::cpu::Cpu;
use crate::cpu::control::efer;
use crate::cpu::regs::RSP;
use crate::cpu::segment::{CS, SS};
use crate::cpu::stop::{Exec, Stop};
use crate::decode::op::Op;
use crate::exec::far::descriptor::Descriptor;
use crate::exec::far::jump::{GateEntry, Target, real_code};
use crate::exec::far::stack::FarStack;
use crate::exec::far::task::TaskSource;
use crate::exec::far::{FarPointer, direct, read_far_pointer};

pub fn call_direct(cpu: &mut Cpu, op: &Op) -> Exec {
    call(cpu, op, direct(op))
}

pub fn call_indirect(cpu: &mut Cpu, op: &Op) -> Exec {
    let pointer = read_far_pointer(cpu, op)?;
    call(cpu, op, pointer)
}

fn call(cpu: &mut Cpu, op: &Op, to: FarPointer) -> Exec {
    let return_rip = cpu.next_rip(op);
    let bytes = usize::from(op.size);
    if cpu.is_real_or_v86() {
        let code = real_code(cpu, to)?;
        let stack = push_return(cpu, FarStack::current(cpu), bytes, return_rip)?;
        cpu.regs.set(RSP, stack.pointer);
        cpu.set_code(code, to.offset);
        return Err(Stop::Jump);
    }
    match cpu.far_target(to.selector)? {
        Target::Code(descriptor) => {
            let stack = push_return(cpu, FarStack::current(cpu), bytes, return_rip)?;
            let code = cpu.direct_code(descriptor, to)?;
            cpu.regs.set(RSP, stack.pointer);
            cpu.set_code(code, to.offset);
        }
        Target::CallGate(gate) => {
            let entry = cpu.call_gate_entry(gate, to.selector)?;
            call_gate(cpu, gate, &entry, return_rip)?;
        }
        Target::Task(selector) => cpu.switch_task(selector, TaskSource::Call, return_rip)?,
    }
    Err(Stop::Jump)
}

fn push_return(cpu: &mut Cpu, mut stack: FarStack, bytes: usize, return_rip: u64) -> Result<FarStack, Stop> {
    stack.push(cpu, bytes, u64::from(cpu.segments[CS].selector))?;
    stack.push(cpu, bytes, return_rip)?;
    Ok(stack)
}

fn call_gate(cpu: &mut Cpu, gate: Descriptor, entry: &GateEntry, return_rip: u64) -> Exec {
    let rights = entry.code.rights();
    let cpl = if rights.conforming() { cpu.cpl } else { entry.code.dpl() };
    let long = cpu.efer & efer::LMA != 0;
    let bytes = match (long, gate.kind() & 8 != 0) {
        (true, _) => 8,
        (false, true) => 4,
        (false, false) => 2,
    };
    let code = cpu.gate_code(entry, cpl, true)?;
    if cpl == cpu.cpl {
        let stack = push_return(cpu, FarStack::current(cpu), bytes, return_rip)?;
        cpu.regs.set(RSP, stack.pointer);
        cpu.set_code(code, entry.offset);
        return Ok(());
    }
    let (segment, mut stack) = if long {
        let pointer = cpu.long_tss_stack(cpl)?;
        (crate::event::null_stack(cpl), FarStack::long(cpu, pointer, cpl))
    } else {
        let (segment, pointer) = cpu.tss_stack(cpl)?;
        (segment, FarStack::entering(cpu, segment, pointer, cpl))
    };
    stack.push(cpu, bytes, u64::from(cpu.segments[SS].selector))?;
    stack.push(cpu, bytes, cpu.regs.get(RSP))?;
    if !long {
        copy_parameters(cpu, &mut stack, bytes, gate.parameter_count())?;
    }
    let stack = push_return(cpu, stack, bytes, return_rip)?;
    cpu.segments[SS] = segment;
    cpu.regs.set(RSP, stack.pointer);
    cpu.cpl = cpl;
    cpu.set_code(code, entry.offset);
    Ok(())
}

fn copy_parameters(cpu: &mut Cpu, stack: &mut FarStack, bytes: usize, count: u32) -> Exec {
    let caller = FarStack::current(cpu);
    for index in (0..u64::from(count)).rev() {
        let value = caller.peek(cpu, index * bytes as u64, bytes)?;
        stack.push(cpu, bytes, value)?;
    }
    Ok(())
}

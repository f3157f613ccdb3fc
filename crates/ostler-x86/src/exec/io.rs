//! Ports and the interrupt controllers' addresses.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::cpu::Cpu;
use crate::cpu::flags::bit;
use crate::cpu::regs::{RCX, RDI, RDX, RSI};
use crate::cpu::segment::{ES, TR};
use crate::cpu::stop::{Exec, Stop};
use crate::cpu::width::Width;
use crate::cpu::{Mode, attention};
use crate::decode::op::{FLAT, Handler, Op, op_flag};
use crate::irqchip::{IOAPIC_BASE, Lapic};
use crate::mmu::mmio::Access;
use crate::mmu::physical::PAGE_MASK;

/// Offset of the I/O map base in a 32-bit or 64-bit TSS.
const TSS_IO_MAP_BASE: u64 = 102;
/// Iterations of a repeated INS or OUTS between two looks at the signals.
const REPEATS: u32 = 64;

impl Cpu {
    /// #GP(0) unless IOPL or the I/O permission bitmap allows the port (SDM vol. 1, 19.5).
    fn require_port(&mut self, port: u16, bytes: usize) -> Exec {
        let privileged = self.mode == Mode::Real || self.mode != Mode::Virtual8086 && self.cpl <= self.flags.iopl();
        if !privileged && !self.bitmap_allows(port, bytes)? {
            return Err(self.gp(0));
        }
        self.port_breakpoint(port, bytes);
        Ok(())
    }

    fn bitmap_allows(&mut self, port: u16, bytes: usize) -> Result<bool, Stop> {
        let task = self.segments[TR];
        let limit = u64::from(task.limit);
        if task.unusable || task.rights.kind() & 8 == 0 || limit < TSS_IO_MAP_BASE + 1 {
            return Ok(false);
        }
        let map = self.load_system::<u16>(self.wrap(task.base.wrapping_add(TSS_IO_MAP_BASE)))?;
        let offset = u64::from(map) + u64::from(port / 8);
        // Two bytes are read always, so that a port's bits may cross into the second.
        if offset + 1 > limit {
            return Ok(false);
        }
        let bits = self.load_system::<u16>(self.wrap(task.base.wrapping_add(offset)))?;
        Ok(bits >> (port % 8) & ((1 << bytes) - 1) == 0)
    }

    fn read_port<W: Width>(&mut self, port: u16) -> Result<W, Stop> {
        let mut data = [0; 8];
        self.port_read(port, &mut data[..W::BYTES])?;
        Ok(W::truncate(u64::from_le_bytes(data)))
    }

    fn write_port<W: Width>(&mut self, port: u16, value: W) -> Exec {
        self.port_write(port, &value.zero_extend().to_le_bytes()[..W::BYTES])
    }

    /// Lets the interrupt controllers answer an access; false when it is not theirs.
    pub fn irqchip_access(&mut self, access: &mut Access) -> bool {
        let page = access.address & PAGE_MASK;
        if !access.port && self.lapic.as_ref().is_some_and(|lapic| lapic.base() == Some(page)) {
            self.settle_pv_eoi();
        }
        let Some(chip) = self.vm.irqchip() else { return false };
        let data = &mut access.data[..access.len];
        if access.port {
            let port = access.address as u16;
            return if access.write { chip.io_write(port, data) } else { chip.io_read(port, data) };
        }
        let offset = access.address & !PAGE_MASK;
        match page {
            IOAPIC_BASE if access.write => chip.ioapic_write(offset, data),
            IOAPIC_BASE => chip.ioapic_read(offset, data),
            page => {
                let lapic = self.lapic.as_ref().filter(|lapic| lapic.base() == Some(page));
                let Some(lapic) = lapic else { return false };
                lapic_access(lapic, offset, data, access.write);
                // The page may have let an interrupt through, or sent one to ourselves.
            }
        }
        true
    }
}

/// An access to the local APIC's page: 32 bits at a multiple of 16; the others are undefined (SDM
/// vol. 3, 11.4.1). Reads of other widths see the bytes of the register.
fn lapic_access(lapic: &Lapic, offset: u64, data: &mut [u8], write: bool) {
    if write {
        if let Some(bytes) = data.first_chunk::<4>() {
            lapic.write(offset, u32::from_le_bytes(*bytes));
        }
        return;
    }
    let shift = (offset % 4) as usize;
    let register = lapic.read(offset & !3).to_le_bytes();
    data.fill(0);
    for (to, from) in data.iter_mut().zip(&register[shift..]) {
        *to = *from;
    }
}

/// IN and OUT. The port is the immediate or DX.
pub fn select(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let is_in = instruction.mnemonic() == Mnemonic::In;
    let (accumulator, port) = if is_in { (0, 1) } else { (1, 0) };
    let immediate = instruction.op_kind(port) == OpKind::Immediate8;
    op.sub = u8::from(!immediate);
    Some(match (is_in, instruction.op_register(accumulator).size()) {
        (true, 1) => port_in::<u8>,
        (true, 2) => port_in::<u16>,
        (true, _) => port_in::<u32>,
        (false, 1) => port_out::<u8>,
        (false, 2) => port_out::<u16>,
        (false, _) => port_out::<u32>,
    })
}

fn port_of(cpu: &Cpu, op: &Op) -> u16 {
    if op.sub != 0 { cpu.regs.get(RDX) as u16 } else { op.imm as u16 & 0xff }
}

fn port_in<W: Width>(cpu: &mut Cpu, op: &Op) -> Exec {
    let port = port_of(cpu, op);
    cpu.require_port(port, W::BYTES)?;
    let value = cpu.read_port::<W>(port)?;
    cpu.regs.write(0, value);
    end_if_attention(cpu)
}

fn port_out<W: Width>(cpu: &mut Cpu, op: &Op) -> Exec {
    let port = port_of(cpu, op);
    cpu.require_port(port, W::BYTES)?;
    let value = cpu.regs.read::<W>(0);
    cpu.write_port(port, value)?;
    end_if_attention(cpu)
}

/// A device may have raised an interrupt, or reset the machine: look before the next instruction.
fn end_if_attention(cpu: &Cpu) -> Exec {
    if cpu.signals.pending() | cpu.attention & attention::BREAKPOINT != 0 { Err(Stop::EndBlock) } else { Ok(()) }
}

/// INS and OUTS.
pub fn select_string(instruction: &Instruction, _: &mut Op) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Insb => string::<u8, In>,
        Mnemonic::Insw => string::<u16, In>,
        Mnemonic::Insd => string::<u32, In>,
        Mnemonic::Outsb => string::<u8, Out>,
        Mnemonic::Outsw => string::<u16, Out>,
        Mnemonic::Outsd => string::<u32, Out>,
        _ => return None,
    })
}

/// One element of a string instruction.
trait Element {
    const INDEX: usize;
    fn transfer<W: Width>(cpu: &mut Cpu, op: &Op, port: u16) -> Exec;
}

struct In;
struct Out;

impl Element for In {
    const INDEX: usize = RDI;
    fn transfer<W: Width>(cpu: &mut Cpu, op: &Op, port: u16) -> Exec {
        let segment = if op.has(op_flag::CHECKED) { ES } else { usize::from(FLAT) };
        let linear = element_address(cpu, op, segment, RDI, W::BYTES, true)?;
        cpu.probe_write(linear, W::BYTES)?;
        let value = cpu.read_port::<W>(port)?;
        cpu.store(linear, value)
    }
}

impl Element for Out {
    const INDEX: usize = RSI;
    fn transfer<W: Width>(cpu: &mut Cpu, op: &Op, port: u16) -> Exec {
        let linear = element_address(cpu, op, usize::from(op.seg), RSI, W::BYTES, false)?;
        let value = cpu.load::<W>(linear)?;
        cpu.write_port(port, value)
    }
}

fn element_address(
    cpu: &mut Cpu,
    op: &Op,
    segment: usize,
    index: usize,
    bytes: usize,
    write: bool,
) -> Result<u64, Stop> {
    let offset = cpu.regs.get(index) & op.address_mask();
    if op.has(op_flag::CHECKED) {
        return cpu.checked_linear(segment, offset, bytes, write);
    }
    Ok(cpu.segment_base[segment].wrapping_add(offset))
}

fn string<W: Width, E: Element>(cpu: &mut Cpu, op: &Op) -> Exec {
    let repeated = op.has(op_flag::REP) || op.has(op_flag::REPNE);
    let mask = op.address_mask();
    let port = cpu.regs.get(RDX) as u16;
    // Checked for no element, too.
    cpu.require_port(port, W::BYTES)?;
    if repeated && cpu.regs.get(RCX) & mask == 0 {
        return Ok(());
    }
    for _ in 0..REPEATS {
        E::transfer::<W>(cpu, op, port)?;
        // What the device saw of this element is not to be replayed for the next.
        cpu.mmu.replay.clear();
        let step = if cpu.flags.has(bit::DF) { 0u64.wrapping_sub(W::BYTES as u64) } else { W::BYTES as u64 };
        advance(cpu, E::INDEX, step, mask);
        if !repeated {
            return end_if_attention(cpu);
        }
        advance(cpu, RCX, u64::MAX, mask);
        if cpu.regs.get(RCX) & mask == 0 {
            return end_if_attention(cpu);
        }
        if cpu.signals.pending() | cpu.attention != 0 {
            break;
        }
    }
    Err(Stop::Repeat)
}

/// Adds to the part of a register that the address size covers; 32 bits clear the upper half.
fn advance(cpu: &mut Cpu, register: usize, by: u64, mask: u64) {
    let value = cpu.regs.get(register);
    let kept = if mask == 0xffff { value & !mask } else { 0 };
    cpu.regs.set(register, kept | value.wrapping_add(by) & mask);
}

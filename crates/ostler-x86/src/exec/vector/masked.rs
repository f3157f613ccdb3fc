//! Loads and stores of some elements only, which touch no memory for the others: VMASKMOVPS,
//! VMASKMOVPD, VPMASKMOVD, VPMASKMOVQ, MASKMOVQ and MASKMOVDQU.

use iced_x86::{EncodingKind, Instruction};

use crate::cpu::Cpu;
use crate::cpu::regs::RDI;
use crate::cpu::stop::{Exec, Stop};
use crate::decode::op::{Handler, Op};
use crate::exec::operand::is_memory;
use crate::exec::vector::host_has;

/// Whether the top bit of element `index`, of `bytes` bytes, is set.
pub fn is_enabled(mask: &[u8], index: usize, bytes: usize) -> bool {
    mask[index * bytes + bytes - 1] & 0x80 != 0
}

impl Cpu {
    /// The linear address of `bytes` bytes, `skip` bytes into the memory operand.
    fn element_address(&mut self, op: &Op, skip: usize, bytes: usize, write: bool) -> Result<u64, Stop> {
        let offset = self.effective_address(op).wrapping_add(skip as u64) & op.address_mask();
        self.segment_linear(op, offset, bytes, write)
    }

    /// Stores the elements of `source` that `mask` enables: all of them, or a fault.
    fn store_masked(&mut self, op: &Op, source: &[u8], mask: &[u8], bytes: usize) -> Exec {
        let enabled = |index: &usize| is_enabled(mask, *index, bytes);
        for index in (0..source.len() / bytes).filter(enabled) {
            let linear = self.element_address(op, index * bytes, bytes, true)?;
            self.probe_vector(linear, bytes)?;
        }
        for index in (0..source.len() / bytes).filter(enabled) {
            let linear = self.element_address(op, index * bytes, bytes, true)?;
            self.store_vector(linear, &source[index * bytes..][..bytes])?;
        }
        Ok(())
    }
}

/// Loads into `reg0` the `N`-byte elements of `W` bytes that `reg1` enables, and zero elsewhere.
fn masked_load<const W: usize, const N: usize>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.check_avx()?;
    let mask = cpu.vector.ymm[usize::from(op.reg1 % 16)];
    let mut value = [0; 32];
    cpu.without_alignment_checks(|cpu| {
        for index in (0..W / N).filter(|index| is_enabled(&mask, *index, N)) {
            let linear = cpu.element_address(op, index * N, N, false)?;
            cpu.load_vector(linear, &mut value[index * N..][..N])?;
        }
        Ok(())
    })?;
    cpu.vector.ymm[usize::from(op.reg0 % 16)] = value;
    Ok(())
}

/// Stores the `N`-byte elements of `W` bytes of `reg2` that `reg1` enables.
fn masked_store<const W: usize, const N: usize>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.check_avx()?;
    let mask = cpu.vector.ymm[usize::from(op.reg1 % 16)];
    let source = cpu.vector.ymm[usize::from(op.reg2 % 16)];
    cpu.without_alignment_checks(|cpu| cpu.store_masked(op, &source[..W], &mask[..W], N))
}

/// VMASKMOVPS, VMASKMOVPD, VPMASKMOVD and VPMASKMOVQ.
pub fn select_masked(instruction: &Instruction, _: &mut Op) -> Option<Handler> {
    if !host_has(instruction) {
        return None;
    }
    let wide = instruction.op1_register().is_ymm();
    let element = instruction.memory_size().element_size();
    Some(match (is_memory(instruction, 0), wide, element) {
        (false, false, 4) => masked_load::<16, 4>,
        (false, false, 8) => masked_load::<16, 8>,
        (false, true, 4) => masked_load::<32, 4>,
        (false, true, 8) => masked_load::<32, 8>,
        (true, false, 4) => masked_store::<16, 4>,
        (true, false, 8) => masked_store::<16, 8>,
        (true, true, 4) => masked_store::<32, 4>,
        (true, true, 8) => masked_store::<32, 8>,
        _ => return None,
    })
}

/// Stores the bytes of `reg1` that `reg2` enables at [rDI].
fn masked_bytes<const VEX: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    if VEX {
        cpu.check_avx()?;
    } else {
        cpu.check_sse()?;
    }
    let [source, mask] = [op.reg1, op.reg2].map(|number| cpu.vector.ymm[usize::from(number % 16)]);
    cpu.store_masked(op, &source[..16], &mask[..16], 1)
}

fn masked_mmx_bytes(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.begin_mmx()?;
    let [source, mask] = [op.reg1, op.reg2].map(|number| cpu.mmx_value(number));
    cpu.store_masked(op, &source, &mask, 1)?;
    cpu.end_mmx();
    Ok(())
}

/// MASKMOVQ, MASKMOVDQU and VMASKMOVDQU, whose memory operand is implied.
pub fn select_masked_bytes(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    if !host_has(instruction) {
        return None;
    }
    op.base = RDI as u8;
    Some(if instruction.op1_register().is_mm() {
        masked_mmx_bytes
    } else if instruction.code().op_code().encoding() == EncodingKind::VEX {
        masked_bytes::<true>
    } else {
        masked_bytes::<false>
    })
}

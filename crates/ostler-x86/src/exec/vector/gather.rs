//! VGATHERxxx and VPGATHERxx: loads of elements at addresses from a vector of indices.
//!
//! A fault leaves what came before it done and its mask elements clear, so that the instruction
//! goes on where it stopped (SDM vol. 2, VPGATHERDD).

use iced_x86::{Instruction, Mnemonic};

use crate::cpu::Cpu;
use crate::cpu::stop::{Exec, Stop};
use crate::decode::op::{Handler, Op};
use crate::exec::vector::host_has;
use crate::exec::vector::masked::is_enabled;

impl Cpu {
    /// The linear address of the element whose index, of `bytes` bytes, is number `position` of `indices`.
    fn gather_address(
        &mut self,
        op: &Op,
        indices: &[u8; 32],
        position: usize,
        bytes: usize,
        element: usize,
    ) -> Result<u64, Stop> {
        let mut word = [0; 8];
        word[..bytes].copy_from_slice(&indices[position * bytes..][..bytes]);
        let index = u64::from_le_bytes(word);
        let index = if bytes == 4 { i64::from(index as i32) as u64 } else { index };
        let offset = self.effective_address(op).wrapping_add(index << op.scale) & op.address_mask();
        self.segment_linear(op, offset, element, false)
    }
}

/// Gathers elements of `E` bytes by indices of `I` bytes; their count is in `size`.
fn gather<const E: usize, const I: usize>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.check_avx()?;
    let count = usize::from(op.size).min(32 / E.max(I));
    let [target, mask_register] = [op.reg0, op.reg2].map(|number| usize::from(number % 16));
    let indices = cpu.vector.ymm[usize::from(op.sub % 16)];
    let mut value = cpu.vector.ymm[target];
    let mut mask = cpu.vector.ymm[mask_register];
    for position in 0..count {
        if !is_enabled(&mask, position, E) {
            mask[position * E..][..E].fill(0);
            continue;
        }
        let mut element = [0; E];
        let loaded = cpu.without_alignment_checks(|cpu| {
            let linear = cpu.gather_address(op, &indices, position, I, E)?;
            cpu.load_vector(linear, &mut element)
        });
        if let Err(stop) = loaded {
            // Not for an access that somebody outside has to answer: it is made again from the start.
            if stop == Stop::Fault {
                (cpu.vector.ymm[target], cpu.vector.ymm[mask_register]) = (value, mask);
            }
            return Err(stop);
        }
        value[position * E..][..E].copy_from_slice(&element);
        mask[position * E..][..E].fill(0);
    }
    value[count * E..].fill(0);
    (cpu.vector.ymm[target], cpu.vector.ymm[mask_register]) = (value, [0; 32]);
    Ok(())
}

/// The eight gathers. `sub` becomes the register of the indices, `size` the number of elements.
pub fn select_gather(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let indices = instruction.memory_index();
    let [target, mask] = [instruction.op0_register(), instruction.op2_register()];
    if !host_has(instruction) || !instruction.is_vsib() {
        return None;
    }
    let numbers = [target, mask, indices].map(|register| register.number());
    if numbers[0] == numbers[1] || numbers[0] == numbers[2] || numbers[1] == numbers[2] {
        return None;
    }
    op.sub = indices.number() as u8;
    op.scale = instruction.memory_index_scale().trailing_zeros() as u8;
    let (element, index): (usize, usize) = match instruction.mnemonic() {
        Mnemonic::Vpgatherdd | Mnemonic::Vgatherdps => (4, 4),
        Mnemonic::Vpgatherdq | Mnemonic::Vgatherdpd => (8, 4),
        Mnemonic::Vpgatherqd | Mnemonic::Vgatherqps => (4, 8),
        Mnemonic::Vpgatherqq | Mnemonic::Vgatherqpd => (8, 8),
        _ => return None,
    };
    op.size = (target.size() / element).min(indices.size() / index) as u8;
    Some(match (element, index) {
        (4, 4) => gather::<4, 4>,
        (8, 4) => gather::<8, 4>,
        (4, 8) => gather::<4, 8>,
        _ => gather::<8, 8>,
    })
}

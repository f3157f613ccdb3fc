//! The MMX registers, which are the mantissas of the physical x87 registers (SDM vol. 1, 9.2.1 and 9.5).

use iced_x86::Instruction;

use crate::cpu::Cpu;
use crate::cpu::stop::Exec;
use crate::decode::op::{Handler, Op};

impl Cpu {
    /// Before an MMX instruction: #UD, #NM, or the pending x87 exception.
    #[inline]
    pub fn begin_mmx(&mut self) -> Exec {
        self.check_mmx()?;
        self.report_pending_x87()
    }

    /// Where the 8 bytes of MMX register `number` are.
    pub fn mmx_register(&mut self, number: u8) -> *mut u8 {
        self.vector.x87.physical(usize::from(number % 8)).as_mut_ptr()
    }

    /// The contents of MMX register `number`.
    pub fn mmx_value(&mut self, number: u8) -> [u8; 8] {
        let mut value = [0; 8];
        value.copy_from_slice(&self.vector.x87.physical(usize::from(number % 8))[..8]);
        value
    }

    /// The sign and exponent of an MMX register that was written are ones.
    pub fn mark_mmx_written(&mut self, number: u8) {
        self.vector.x87.physical(usize::from(number % 8))[8..10].fill(0xff);
    }

    /// After an MMX instruction: the stack is full and its top is register 0.
    pub fn end_mmx(&mut self) {
        self.vector.x87.set_top(0);
        self.vector.x87.ftw = 0xff;
    }
}

fn emms(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.begin_mmx()?;
    cpu.vector.x87.set_top(0);
    cpu.vector.x87.ftw = 0;
    Ok(())
}

/// EMMS.
pub fn select_emms(_: &Instruction, _: &mut Op) -> Option<Handler> {
    Some(emms)
}

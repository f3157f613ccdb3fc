//! A CPU in 64-bit mode with a little memory, which runs single instructions.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use ostler_memory::{GuestRam, SlotConfig};
use ostler_x86::cpu::control::{cr0, cr4, efer};
use ostler_x86::cpu::regs::{RAX, RDX, RSI};
use ostler_x86::cpu::stop::{Exec, Stop};
use ostler_x86::cpu::{Cpu, Mode};
use ostler_x86::decode::decoder::{BlockDecoder, Decoded};
use ostler_x86::vm::{Sibling, VmShared};

/// Where RSI, the base of every memory operand here, points.
pub const OPERAND: u64 = 0x1000;

pub struct Bench {
    pub cpu: Cpu,
    ram: Arc<GuestRam>,
}

impl Bench {
    pub fn new() -> Self {
        let ram = Arc::new(GuestRam::new());
        ram.set_slot(SlotConfig { size: 0x10000, ..SlotConfig::default() }).expect("a slot");
        let vm = Arc::new(VmShared::new(Arc::clone(&ram), ostler_x86::Translate::Never));
        let sibling = Arc::new(Sibling {
            id: 0,
            signals: Arc::default(),
            running: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
        });
        let mut cpu = Cpu::new(vm, sibling, None);
        cpu.cr0 = cr0::ET | cr0::NE | cr0::MP | cr0::PE;
        cpu.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE;
        cpu.xcr0 = 7;
        cpu.efer = efer::LMA | efer::LME;
        cpu.mode = Mode::Long;
        cpu.bitness = 64;
        cpu.segment_base = [0; 9];
        cpu.rip = 0x4000;
        cpu.regs.set(RSI, OPERAND);
        cpu.regs.set(RAX, u64::MAX);
        cpu.regs.set(RDX, u64::MAX);
        Self { cpu, ram }
    }

    /// Runs one instruction; `Err` has the exception's vector.
    pub fn run(&mut self, code: &[u8]) -> Result<(), u8> {
        match self.step(code) {
            Ok(()) => Ok(()),
            Err(Stop::Fault) => Err(self.cpu.fault.vector),
            Err(stop) => panic!("{code:x?} stopped with {stop:?}"),
        }
    }

    /// Runs one instruction; `Err` has why it did not fall through.
    pub fn step(&mut self, code: &[u8]) -> Exec {
        let mut decoder = BlockDecoder::new(self.cpu.bitness, code, self.cpu.rip);
        let Decoded::Instruction { op, .. } = decoder.decode_next() else { panic!("{code:x?} is cut off") };
        (op.run)(&mut self.cpu, &op)
    }

    pub fn write(&self, gpa: u64, data: &[u8]) {
        self.ram.write(gpa, data).expect("guest memory");
    }

    pub fn read<const N: usize>(&self, gpa: u64) -> [u8; N] {
        let mut buffer = [0; N];
        self.ram.read(gpa, &mut buffer).expect("guest memory");
        buffer
    }
}

//! Accesses that no memory answers, and their replay after an exit.
//!
//! When nobody answers, `run` returns an exit in the middle of an instruction. The next `run`
//! executes that instruction again from its start; the accesses it had already made are answered
//! from the log here, so a device sees each of them once.

use std::sync::atomic::Ordering;

use ostler_engine::profile::Activity;
use ostler_engine::{Exit, IoHandler};

use crate::cpu::Cpu;
use crate::cpu::stop::Stop;

/// One access of the instruction under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    pub port: bool,
    pub write: bool,
    pub address: u64,
    pub len: usize,
    pub data: [u8; 8],
}

/// The accesses of the instruction under way.
#[derive(Debug, Default)]
pub struct Replay {
    log: Vec<Access>,
    /// Entries the re-execution has consumed.
    cursor: usize,
    /// A read that became an exit and was not answered yet.
    asked: Option<Access>,
    /// The last access became an exit: the next `run` executes its instruction again.
    interrupted: bool,
    /// The instruction that the log belongs to, and how many had retired before its block.
    owner: (usize, u64),
}

impl Replay {
    /// Whether the next instruction is a re-execution.
    pub fn is_active(&self) -> bool {
        self.interrupted
    }

    /// The instruction under way is done, or will never be.
    pub fn clear(&mut self) {
        self.log.clear();
        self.cursor = 0;
        self.asked = None;
        self.interrupted = false;
        self.owner = (0, 0);
    }

    /// One element of a repeated instruction is done: its accesses are not made again.
    #[inline]
    pub fn element_done(&mut self) {
        if !self.log.is_empty() {
            self.log.clear();
            self.cursor = 0;
            self.interrupted = false;
        }
    }

    /// `run` begins: after an exit whatever was asked and not answered reads as ones; otherwise the
    /// instruction that the log belongs to is long done.
    pub fn rewind(&mut self) {
        if !self.interrupted {
            self.clear();
            return;
        }
        if let Some(mut access) = self.asked.take() {
            access.data = [0xff; 8];
            self.log.push(access);
        }
        self.cursor = 0;
    }

    /// The length in bytes of the read that waits for an answer.
    pub fn expected(&self) -> Option<usize> {
        self.asked.map(|access| access.len)
    }

    /// Answers the read that waits.
    pub fn answer(&mut self, data: &[u8]) {
        if let Some(mut access) = self.asked.take() {
            access.data[..data.len()].copy_from_slice(data);
            self.log.push(access);
        }
    }

    fn replayed(&mut self, wanted: &Access) -> Option<Access> {
        let known = *self.log.get(self.cursor)?;
        let same = (known.port, known.write, known.address, known.len)
            == (wanted.port, wanted.write, wanted.address, wanted.len);
        if !same {
            // The guest changed its own instruction under way; start over with what it is now.
            self.clear();
            return None;
        }
        self.cursor += 1;
        Some(known)
    }

    fn record(&mut self, access: Access) {
        self.log.push(access);
        self.cursor = self.log.len();
    }
}

impl Cpu {
    /// Reads 1..=8 bytes from where no memory is.
    pub fn mmio_read(&mut self, gpa: u64, data: &mut [u8]) -> Result<(), Stop> {
        self.external(false, gpa, Some(data), &[])
    }

    pub fn mmio_write(&mut self, gpa: u64, data: &[u8]) -> Result<(), Stop> {
        self.external(false, gpa, None, data)
    }

    pub fn port_read(&mut self, port: u16, data: &mut [u8]) -> Result<(), Stop> {
        self.external(true, u64::from(port), Some(data), &[])
    }

    pub fn port_write(&mut self, port: u16, data: &[u8]) -> Result<(), Stop> {
        self.external(true, u64::from(port), None, data)
    }

    fn external(&mut self, port: bool, address: u64, read: Option<&mut [u8]>, write: &[u8]) -> Result<(), Stop> {
        // A loop comes back to the same instruction, but not without retiring one.
        let owner = (self.current_op as usize, self.instructions);
        if self.mmu.replay.owner != owner {
            if !self.replaying {
                self.mmu.replay.clear();
            }
            self.mmu.replay.owner = owner;
        }
        let mut access = Access { port, write: read.is_none(), address, len: write.len(), data: [0; 8] };
        if let Some(buffer) = &read {
            access.len = buffer.len();
        }
        access.data[..write.len()].copy_from_slice(write);
        if let Some(known) = self.mmu.replay.replayed(&access) {
            if let Some(buffer) = read {
                buffer.copy_from_slice(&known.data[..known.len]);
            }
            return Ok(());
        }
        if self.counted_as(Activity::Device, |cpu| cpu.answered(&mut access)) {
            self.mmu.replay.record(access);
            if let Some(buffer) = read {
                buffer.copy_from_slice(&access.data[..access.len]);
            }
            return Ok(());
        }
        self.exit = Some(exit_of(&access));
        self.mmu.replay.interrupted = true;
        if access.write {
            self.mmu.replay.record(access);
        } else {
            self.mmu.replay.asked = Some(access);
        }
        Err(Stop::Exit)
    }

    /// Asks the interrupt controllers, then the handler of this `run`.
    fn answered(&mut self, access: &mut Access) -> bool {
        if self.irqchip_access(access) {
            return true;
        }
        // A device may wait for other vCPUs, or for this one to acknowledge a change of memory.
        self.aside(|cpu| {
            let io: &dyn IoHandler = cpu.io();
            let data = &mut access.data[..access.len];
            match (access.port, access.write) {
                (true, false) => io.io_read(access.address as u16, data),
                (true, true) => io.io_write(access.address as u16, data),
                (false, false) => io.mmio_read(access.address, data),
                (false, true) => io.mmio_write(access.address, data),
            }
        })
    }

    /// Does what may take long, or wait for others, in the middle of an instruction: nobody waits for
    /// this vCPU meanwhile. Translations made before are stale afterwards.
    pub fn aside<R>(&mut self, wait: impl FnOnce(&mut Self) -> R) -> R {
        self.sibling.running.store(false, Ordering::SeqCst);
        let result = wait(self);
        self.vm.begin_running(&self.sibling);
        let epoch = self.vm.epoch();
        if self.sibling.acknowledged.load(Ordering::SeqCst) != epoch {
            if self.mmu.physical.refresh() {
                // The running block stays until `bury`.
                self.code.forget_all();
            }
            self.mmu.tlb.flush();
            self.block_end = self.current_op;
            self.sibling.acknowledged.store(epoch, Ordering::SeqCst);
        }
        result
    }
}

fn exit_of(access: &Access) -> Exit {
    let data = access.data[..access.len].to_vec();
    let size = access.len as u8;
    match (access.port, access.write) {
        (true, false) => Exit::IoIn { port: access.address as u16, size },
        (true, true) => Exit::IoOut { port: access.address as u16, data },
        (false, false) => Exit::MmioRead { gpa: access.address, size },
        (false, true) => Exit::MmioWrite { gpa: access.address, data },
    }
}

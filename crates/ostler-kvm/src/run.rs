//! `KVM_RUN`, and what it comes back for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::*;
use ostler_engine::accel::Result;
use ostler_engine::{AccelError, Exit, IoHandler};

use crate::ioctl::host;
use crate::split::Split;
use crate::vcpu::KvmVcpu;

/// Where a vCPU stands between two calls of `KVM_RUN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// At the beginning of an instruction.
    Between,
    /// `kvm_run` holds a port or memory access of which `done` elements are answered. The next one is
    /// with whoever called `run` if `asked`.
    Access { done: u32, asked: bool },
    /// An access is answered, and KVM finishes its instruction when it next has the chance.
    Unfinished,
}

/// The access that `kvm_run` holds: `count` elements of `size` bytes at one place.
#[derive(Clone, Copy, Debug)]
struct Access {
    place: Place,
    is_write: bool,
    size: usize,
    count: u32,
    data: *mut u8,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Port(u16),
    Gpa(u64),
}

impl Access {
    /// The bytes of element `index`.
    fn element(&mut self, index: u32) -> &mut [u8] {
        assert!(index < self.count);
        // SAFETY: `data` are `size * count` bytes of the vCPU's `kvm_run` pages, which stay mapped as
        // long as the vCPU lives, and which only the thread that runs it touches.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(index as usize * self.size), self.size) }
    }

    /// Has the chips or `io` answer element `index`; false when it is neither's.
    fn ask(&mut self, chips: Option<&Split>, io: &dyn IoHandler, index: u32) -> bool {
        let (place, is_write) = (self.place, self.is_write);
        let data = self.element(index);
        let at_chips = chips.is_some_and(|chips| match place {
            Place::Port(port) => chips.port(port, data, is_write),
            Place::Gpa(gpa) => chips.memory(gpa, data, is_write),
        });
        at_chips
            || match (place, is_write) {
                (Place::Port(port), false) => io.io_read(port, data),
                (Place::Port(port), true) => io.io_write(port, data),
                (Place::Gpa(gpa), false) => io.mmio_read(gpa, data),
                (Place::Gpa(gpa), true) => io.mmio_write(gpa, data),
            }
    }

    /// Element `index` as an exit. A read that nobody answers gives ones.
    fn exit(&mut self, index: u32) -> Exit {
        let (place, is_write, size) = (self.place, self.is_write, self.size as u8);
        let data = self.element(index);
        if !is_write {
            data.fill(0xff);
        }
        match (place, is_write) {
            (Place::Port(port), false) => Exit::IoIn { port, size },
            (Place::Port(port), true) => Exit::IoOut { port, data: data.to_vec() },
            (Place::Gpa(gpa), false) => Exit::MmioRead { gpa, size },
            (Place::Gpa(gpa), true) => Exit::MmioWrite { gpa, data: data.to_vec() },
        }
    }
}

impl KvmVcpu {
    /// Runs until an exit that `io` does not answer.
    pub(crate) fn run_until_exit(&mut self, io: &dyn IoHandler) -> Result<Exit> {
        self.tell_of_pause();
        if let Stage::Access { done, asked: true } = self.stage {
            self.stage = Stage::Access { done: done + 1, asked: false };
        }
        let immediate_exit = &raw mut self.fd.get_kvm_run().immediate_exit;
        // SAFETY: that byte of the page, which is ours until after the guard is gone.
        let _entered = unsafe { self.kick.enter(immediate_exit) };
        loop {
            self.answer_coalesced(io);
            if let Stage::Access { done, .. } = self.stage
                && let Some(exit) = self.answer(io, done)?
            {
                return Ok(exit);
            }
            if self.kick.take() {
                self.finish()?;
                return Ok(Exit::Interrupted);
            }
            if self.shutdown {
                return Ok(Exit::Shutdown);
            }
            if self.halted {
                self.wait_halted();
                continue;
            }
            self.vm.split().map_or(Ok(()), Split::check)?;
            self.offer_interrupt()?;
            if let Some(exit) = self.enter()? {
                self.answer_coalesced(io);
                return Ok(exit);
            }
        }
    }

    /// Has `io` answer the writes that KVM let wait, of all vCPUs and in their order. What nobody owns is lost, as on an
    /// open bus.
    fn answer_coalesced(&mut self, io: &dyn IoHandler) {
        if !self.vm.host.capabilities.coalesced_io {
            return;
        }
        let vm = Arc::clone(&self.vm);
        let _in_order = vm.coalesced.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // The ring was mapped when the vCPU was made: there is nothing to fail.
        while let Ok(Some(write)) = self.fd.coalesced_mmio_read() {
            let data = &write.data[..(write.len as usize).min(write.data.len())];
            // SAFETY: both members are the same 32 bits.
            let is_port = unsafe { write.__bindgen_anon_1.pio } != 0;
            let _owned =
                if is_port { io.io_write(write.phys_addr as u16, data) } else { io.mmio_write(write.phys_addr, data) };
        }
    }

    /// One `KVM_RUN`; `None` when there is nothing to return for.
    fn enter(&mut self) -> Result<Option<Exit>> {
        self.kick.begins();
        // After it is known that we are inside: who has an interrupt from now on gets us out again.
        let offered = self.offer_external();
        let result = self.fd.run().map(drop);
        self.kick.ends();
        offered?;
        match result {
            Ok(()) => {}
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                self.interrupted();
                return Ok(None);
            }
            Err(error) => return Err(self.cannot_run(error)),
        }
        self.stage = Stage::Between;
        let reason = self.fd.get_kvm_run().exit_reason;
        if !may_precede_injection(reason) || self.held_external()?.is_none() {
            self.external_taken();
        }
        let run = self.fd.get_kvm_run();
        match reason {
            KVM_EXIT_IO | KVM_EXIT_MMIO => self.stage = Stage::Access { done: 0, asked: false },
            KVM_EXIT_HLT => return Ok(Some(Exit::Hlt)),
            KVM_EXIT_IRQ_WINDOW_OPEN | KVM_EXIT_INTR => {}
            KVM_EXIT_IOAPIC_EOI => {
                // SAFETY: the member that belongs to this reason.
                let vector = unsafe { run.__bindgen_anon_1.eoi.vector };
                if let Some(split) = self.vm.split() {
                    split.chips.end_of_interrupt(vector);
                }
            }
            KVM_EXIT_DIRTY_RING_FULL => self.vm.take_rings()?,
            KVM_EXIT_SHUTDOWN => self.shutdown = true,
            KVM_EXIT_DEBUG => {
                // SAFETY: the member that belongs to this reason.
                let debug = unsafe { run.__bindgen_anon_1.debug.arch };
                let rip = self.fd.get_regs().map_err(host("KVM_GET_REGS"))?.rip;
                return Ok(Some(Exit::Debug { rip, dr6: debug.dr6, exception: debug.exception as u8 }));
            }
            _ => return Ok(Some(Exit::InternalError(self.describe(reason)))),
        }
        Ok(None)
    }

    /// After `EINTR`: whatever was unfinished is done.
    fn interrupted(&mut self) {
        self.stage = Stage::Between;
        let byte = &raw mut self.fd.get_kvm_run().immediate_exit;
        // SAFETY: the byte lives as long as `fd`; kickers access it as an atomic, too.
        unsafe { AtomicU8::from_ptr(byte) }.store(0, Ordering::SeqCst);
    }

    /// Has KVM finish an instruction whose access is answered, without entering the guest: registers
    /// are those of the next instruction then.
    fn finish(&mut self) -> Result<()> {
        if self.stage != Stage::Unfinished {
            return Ok(());
        }
        let byte = &raw mut self.fd.get_kvm_run().immediate_exit;
        // SAFETY: as in `interrupted`.
        unsafe { AtomicU8::from_ptr(byte) }.store(1, Ordering::SeqCst);
        match self.fd.run().map(drop) {
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                self.interrupted();
                Ok(())
            }
            Err(error) => Err(self.cannot_run(error)),
            Ok(()) => {
                self.interrupted();
                if matches!(self.fd.get_kvm_run().exit_reason, KVM_EXIT_IO | KVM_EXIT_MMIO) {
                    // The instruction has a further access.
                    self.stage = Stage::Access { done: 0, asked: false };
                }
                Ok(())
            }
        }
    }

    /// Has `io` answer the access from element `done` on; an exit for the first that it does not.
    fn answer(&mut self, io: &dyn IoHandler, mut done: u32) -> Result<Option<Exit>> {
        let mut access = self.access();
        while done < access.count {
            if !access.ask(self.vm.split(), io, done) {
                let exit = access.exit(done);
                self.stage = Stage::Access { done, asked: true };
                if access.is_write {
                    self.written(done + 1, access.count)?;
                }
                return Ok(Some(exit));
            }
            done += 1;
        }
        self.stage = Stage::Unfinished;
        Ok(None)
    }

    /// A write is done when its exit is seen.
    fn written(&mut self, done: u32, count: u32) -> Result<()> {
        if done < count {
            self.stage = Stage::Access { done, asked: false };
            return Ok(());
        }
        self.stage = Stage::Unfinished;
        self.finish()
    }

    /// The access that `kvm_run` holds.
    fn access(&mut self) -> Access {
        let run = self.fd.get_kvm_run();
        let start: *mut u8 = std::ptr::from_mut(run).cast();
        if run.exit_reason == KVM_EXIT_IO {
            // SAFETY: the member that belongs to this reason.
            let io = unsafe { run.__bindgen_anon_1.io };
            return Access {
                place: Place::Port(io.port),
                is_write: u32::from(io.direction) == KVM_EXIT_IO_OUT,
                size: io.size.into(),
                count: io.count,
                // SAFETY: the kernel's offset into the pages that `fd` maps.
                data: unsafe { start.add(io.data_offset as usize) },
            };
        }
        // SAFETY: the member that belongs to the only other reason.
        let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
        Access {
            place: Place::Gpa(mmio.phys_addr),
            is_write: mmio.is_write != 0,
            size: (mmio.len as usize).min(mmio.data.len()),
            count: 1,
            data: mmio.data.as_mut_ptr(),
        }
    }

    /// The bytes of the read that `run` returned for, if it did.
    pub(crate) fn asked(&mut self) -> Option<&mut [u8]> {
        let Stage::Access { done, asked: true } = self.stage else { return None };
        let mut access = self.access();
        let data = access.element(done);
        // SAFETY: the slice borrows from `fd`, which `self` has for as long.
        Some(unsafe { std::slice::from_raw_parts_mut(data.as_mut_ptr(), data.len()) })
    }

    fn cannot_run(&self, error: vmm_sys_util::errno::Error) -> AccelError {
        host("KVM_RUN")(error)
    }

    /// What to say of an exit that has no meaning to the contract.
    fn describe(&mut self, reason: u32) -> String {
        let run = self.fd.get_kvm_run();
        // SAFETY: in each case the member that belongs to the reason.
        let said = unsafe {
            let data = &run.__bindgen_anon_1;
            match reason {
                KVM_EXIT_FAIL_ENTRY => {
                    format!("cannot enter the guest: reason {:#x}", data.fail_entry.hardware_entry_failure_reason)
                }
                KVM_EXIT_INTERNAL_ERROR => describe_internal_error(&data.internal, &data.emulation_failure),
                KVM_EXIT_MEMORY_FAULT => format!("memory fault at {:#x}", data.memory_fault.gpa),
                KVM_EXIT_SYSTEM_EVENT => format!("system event {}", data.system_event.type_),
                KVM_EXIT_UNKNOWN => format!("unknown hardware exit {:#x}", data.hw.hardware_exit_reason),
                _ => format!("exit reason {reason}"),
            }
        };
        let rip = self.fd.get_regs().map_or_else(|_| String::new(), |regs| format!(", RIP {:#x}", regs.rip));
        format!("KVM: {said}{rip}")
    }
}

/// Whether KVM may come back with `reason` before it has entered the guest, and so with the vector it was given.
fn may_precede_injection(reason: u32) -> bool {
    matches!(reason, KVM_EXIT_IOAPIC_EOI | KVM_EXIT_DIRTY_RING_FULL)
}

type InternalError = kvm_run__bindgen_ty_1__bindgen_ty_13;
type EmulationFailure = kvm_run__bindgen_ty_1__bindgen_ty_14;

fn describe_internal_error(internal: &InternalError, failure: &EmulationFailure) -> String {
    const EMULATION: u32 = KVM_INTERNAL_ERROR_EMULATION;
    if internal.suberror != EMULATION {
        return format!("internal error {}", internal.suberror);
    }
    // SAFETY: the only member, made of plain numbers.
    let bytes = unsafe { &failure.__bindgen_anon_1.__bindgen_anon_1 };
    let has_bytes =
        failure.ndata >= 3 && failure.flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0;
    let bytes = &bytes.insn_bytes[..if has_bytes { bytes.insn_size.min(15).into() } else { 0 }];
    let shown: String = bytes.iter().map(|byte| format!(" {byte:02x}")).collect();
    format!("cannot emulate the instruction{shown}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exits_before_the_guest_is_entered_may_leave_a_vector_with_kvm() {
        assert!([KVM_EXIT_IOAPIC_EOI, KVM_EXIT_DIRTY_RING_FULL].into_iter().all(may_precede_injection));
        assert!(
            ![KVM_EXIT_IO, KVM_EXIT_MMIO, KVM_EXIT_HLT, KVM_EXIT_IRQ_WINDOW_OPEN]
                .into_iter()
                .any(may_precede_injection)
        );
    }
}

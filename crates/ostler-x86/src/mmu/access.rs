//! Loads, stores and read-modify-writes at a linear address.
//!
//! The fast path is one TLB compare and one host access. Everything else (misses, page crossings,
//! MMIO, logged or watched pages, breakpoints) is in the `slow_` functions. A fault is known before
//! anything was changed.

use ostler_engine::profile::Activity;
use ostler_memory::PAGE_BYTES;

use crate::cpu::Cpu;
use crate::cpu::control::efer;
use crate::cpu::stop::{Fault, Stop, vector};
use crate::cpu::width::Width;
use crate::mmu::Privilege;
use crate::mmu::physical::PAGE_MASK;
use crate::mmu::tlb::{HUGE, LARGE, TOLD, TlbEntry};
use crate::mmu::walk::{Access, Translation};

/// Whether `bytes` bytes at `linear` stay in one page.
#[inline(always)]
fn in_one_page(linear: u64, bytes: usize) -> bool {
    linear % PAGE_BYTES <= PAGE_BYTES - bytes as u64
}

impl Cpu {
    /// Loads a `W` from `linear`.
    #[inline(always)]
    pub fn load<W: Width>(&mut self, linear: u64) -> Result<W, Stop> {
        if let Some(host) = self.mmu.tlb.readable(self.mmu.privilege, linear, W::BYTES) {
            // SAFETY: the TLB maps this page to host memory that the physical map keeps alive.
            return Ok(unsafe { host.cast::<W>().read_unaligned() });
        }
        self.slow_load(linear)
    }

    /// Stores a `W` at `linear`.
    #[inline(always)]
    pub fn store<W: Width>(&mut self, linear: u64, value: W) -> Result<(), Stop> {
        if let Some(host) = self.mmu.tlb.writable(self.mmu.privilege, linear, W::BYTES) {
            // SAFETY: as in `load`; the memory is writable.
            unsafe { host.cast::<W>().write_unaligned(value) };
            return Ok(());
        }
        self.slow_store(linear, value)
    }

    /// Replaces the `W` at `linear` by what `change` makes of it; atomically if `lock`, in which
    /// case `change` may be called more than once.
    #[inline(always)]
    pub fn update<W: Width>(
        &mut self,
        linear: u64,
        lock: bool,
        mut change: impl FnMut(&mut Cpu, W) -> W,
    ) -> Result<(), Stop> {
        if let Some(host) = self.mmu.tlb.writable(self.mmu.privilege, linear, W::BYTES) {
            // SAFETY: as in `store`.
            unsafe { self.update_host(host, lock, change) };
            return Ok(());
        }
        self.slow_update(linear, lock, &mut change)
    }

    /// # Safety
    /// `host` is valid for reads and writes of a `W`.
    #[inline(always)]
    unsafe fn update_host<W: Width>(&mut self, host: *mut u8, lock: bool, mut change: impl FnMut(&mut Cpu, W) -> W) {
        // SAFETY: the caller vouches for `host`.
        let mut old = unsafe { host.cast::<W>().read_unaligned() };
        if !lock {
            let new = change(self, old);
            // SAFETY: as above.
            unsafe { host.cast::<W>().write_unaligned(new) };
            return;
        }
        loop {
            let new = change(self, old);
            // SAFETY: as above.
            match unsafe { W::compare_exchange(host, old, new) } {
                Ok(_) => return,
                Err(found) => old = found,
            }
        }
    }

    /// LOCK CMPXCHG16B at an address that is a multiple of 16; returns what was there.
    pub fn compare_exchange_16(&mut self, linear: u64, expected: u128, new: u128) -> Result<u128, Stop> {
        let gpa = self.translate(linear, 16, Access::Write)?;
        let Some(place) = self.mmu.physical.find(gpa).filter(|place| !place.read_only) else {
            let vm = std::sync::Arc::clone(&self.vm);
            let _bus = self.aside(|_| vm.bus_lock());
            let mut bytes = [0; 16];
            self.load_bytes(linear, &mut bytes)?;
            let found = u128::from_le_bytes(bytes);
            let value = if found == expected { new } else { found };
            self.store_bytes(linear, &value.to_le_bytes())?;
            return Ok(found);
        };
        let (log, offset) = (std::ptr::from_ref(place.log), place.offset);
        // SAFETY: aligned guest memory of one page; the log lives as long as the physical map.
        unsafe {
            let found = atomic_exchange_16(place.host.cast(), expected, new);
            self.note_write(&*log, offset, 16);
            Ok(found)
        }
    }

    #[cold]
    #[inline(never)]
    fn slow_load<W: Width>(&mut self, linear: u64) -> Result<W, Stop> {
        let mut bytes = [0; 8];
        self.load_bytes(linear, &mut bytes[..W::BYTES])?;
        Ok(W::truncate(u64::from_le_bytes(bytes)))
    }

    #[cold]
    #[inline(never)]
    fn slow_store<W: Width>(&mut self, linear: u64, value: W) -> Result<(), Stop> {
        self.store_bytes(linear, &value.zero_extend().to_le_bytes()[..W::BYTES])
    }

    #[cold]
    #[inline(never)]
    fn slow_update<W: Width>(
        &mut self,
        linear: u64,
        lock: bool,
        change: &mut dyn FnMut(&mut Cpu, W) -> W,
    ) -> Result<(), Stop> {
        if in_one_page(linear, W::BYTES) {
            self.check_operand(linear, W::BYTES)?;
            let gpa = self.translate(linear, W::BYTES, Access::Write)?;
            if let Some(place) = self.mmu.physical.find(gpa).filter(|place| !place.read_only) {
                let (host, log, offset) = (place.host, std::ptr::from_ref(place.log), place.offset);
                // SAFETY: the page is guest memory; the log lives as long as the physical map.
                unsafe {
                    self.update_host(host, lock, change);
                    self.note_write(&*log, offset, W::BYTES as u64);
                }
                return Ok(());
            }
        }
        if !lock {
            return self.change_in_pieces(linear, change);
        }
        let vm = std::sync::Arc::clone(&self.vm);
        if self.is_memory(linear, W::BYTES)? {
            // Across pages: no host atomic reaches both, so nobody else may touch either.
            let id = self.id;
            let _alone = self.aside(|_| vm.run_alone(id));
            return self.change_in_pieces(linear, change);
        }
        // No memory: a bus lock serializes those who would be locked. The device may wait for vCPUs, so they go on.
        let _bus = self.aside(|_| vm.bus_lock());
        self.change_in_pieces(linear, change)
    }

    fn change_in_pieces<W: Width>(
        &mut self,
        linear: u64,
        change: &mut dyn FnMut(&mut Cpu, W) -> W,
    ) -> Result<(), Stop> {
        self.probe_write(linear, W::BYTES)?;
        let old = self.load::<W>(linear)?;
        let new = change(self, old);
        self.store(linear, new)
    }

    /// Whether all of an operand that is to be written is in memory; faults as the store would.
    fn is_memory(&mut self, linear: u64, len: usize) -> Result<bool, Stop> {
        self.probe_write(linear, len)?;
        let last = self.wrap(linear.wrapping_add(len as u64 - 1));
        for at in [linear, last] {
            let gpa = self.translate(at, 1, Access::Write)?;
            if self.mmu.physical.find(gpa).is_none_or(|place| place.read_only) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Copies guest memory to `buffer`. A fault leaves nothing changed but `buffer`.
    pub fn load_bytes(&mut self, linear: u64, buffer: &mut [u8]) -> Result<(), Stop> {
        self.check_operand(linear, buffer.len())?;
        let mut done = 0;
        while done < buffer.len() {
            let at = self.wrap(linear.wrapping_add(done as u64));
            let len = (buffer.len() - done).min((PAGE_BYTES - at % PAGE_BYTES) as usize);
            let gpa = self.translate(at, len, Access::Read)?;
            self.read_physical(gpa, &mut buffer[done..done + len])?;
            done += len;
        }
        Ok(())
    }

    /// Copies `data` to guest memory. Either all of it happens or a fault.
    pub fn store_bytes(&mut self, linear: u64, data: &[u8]) -> Result<(), Stop> {
        self.check_operand(linear, data.len())?;
        if !in_one_page(linear, data.len().min(PAGE_BYTES as usize)) || data.len() > PAGE_BYTES as usize {
            self.probe_write(linear, data.len())?;
        }
        let mut done = 0;
        while done < data.len() {
            let at = self.wrap(linear.wrapping_add(done as u64));
            let len = (data.len() - done).min((PAGE_BYTES - at % PAGE_BYTES) as usize);
            let gpa = self.translate(at, len, Access::Write)?;
            self.write_physical(gpa, &data[done..done + len])?;
            done += len;
        }
        Ok(())
    }

    /// Faults as a store of `len` bytes would.
    pub fn probe_write(&mut self, linear: u64, len: usize) -> Result<(), Stop> {
        self.probe(linear, len, Access::Write)
    }

    /// Faults as an access of `len` bytes would.
    pub fn probe(&mut self, linear: u64, len: usize, access: Access) -> Result<(), Stop> {
        self.check_operand(linear, len)?;
        let mut done = 0;
        while done < len as u64 {
            let at = self.wrap(linear.wrapping_add(done));
            let piece = (len as u64 - done).min(PAGE_BYTES - at % PAGE_BYTES);
            self.translate(at, piece as usize, access)?;
            done += piece;
        }
        Ok(())
    }

    /// Reads physical memory or MMIO within one page.
    pub fn read_physical(&mut self, gpa: u64, buffer: &mut [u8]) -> Result<(), Stop> {
        if let Some(place) = self.mmu.physical.find(gpa) {
            // SAFETY: the bytes are in one page of guest memory; `buffer` is ours.
            unsafe { copy_in(place.host, buffer) };
            return Ok(());
        }
        let mut gpa = gpa;
        for piece in buffer.chunks_mut(8) {
            self.mmio_read(gpa, piece)?;
            gpa += piece.len() as u64;
        }
        Ok(())
    }

    /// Writes physical memory or MMIO within one page.
    pub fn write_physical(&mut self, gpa: u64, data: &[u8]) -> Result<(), Stop> {
        if let Some(place) = self.mmu.physical.find(gpa).filter(|place| !place.read_only) {
            let (log, offset) = (std::ptr::from_ref(place.log), place.offset);
            // SAFETY: as in `read_physical`; the log lives as long as the physical map.
            unsafe {
                copy_out(data, place.host);
                self.note_write(&*log, offset, data.len() as u64);
            }
            return Ok(());
        }
        let mut gpa = gpa;
        for piece in data.chunks(8) {
            self.mmio_write(gpa, piece)?;
            gpa += piece.len() as u64;
        }
        Ok(())
    }

    fn note_write(&mut self, log: &ostler_memory::PageLog, offset: u64, len: u64) {
        if log.note_write(offset, len) {
            // The running block may have changed: leave it after this instruction.
            self.block_end = self.current_op;
        }
    }

    /// The part of a linear address that exists in this mode.
    #[inline(always)]
    pub fn wrap(&self, linear: u64) -> u64 {
        if self.efer & efer::LMA != 0 { linear } else { linear & 0xffff_ffff }
    }

    /// What is wrong with an access of `len` bytes before any page is looked at: #GP(0) where it begins at a
    /// canonical address and ends at one that is not, #AC(0) where it is misaligned and that is checked.
    fn check_operand(&mut self, linear: u64, len: usize) -> Result<(), Stop> {
        let last = linear.wrapping_add(len.saturating_sub(1) as u64);
        if self.efer & efer::LMA != 0 && !(is_canonical(linear) && is_canonical(last)) {
            return Err(self.raise_non_canonical());
        }
        if self.mmu.privilege == Privilege::UserAligned && !linear.is_multiple_of(natural_alignment(len)) {
            return Err(self.raise_fault(Fault { vector: vector::AC, error: Some(0), ..Fault::default() }));
        }
        Ok(())
    }

    fn raise_non_canonical(&mut self) -> Stop {
        self.raise_fault(Fault { vector: vector::GP, error: Some(0), non_canonical: true, ..Fault::default() })
    }

    /// Translates an access of `len` bytes within one page with the current rights, and remembers
    /// the translation; `Err` after raising #PF, or #GP(0) for a non-canonical address.
    pub fn translate(&mut self, linear: u64, len: usize, access: Access) -> Result<u64, Stop> {
        if self.efer & efer::LMA != 0 && !is_canonical(linear) {
            return Err(self.raise_non_canonical());
        }
        let privilege = self.mmu.privilege;
        self.data_breakpoint(linear, len, access);
        if access != Access::Fetch
            && let Some(gpa) = self.mmu.tlb.physical(privilege, linear, access == Access::Write)
        {
            if access == Access::Write && self.mmu.tlb.spares_next() {
                self.spare_lines(linear, gpa);
            }
            return Ok(gpa);
        }
        Ok(self.find_page(linear, access)?.gpa)
    }

    /// Makes stores to a page that has somebody told of them fast again, where they do not concern anybody.
    #[cold]
    fn spare_lines(&mut self, linear: u64, gpa: u64) {
        let Some(place) = self.mmu.physical.find(gpa).filter(|place| !place.read_only) else { return };
        let page = place.offset / PAGE_BYTES;
        if !place.log.must_note(page) {
            // Nobody is told any more: the next store finds it writable.
            self.mmu.tlb.flush_page(linear);
        } else if let Some(lines) = place.log.spare_lines(page) {
            self.mmu.tlb.spare(self.mmu.privilege, linear, lines);
        }
    }

    /// Translates an instruction fetch.
    pub fn translate_fetch(&mut self, linear: u64) -> Result<Translation, Stop> {
        if self.efer & efer::LMA != 0 && !is_canonical(linear) {
            return Err(self.raise_non_canonical());
        }
        self.find_page(linear, Access::Fetch)
    }

    fn find_page(&mut self, linear: u64, access: Access) -> Result<Translation, Stop> {
        self.counted_as(Activity::TlbMiss, |cpu| cpu.look_up_page(linear, access))
    }

    fn look_up_page(&mut self, linear: u64, access: Access) -> Result<Translation, Stop> {
        let privilege = self.mmu.privilege;
        let found = match self.kept_translation(linear, access) {
            Some(kept) => Ok(kept),
            None => self.walk(linear, access, privilege),
        };
        match found {
            Ok(translation) => {
                if access != Access::Fetch {
                    self.fill_tlb(linear, translation, privilege);
                }
                Ok(translation)
            }
            Err(error) => Err(self.raise_fault(Fault {
                vector: vector::PF,
                error: Some(error),
                address: linear,
                ..Fault::default()
            })),
        }
    }

    /// A translation that was made before and is good for this access.
    fn kept_translation(&self, linear: u64, access: Access) -> Option<Translation> {
        // The rights to execute are not kept.
        let kept = self.mmu.spaces.find(self.mmu.privilege, linear).filter(|_| access != Access::Fetch)?;
        (kept.writable || access == Access::Read).then_some(kept)
    }

    fn fill_tlb(&mut self, linear: u64, translation: Translation, privilege: Privilege) {
        let page = translation.gpa & PAGE_MASK;
        self.mmu.spaces.insert(privilege, linear, &translation);
        if self.has_data_breakpoint(linear & PAGE_MASK) {
            return;
        }
        if privilege == Privilege::UserAligned {
            return;
        }
        let Some(place) = self.mmu.physical.find(page) else { return };
        let noted = place.log.must_note(place.offset / PAGE_BYTES);
        let may_write = translation.writable && !place.read_only;
        let entry = TlbEntry {
            read: true,
            write: may_write && !noted,
            addend: (place.host as u64).wrapping_sub(linear & PAGE_MASK),
            physical: page
                | if may_write && noted { TOLD } else { 0 }
                | match translation.page_shift {
                    12 => 0,
                    30 => HUGE,
                    _ => LARGE,
                },
            global: translation.global,
        };
        self.mmu.tlb.insert(privilege, linear, entry);
    }

    /// Runs `access` with supervisor rights whatever CPL is: for system structures.
    pub fn as_supervisor<R>(&mut self, access: impl FnOnce(&mut Cpu) -> R) -> R {
        let before = self.mmu.privilege;
        self.mmu.privilege = Privilege::SupervisorSmap;
        if self.cr4 & crate::cpu::control::cr4::SMAP == 0 {
            self.mmu.privilege = Privilege::Supervisor;
        }
        let result = access(self);
        self.mmu.privilege = before;
        result
    }

    /// A host pointer to as much of the run of `len` bytes from `linear` on as is in the same page
    /// and needs no attention; `None` where single accesses have to decide.
    pub fn host_run(&mut self, linear: u64, access: Access) -> Option<(*mut u8, usize)> {
        let host = match access {
            Access::Write => self.mmu.tlb.writable(self.mmu.privilege, linear, 1)?,
            _ => self.mmu.tlb.readable(self.mmu.privilege, linear, 1)?,
        };
        Some((host, (PAGE_BYTES - linear % PAGE_BYTES) as usize))
    }
}

/// What alignment checking asks of an operand (SDM vol. 3, table 6-7): its size, 8 for extended reals, and
/// 4 or 2 for the images of the x87 state.
fn natural_alignment(len: usize) -> u64 {
    match len {
        10 => 8,
        28 | 108 => 4,
        14 | 94 => 2,
        _ if len.is_power_of_two() => len.min(16) as u64,
        _ => 1,
    }
}

/// 48-bit canonical: bits 47..63 are equal.
#[inline(always)]
pub fn is_canonical(linear: u64) -> bool {
    (linear << 16) as i64 >> 16 == linear as i64
}

/// Copies out of guest memory; 2, 4 and 8 bytes with one access, as a device or another CPU may race.
///
/// # Safety
/// `host` is valid for reads of `buffer.len()` bytes.
unsafe fn copy_in(host: *const u8, buffer: &mut [u8]) {
    // SAFETY: the caller vouches for `host`; lengths match the copies.
    unsafe {
        match buffer.len() {
            1 => buffer[0] = host.read_volatile(),
            2 => buffer.copy_from_slice(&host.cast::<u16>().read_unaligned().to_le_bytes()),
            4 => buffer.copy_from_slice(&host.cast::<u32>().read_unaligned().to_le_bytes()),
            8 => buffer.copy_from_slice(&host.cast::<u64>().read_unaligned().to_le_bytes()),
            len => std::ptr::copy_nonoverlapping(host, buffer.as_mut_ptr(), len),
        }
    }
}

/// Copies into guest memory; 2, 4 and 8 bytes with one access.
///
/// # Safety
/// `host` is valid for writes of `data.len()` bytes.
unsafe fn copy_out(data: &[u8], host: *mut u8) {
    // SAFETY: the caller vouches for `host`; lengths match the copies.
    unsafe {
        match *data {
            [byte] => host.write_volatile(byte),
            [a, b] => host.cast::<u16>().write_unaligned(u16::from_le_bytes([a, b])),
            [a, b, c, d] => host.cast::<u32>().write_unaligned(u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] => {
                host.cast::<u64>().write_unaligned(u64::from_le_bytes([a, b, c, d, e, f, g, h]));
            }
            _ => std::ptr::copy_nonoverlapping(data.as_ptr(), host, data.len()),
        }
    }
}

/// # Safety
/// `host` is aligned to 16 and valid for reads and writes of 16 bytes.
unsafe fn atomic_exchange_16(host: *mut u128, expected: u128, new: u128) -> u128 {
    let (mut low, mut high) = (expected as u64, (expected >> 64) as u64);
    // SAFETY: the caller vouches for `host`. RBX is LLVM's, so the new low half goes in by exchange.
    unsafe {
        std::arch::asm!(
            "xchg {new_low}, rbx",
            "lock cmpxchg16b xmmword ptr [{host}]",
            "mov rbx, {new_low}",
            new_low = inout(reg) new as u64 => _,
            host = in(reg) host,
            in("rcx") (new >> 64) as u64,
            inout("rax") low,
            inout("rdx") high,
            options(nostack),
        );
    }
    u128::from(high) << 64 | u128::from(low)
}

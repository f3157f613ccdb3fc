//! The page-table walk (SDM vol. 3, chapter 4).

use crate::cpu::Cpu;
use crate::cpu::control::{cr0, cr4, efer};
use crate::mmu::Privilege;
use crate::mmu::physical::PAGE_MASK;

/// What an access wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    Fetch,
}

/// Physical address bits the CPU has; CPUID leaf 0x80000008 says so too.
pub const PHYSICAL_BITS: u32 = 48;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const PAGE_SIZE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;

/// Bits of a page fault's error code.
const ERROR_PRESENT: u32 = 1 << 0;
const ERROR_WRITE: u32 = 1 << 1;
const ERROR_USER: u32 = 1 << 2;
const ERROR_RESERVED: u32 = 1 << 3;
const ERROR_FETCH: u32 = 1 << 4;

/// A successful walk.
#[derive(Clone, Copy, Debug)]
pub struct Translation {
    pub gpa: u64,
    /// Stores are allowed and the dirty bit is set already.
    pub writable: bool,
    /// log2 of the page's size.
    pub page_shift: u32,
    /// Every address space has this page.
    pub global: bool,
}

/// The shape of the paging mode: where the walk starts and what an entry looks like.
struct Format {
    root: u64,
    /// Shift of the first level.
    top: u32,
    bits_per_level: u32,
    entry_bytes: u64,
    /// Rights inherited from a PDPTE of PAE paging are none; elsewhere everything is allowed so far.
    reserved: u64,
}

/// A leaf entry and the rights gathered on the way down.
struct Leaf {
    entry: u64,
    entry_gpa: u64,
    shift: u32,
    rights: u64,
}

/// The entries visited, to set their accessed bits once the access is known to be allowed.
#[derive(Default)]
struct Trail {
    visited: [(u64, u64); 4],
    len: usize,
}

impl Cpu {
    /// Walks the tables for `linear`, sets accessed and dirty bits, and checks the rights; `Err`
    /// has the error code of the page fault.
    pub fn walk(&mut self, linear: u64, access: Access, privilege: Privilege) -> Result<Translation, u32> {
        if self.cr0 & cr0::PG == 0 {
            return Ok(Translation { gpa: linear & 0xffff_ffff, writable: true, page_shift: 12, global: false });
        }
        loop {
            let mut trail = Trail::default();
            let leaf = self.find_leaf(linear, &mut trail).map_err(|bits| bits | self.error_bits(access, privilege))?;
            if !self.allowed(leaf.rights, access, privilege) {
                return Err(ERROR_PRESENT | self.error_bits(access, privilege));
            }
            if self.mark_used(&leaf, &trail, access) {
                if access == Access::Fetch {
                    self.code.fetched.add(linear, leaf.shift);
                }
                let gpa = frame(&leaf, linear);
                let dirty = leaf.entry & DIRTY != 0 || access == Access::Write;
                let writable = dirty && self.allowed(leaf.rights, Access::Write, privilege);
                let global = leaf.entry & GLOBAL != 0 && self.cr4 & cr4::PGE != 0;
                return Ok(Translation { gpa, writable, page_shift: leaf.shift, global });
            }
            // Another CPU changed an entry under way: what it is now decides.
        }
    }

    /// Guest-linear to guest-physical as a debugger wants it: no rights, no side effects.
    pub fn translate_quietly(&self, linear: u64) -> Option<u64> {
        if self.cr0 & cr0::PG == 0 {
            return Some(linear & 0xffff_ffff);
        }
        self.find_leaf(linear, &mut Trail::default()).ok().map(|leaf| frame(&leaf, linear))
    }

    fn error_bits(&self, access: Access, privilege: Privilege) -> u32 {
        let write = if access == Access::Write { ERROR_WRITE } else { 0 };
        let user = if privilege.is_user() { ERROR_USER } else { 0 };
        let fetch_reported = self.efer & efer::NXE != 0 && self.cr4 & cr4::PAE != 0 || self.cr4 & cr4::SMEP != 0;
        let fetch = if access == Access::Fetch && fetch_reported { ERROR_FETCH } else { 0 };
        write | user | fetch
    }

    fn format(&self, linear: u64) -> Result<Format, u32> {
        let above_physical = !((1u64 << PHYSICAL_BITS) - 1) & 0x000f_ffff_ffff_f000;
        let nx = if self.efer & efer::NXE == 0 { NO_EXECUTE } else { 0 };
        if self.efer & efer::LMA != 0 {
            let root = self.cr3 & 0x000f_ffff_ffff_f000;
            return Ok(Format { root, top: 39, bits_per_level: 9, entry_bytes: 8, reserved: above_physical | nx });
        }
        if self.cr4 & cr4::PAE != 0 {
            let pdpte = self.mmu.pdptes[(linear >> 30 & 3) as usize];
            if pdpte & PRESENT == 0 {
                return Err(0);
            }
            let reserved = above_physical | nx | 0x7ff0_0000_0000_0000;
            return Ok(Format {
                root: pdpte & 0x000f_ffff_ffff_f000,
                top: 21,
                bits_per_level: 9,
                entry_bytes: 8,
                reserved,
            });
        }
        Ok(Format { root: self.cr3 & 0xffff_f000, top: 22, bits_per_level: 10, entry_bytes: 4, reserved: 0 })
    }

    fn find_leaf(&self, linear: u64, trail: &mut Trail) -> Result<Leaf, u32> {
        let format = self.format(linear)?;
        let (mut table, mut shift) = (format.root, format.top);
        let mut rights = WRITABLE | USER;
        loop {
            let index = linear >> shift & ((1 << format.bits_per_level) - 1);
            let entry_gpa = table + index * format.entry_bytes;
            let entry = self.mmu.physical.read_entry(entry_gpa, format.entry_bytes);
            if entry & PRESENT == 0 {
                return Err(0);
            }
            rights = rights & (entry | !(WRITABLE | USER)) | entry & NO_EXECUTE;
            let is_leaf = shift == 12 || entry & PAGE_SIZE != 0 && self.large_allowed(shift);
            if entry & self.reserved_bits(&format, entry, shift, is_leaf) != 0 {
                return Err(ERROR_PRESENT | ERROR_RESERVED);
            }
            if is_leaf {
                return Ok(Leaf { entry, entry_gpa, shift, rights });
            }
            trail.visited[trail.len] = (entry_gpa, entry);
            trail.len += 1;
            table = entry & 0x000f_ffff_ffff_f000;
            shift -= format.bits_per_level;
        }
    }

    /// Whether an entry at `shift` with its PS bit set maps a page.
    fn large_allowed(&self, shift: u32) -> bool {
        match shift {
            22 => self.cr4 & cr4::PSE != 0,
            21 | 30 => true,
            _ => false,
        }
    }

    fn reserved_bits(&self, format: &Format, entry: u64, shift: u32, is_leaf: bool) -> u64 {
        let large = match (is_leaf, shift) {
            // PSE-36: bits 13..20 are address bits 32..39, bit 21 is reserved.
            (true, 22) => 1 << 21,
            (true, 21) => 0x1f_e000,
            (true, 30) => 0x3fff_e000,
            // PS in a PML4 entry.
            (false, 39) => entry & PAGE_SIZE,
            _ => 0,
        };
        format.reserved | large
    }

    fn allowed(&self, rights: u64, access: Access, privilege: Privilege) -> bool {
        let user_page = rights & USER != 0;
        let user = privilege.is_user();
        if user && !user_page {
            return false;
        }
        match access {
            Access::Fetch => {
                let nx = rights & NO_EXECUTE != 0 && self.efer & efer::NXE != 0;
                !nx && (user || !user_page || self.cr4 & cr4::SMEP == 0)
            }
            _ if user_page && privilege == Privilege::SupervisorSmap => false,
            Access::Read => true,
            Access::Write => rights & WRITABLE != 0 || !user && self.cr0 & cr0::WP == 0,
        }
    }

    /// Sets the accessed bits and, for a store, the dirty bit; false when an entry changed meanwhile.
    fn mark_used(&self, leaf: &Leaf, trail: &Trail, access: Access) -> bool {
        let dirty = if access == Access::Write { DIRTY } else { 0 };
        let upper = trail.visited[..trail.len].iter().map(|&(gpa, entry)| (gpa, entry, ACCESSED));
        upper
            .chain([(leaf.entry_gpa, leaf.entry, ACCESSED | dirty)])
            .all(|(gpa, entry, bits)| entry & bits == bits || self.mmu.physical.set_entry_bits(gpa, entry, bits as u32))
    }

    /// Loads the four PDPTEs of PAE paging; false when one has a reserved bit set.
    pub fn load_pdptes(&mut self, cr3: u64) -> bool {
        let mut pdptes = [0; 4];
        for (index, pdpte) in pdptes.iter_mut().enumerate() {
            *pdpte = self.mmu.physical.read_entry((cr3 & 0xffff_ffe0) + index as u64 * 8, 8);
            let reserved = !((1u64 << PHYSICAL_BITS) - 1) | 0x1e6;
            if *pdpte & PRESENT != 0 && *pdpte & reserved != 0 {
                return false;
            }
        }
        self.mmu.pdptes = pdptes;
        true
    }
}

/// The physical address of `linear` in the page of `leaf`.
fn frame(leaf: &Leaf, linear: u64) -> u64 {
    let offset_mask = (1u64 << leaf.shift) - 1;
    let mut base = leaf.entry & 0x000f_ffff_ffff_f000 & !offset_mask;
    if leaf.shift == 22 {
        base = leaf.entry & 0xffc0_0000 | (leaf.entry >> 13 & 0xff) << 32;
    }
    (base & PAGE_MASK) | linear & offset_mask
}

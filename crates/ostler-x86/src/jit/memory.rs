//! Memory operands: the guest's address, and the TLB look-up that turns it into the host's.

use iced_x86::{Instruction, Register};

use crate::jit::code::{Memory, RSP, Way};
use crate::jit::cold::StoreMiss;
use crate::jit::context::{field, tlb_addend, tlb_read, tlb_write};
use crate::jit::registers::{C, Home, T, home};
use crate::jit::translate::Translator;

const PAGE: i32 = 0x1000;

/// What an access asks of the TLB.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub bytes: u8,
    pub write: bool,
    /// Bytes the address has to be a multiple of, where the processor says so: 16 or 32; else 1.
    pub aligned: u8,
}

impl Wanted {
    pub fn read(bytes: u8) -> Self {
        Self { bytes, write: false, aligned: 1 }
    }

    pub fn write(bytes: u8) -> Self {
        Self { bytes, write: true, aligned: 1 }
    }

    /// Whether a store to a page with watched lines may go on.
    fn may_be_spared(self) -> bool {
        self.write && self.aligned == 1 && self.bytes.is_power_of_two()
    }
}

/// A linear address: a register of the host's, and what is added to it. With T it is T alone.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    pub base: u8,
    pub disp: i32,
}

impl Linear {
    pub fn at(base: u8) -> Self {
        Self { base, disp: 0 }
    }

    /// The host's memory there, when C is what the TLB adds.
    pub fn found(self) -> Memory {
        Memory { base: Some(C), index: Some((self.base, 0)), disp: self.disp }
    }
}

impl Translator<'_> {
    /// Computes the linear address of the memory operand, in T where a register of the guest's and a constant are not
    /// enough. Uses C.
    pub fn linear_address(&mut self, instruction: &Instruction) -> Option<Linear> {
        let segment = match instruction.memory_segment() {
            Register::FS => Some(field!(fs_base)),
            Register::GS => Some(field!(gs_base)),
            _ => None,
        };
        let memory = self.effective_address(instruction)?;
        let narrow = address_is_narrow(instruction);
        match memory {
            Some(Memory { base: Some(base), index: None, disp })
                if segment.is_none() && !narrow && (base != T || disp == 0) =>
            {
                return Some(Linear { base, disp });
            }
            Some(memory) => self.code.with_memory(!narrow, &[0x8d], T, memory),
            None => self.code.set64(T, absolute(instruction)),
        }
        if let Some(offset) = segment {
            self.code.load(C, offset);
            self.code.lea(T, Memory::indexed(T, C));
        }
        Some(Linear::at(T))
    }

    /// The offset part as a memory operand of the host's, registers from the context loaded into T
    /// and C; `Some(None)` when it is a plain number.
    pub fn effective_address(&mut self, instruction: &Instruction) -> Option<Option<Memory>> {
        if instruction.is_vsib() {
            return None;
        }
        if instruction.is_ip_rel_memory_operand() {
            if address_is_narrow(instruction) {
                return None;
            }
            let disp = i32::try_from(instruction.ip_rel_memory_address() as i64).ok()?;
            self.code.load(T, field!(page_base));
            return Some(Some(Memory::at(T, disp)));
        }
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        if base == Register::None && index == Register::None {
            return Some(None);
        }
        let narrow = address_is_narrow(instruction);
        let disp = instruction.memory_displacement64();
        let disp = if narrow { disp as u32 as i32 } else { i32::try_from(disp as i64).ok()? };
        let scale = instruction.memory_index_scale().trailing_zeros() as u8;
        let base = self.address_register(base, T);
        let index = self.address_register(index, C).map(|index| (index, scale));
        Some(Some(Memory { base, index, disp }))
    }

    /// A base or index register in a host register: its own, or `temporary`.
    fn address_register(&mut self, register: Register, temporary: u8) -> Option<u8> {
        if register == Register::None {
            return None;
        }
        match home(register.number() as u8) {
            Home::Host(host) => Some(host),
            Home::Slot(offset) => {
                self.code.load(temporary, offset);
                Some(temporary)
            }
        }
    }

    /// Emits the look-up of a linear address: the operand. A miss runs the whole instruction in Rust. No flag changes; T is
    /// used unless it is the address.
    pub fn look_up(&mut self, address: Linear, wanted: Wanted) -> Memory {
        let bank = self.around.key.bank();
        let address = self.within_reach(address, i32::from(wanted.bytes));
        let index = self.index_of_page(address);
        self.load_of_page(index, if wanted.write { tlb_write(bank) } else { tlb_read(bank) });
        if wanted.aligned == 16 {
            self.page_of_aligned_16(address);
        } else {
            self.page_of_last(address, i32::from(wanted.bytes));
        }
        let way = self.code.miss_unless_found();
        if wanted.may_be_spared() {
            let (size, resume) = (wanted.bytes.trailing_zeros() as usize, self.code.here());
            self.misses.stores.push(StoreMiss { way, address, size, resume });
        } else {
            self.misses.jumps.push(way);
        }
        if wanted.aligned == 32 {
            self.require_aligned_32(address);
        }
        self.load_addend(address, index);
        address.found()
    }

    /// Looks up `bytes` bytes at once, as [`Translator::look_up`], for accesses relative to `address.base`: the way of a
    /// miss.
    pub fn look_up_bytes(&mut self, address: Linear, write: bool, bytes: i32) -> Way {
        let bank = self.around.key.bank();
        let address = self.within_reach(address, bytes);
        let index = self.index_of_page(address);
        self.load_of_page(index, if write { tlb_write(bank) } else { tlb_read(bank) });
        self.page_of_last(address, bytes);
        let miss = self.code.miss_unless_found();
        self.load_addend(address, index);
        miss
    }

    /// The address, in T where `bytes` bytes from it would be beyond a displacement.
    fn within_reach(&mut self, address: Linear, bytes: i32) -> Linear {
        if address.disp.checked_add(bytes + PAGE).is_some() {
            return address;
        }
        self.code.lea(T, Memory::at(address.base, address.disp));
        Linear::at(T)
    }

    /// The register that has the index of the address' page in the TLB: T where that is free, so that it stays.
    fn index_of_page(&mut self, address: Linear) -> u8 {
        let index = if address.base == T { C } else { T };
        let mut from = address.base;
        if address.disp != 0 {
            self.code.lea(C, Memory::at(address.base, address.disp));
            from = C;
        }
        self.code.rotate(index, from, 12);
        self.code.low_16(index, index);
        index
    }

    /// C is what the array at `array` has at `index`.
    fn load_of_page(&mut self, index: u8, array: i32) {
        self.code.load_from(C, Memory { base: Some(RSP), index: Some((index, 3)), disp: array });
    }

    /// C is what to add to a linear address of the page.
    fn load_addend(&mut self, address: Linear, index: u8) {
        if index == C {
            self.index_of_page(address);
        }
        self.load_of_page(index, tlb_addend(self.around.key.bank()));
    }

    /// C is what [`crate::jit::code::Code::found`] says when `bytes` bytes at `address` are in the page whose negated address it is.
    fn page_of_last(&mut self, address: Linear, bytes: i32) {
        let disp = address.disp + bytes - 1 + PAGE * i32::from(self.code.found());
        self.code.lea(C, Memory { base: Some(C), index: Some((address.base, 0)), disp });
        self.code.page_number(C);
    }

    /// The same where `address` has to be a multiple of 16.
    fn page_of_aligned_16(&mut self, address: Linear) {
        self.code.lea(C, address.found());
        // The offset's bits 4 to 11 may be anything: rotated, they are a byte.
        self.code.rotate(C, C, 4);
        let found = self.code.found();
        self.code.set_low_byte_of_rcx(found);
    }

    /// Misses unless `address` is a multiple of 32. Uses C.
    fn require_aligned_32(&mut self, address: Linear) {
        self.code.lea(C, Memory::at(address.base, address.disp));
        // Of a byte, five bits are left.
        self.code.lea(C, Memory { base: None, index: Some((C, 3)), disp: 0 });
        // movzx ecx, cl
        self.code.put(&[0x0f, 0xb6, 0xc9]);
        self.miss_unless_rcx_zero();
    }

    /// LEA.
    pub fn load_address(&mut self, instruction: &Instruction) -> Option<()> {
        let register = instruction.op0_register();
        let wide = match register.size() {
            8 => true,
            4 => false,
            _ => return None,
        };
        let memory = self.effective_address(instruction)?;
        let narrow = address_is_narrow(instruction);
        let target = home(register.number() as u8);
        let host = if let Home::Host(host) = target { host } else { T };
        match memory {
            Some(memory) => self.code.with_memory(wide && !narrow, &[0x8d], host, memory),
            None if wide => self.code.set64(host, absolute(instruction)),
            None => self.code.set32(host, absolute(instruction) as u32),
        }
        if let Home::Slot(offset) = target {
            self.code.store(offset, T);
        }
        Some(())
    }
}

/// An address without registers.
fn absolute(instruction: &Instruction) -> u64 {
    let disp = instruction.memory_displacement64();
    if address_is_narrow(instruction) { u64::from(disp as u32) } else { disp }
}

/// Whether a 67 prefix cuts addresses to 32 bits.
pub(super) fn address_is_narrow(instruction: &Instruction) -> bool {
    match (instruction.memory_base(), instruction.memory_index()) {
        (Register::None, Register::None) => instruction.memory_displ_size() == 4,
        (Register::None, index) => index.size() == 4,
        (base, _) => base.size() == 4,
    }
}

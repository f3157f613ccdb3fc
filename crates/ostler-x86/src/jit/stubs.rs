//! The code that every block shares: into translated code, out of it, and to Rust and back.

use crate::jit::code::{Code, Memory, R11, R12, R13, R14, R15, RAX, RBP, RBX, RCX, RDI, RSP, Way};
use crate::jit::context::{SPARED, field, jump_entry, jump_target, spared_lines, spared_page, tlb_read};
use crate::jit::registers::{C, SLOTS, T, held, slot};
use crate::jit::{BANKS, exit};

/// Where the shared code is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stubs {
    /// `extern "sysv64" fn(rsp, entry)`.
    pub enter: u64,
    /// ECX is the call's site; see [`super::call_out`].
    pub call_out: u64,
    /// Leaves with RIP in T.
    pub leave: u64,
    /// Called with the site of an instruction in ECX: leaves to go on in the careful copy of it.
    pub careful: u64,
    /// Goes on at [`super::context::Context::resume`], with the guest's vector registers loaded.
    pub resume: u64,
    /// Goes on at T by the table of jumps, or leaves with it.
    pub jump: [u64; BANKS],
    /// Loads the guest's vector registers.
    pub load_vector: u64,
    /// By bank and log2 of the bytes: may they be stored at C, though the TLB does not say so? Returns where it was
    /// called from, or five bytes further on if not. Only C changes.
    pub spared: [[u64; SIZES]; BANKS],
}

/// Operands of 1 to 32 bytes.
pub const SIZES: usize = 6;

const SAVED: [u8; 6] = [RBX, RBP, R12, R13, R14, R15];

pub fn emit(code: &mut Code) -> Stubs {
    let mut stubs = Stubs { enter: code.here(), ..Stubs::default() };
    enter(code);
    code.align(16);
    stubs.call_out = code.here();
    call_out(code);
    code.align(16);
    stubs.leave = code.here();
    leave(code);
    code.align(16);
    for bank in 0..BANKS {
        stubs.jump[bank] = code.here();
        jump(code, bank, stubs.leave);
        code.align(16);
    }
    stubs.load_vector = code.here();
    // The call moved RSP by a return address.
    load_vector(code, 8);
    code.with_context(&[0xc7], 0, field!(vector_absent) + 8);
    code.put32(0);
    code.byte(0xc3);
    code.align(16);
    stubs.careful = code.here();
    careful(code);
    code.align(16);
    stubs.resume = code.here();
    code.call(stubs.load_vector);
    code.jump_through(field!(resume));
    code.align(16);
    for bank in 0..BANKS {
        for size in 0..SIZES {
            stubs.spared[bank][size] = code.here();
            spared(code, bank, 1 << size);
            code.align(16);
        }
    }
    stubs
}

/// See [`Stubs::spared`]. The return address is on the stack, so fields are 8 bytes further on.
fn spared(code: &mut Code, bank: usize, bytes: i32) {
    let in_table = |index: u8, offset: i32| Memory { base: Some(RSP), index: Some((index, 3)), disp: offset + 8 };
    code.store(field!(saved_rax) + 8, RAX);
    // lahf; seto al
    code.put(&[0x9f, 0x0f, 0x90, 0xc0]);
    code.store(field!(flags) + 8, RAX);
    code.store(field!(saved_t) + 8, T);
    // RAX = the offset in the page, if the page can be read
    code.rotate(T, C, 12);
    code.low_16(RAX, T);
    code.load_from(RAX, in_table(RAX, tlb_read(bank)));
    code.lea(RAX, Memory::indexed(RAX, C));
    // cmp rax, 4096 - bytes; ja
    code.put(&[0x48, 0x3d]);
    code.put32(0x1000 - bytes as u32);
    let no_page = code.branch_later(7);
    // and r11d, SPARED - 1; sub rcx, rax; cmp rcx, [page]; jne
    code.put(&[0x41, 0x83, 0xe3, SPARED as u8 - 1, 0x48, 0x29, 0xc1]);
    code.with_memory(true, &[0x3b], C, in_table(T, spared_page(bank)));
    let not_spared = code.branch_later(5);
    code.load_from(T, in_table(T, spared_lines(bank)));
    code.lea(C, Memory::at(RAX, bytes - 1));
    // shr eax, 6; shr ecx, 6; bt r11, rax; jc; bt r11, rcx; jc
    code.put(&[0xc1, 0xe8, 6, 0xc1, 0xe9, 6]);
    code.put(&[0x49, 0x0f, 0xa3, 0xc3]);
    let first_watched = code.branch_later(2);
    code.put(&[0x49, 0x0f, 0xa3, 0xcb]);
    let last_watched = code.branch_later(2);
    return_from_spared(code);
    let here = code.here();
    [no_page, not_spared, first_watched, last_watched].into_iter().for_each(|end| code.fix(end, here));
    // add qword [rsp], 5
    code.put(&[0x48, 0x83, 0x04, 0x24, 5]);
    return_from_spared(code);
}

fn return_from_spared(code: &mut Code) {
    code.load(T, field!(saved_t) + 8);
    code.load(RAX, field!(flags) + 8);
    // add al, 0x7f; sahf
    code.put(&[0x04, 0x7f, 0x9e]);
    code.load(RAX, field!(saved_rax) + 8);
    code.byte(0xc3);
}

const _: () = assert!(SPARED == 64, "its mask is a byte's");

fn push(code: &mut Code, reg: u8) {
    if reg >= 8 {
        code.byte(0x41);
    }
    code.byte(0x50 | reg & 7);
}

fn pop(code: &mut Code, reg: u8) {
    if reg >= 8 {
        code.byte(0x41);
    }
    code.byte(0x58 | reg & 7);
}

/// RDI is RSP of translated code, RSI the block's code.
fn enter(code: &mut Code) {
    for reg in SAVED {
        push(code, reg);
    }
    // sub rsp, 8: calls out of here want it aligned.
    code.put(&[0x48, 0x83, 0xec, 8]);
    let context = |disp: i32| Memory::at(RDI, disp);
    code.store_to(context(field!(host_rsp)), RSP);
    code.store_to(context(field!(entry)), 6);
    code.copy(RSP, RDI);
    // pxor mm0, mm0
    code.put(&[0x0f, 0xef, 0xc0]);
    load_registers(code);
    code.jump_through(field!(entry));
}

/// Restores the host's registers and returns from [`enter`].
fn return_to_host(code: &mut Code) {
    code.store_immediate(field!(vector_absent), 1);
    code.load(RSP, field!(host_rsp));
    code.put(&[0x48, 0x83, 0xc4, 8]);
    for reg in SAVED.into_iter().rev() {
        pop(code, reg);
    }
    code.byte(0xc3);
}

/// The guest's registers and flags from the register file and the context.
fn load_registers(code: &mut Code) {
    code.load(RAX, field!(flags));
    // add al, 0x7f: OF is bit 0's. SAHF leaves it.
    code.put(&[0x04, 0x7f, 0x9e]);
    code.load(T, field!(file));
    for (index, guest) in SLOTS.into_iter().enumerate() {
        code.load_from(RCX, Memory::at(T, 8 * i32::from(guest)));
        code.store(slot(index), RCX);
    }
    for (guest, host) in held() {
        code.load_from(host, Memory::at(T, 8 * i32::from(guest)));
    }
}

/// The reverse; RCX stays. The flags are free afterwards.
fn store_registers(code: &mut Code) {
    code.store(field!(saved_rax), RAX);
    // lahf; seto al
    code.put(&[0x9f, 0x0f, 0x90, 0xc0]);
    code.store(field!(flags), RAX);
    code.load(RAX, field!(saved_rax));
    code.load(R11, field!(file));
    for (guest, host) in held() {
        code.store_to(Memory::at(R11, 8 * i32::from(guest)), host);
    }
    for (index, guest) in SLOTS.into_iter().enumerate() {
        code.load(RAX, slot(index));
        code.store_to(Memory::at(R11, 8 * i32::from(guest)), RAX);
    }
    // movq [count], mm0; emms
    code.put(&[0x0f, 0x7f]);
    context_operand(code, field!(count));
    code.put(&[0x0f, 0x77]);
    unless_absent(code, store_vector);
}

fn context_operand(code: &mut Code, offset: i32) {
    code.put(&[0x84, 0x24]);
    code.put32(offset as u32);
}

/// Emits `body` so that it runs when the guest's vector registers are in the host's. Changes flags.
fn unless_absent(code: &mut Code, body: fn(&mut Code)) {
    // cmp qword [vector_absent], 0; jne over
    code.with_context(&[0x83], 7, field!(vector_absent));
    code.byte(0);
    let over = code.branch_later(5);
    body(code);
    let here = code.here();
    code.fix(over, here);
}

/// vmovups between YMM `number` and `[base + 32 * number]`.
fn vector_move(code: &mut Code, opcode: u8, number: u8, base: u8) {
    // VEX.256.0F 10/11 /r
    code.put(&[0xc4, (!number >> 3 & 1) << 7 | 0x40 | (!base >> 3 & 1) << 5 | 1, 0x7c, opcode]);
    code.put(&[0x80 | (number & 7) << 3 | base & 7]);
    code.put32(32 * u32::from(number));
}

/// Uses R11.
fn store_vector(code: &mut Code) {
    code.load(R11, field!(vector));
    for number in 0..16 {
        vector_move(code, 0x11, number, R11);
    }
    code.load(R11, field!(mxcsr));
    // stmxcsr [r11]; ldmxcsr [rsp + host_mxcsr]; vzeroupper
    code.put(&[0x41, 0x0f, 0xae, 0x1b]);
    code.put(&[0x0f, 0xae, 0x94, 0x24]);
    code.put32(field!(host_mxcsr) as u32);
    code.put(&[0xc5, 0xf8, 0x77]);
}

/// Uses RCX. `pushed` bytes are on the stack above the context.
fn load_vector(code: &mut Code, pushed: i32) {
    code.load(RCX, field!(vector) + pushed);
    for number in 0..16 {
        vector_move(code, 0x10, number, RCX);
    }
    code.load(RCX, field!(mxcsr) + pushed);
    // ldmxcsr [rcx]
    code.put(&[0x0f, 0xae, 0x11]);
}

fn call_out(code: &mut Code) {
    // pop [rsp + resume]: the address is computed after RSP moved.
    code.put(&[0x8f, 0x84, 0x24]);
    code.put32(field!(resume) as u32);
    store_registers(code);
    code.load(RDI, field!(cpu));
    // mov esi, ecx
    code.put(&[0x89, 0xce]);
    code.copy(RBX, RSP);
    code.load(RSP, field!(host_rsp));
    // call [rbx + call_out]
    code.with_memory(false, &[0xff], 2, Memory::at(RBX, field!(call_out)));
    code.copy(RSP, RBX);
    // test eax, eax; jnz to the way out
    code.put(&[0x85, 0xc0]);
    let stopped = code.branch_later(5);
    unless_absent(code, |code| load_vector(code, 0));
    // movq mm0, [count]
    code.put(&[0x0f, 0x6f]);
    context_operand(code, field!(count));
    load_registers(code);
    code.jump_through(field!(resume));
    let here = code.here();
    code.fix(stopped, here);
    return_to_host(code);
}

fn careful(code: &mut Code) {
    // pop [rsp + resume], as for a call to Rust
    code.put(&[0x8f, 0x84, 0x24]);
    code.put32(field!(resume) as u32);
    code.store(field!(careful), C);
    code.store_immediate(field!(exit), exit::CAREFUL);
    store_registers(code);
    return_to_host(code);
}

fn leave(code: &mut Code) {
    code.store(field!(rip), T);
    code.store_immediate(field!(exit), exit::JUMP);
    store_registers(code);
    return_to_host(code);
}

/// Emits the look-up of T in the table of jumps: falls through on a hit, else goes where the
/// returned way is made to lead. Uses C.
pub fn look_up_jump(code: &mut Code, bank: usize) -> Way {
    code.low_16(C, T);
    code.load_from(C, table(jump_target(bank)));
    let disp = i32::from(code.found());
    code.lea(C, Memory { base: Some(C), index: Some((T, 0)), disp });
    code.miss_unless_found()
}

/// Emits the jump to T, which was found in the table. Uses C.
pub fn jump_to_found(code: &mut Code, bank: usize) {
    code.low_16(C, T);
    // jmp [rsp + rcx * 8 + entry]
    code.with_memory(false, &[0xff], 4, table(jump_entry(bank)));
}

/// `[rsp + rcx * 8 + offset]`.
pub fn table(offset: i32) -> Memory {
    Memory { base: Some(RSP), index: Some((C, 3)), disp: offset }
}

fn jump(code: &mut Code, bank: usize, leave: u64) {
    let miss = look_up_jump(code, bank);
    jump_to_found(code, bank);
    code.island(false);
    code.lead(miss, leave);
}

/// Bytes of [`arrive`].
pub const ARRIVAL_BYTES: usize = 12;

/// Emits what a jump by the table does at its target, `offset` bytes into its page: T is where that is.
pub fn arrive(code: &mut Code, offset: i64) {
    let start = code.bytes.len();
    // lea r11, [r11 - offset], with four bytes of displacement
    code.put(&[0x4d, 0x8d, 0x9b]);
    code.put32((-offset) as u32);
    code.store(field!(page_base), T);
    debug_assert_eq!(code.bytes.len() - start, ARRIVAL_BYTES);
}

const _: () = assert!(field!(page_base) < 128);

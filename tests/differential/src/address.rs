//! Memory operands: first where they shall point, then a way of addressing that gets there.

use iced_x86::{Instruction, Mnemonic, Register};

use crate::generate::Draft;
use crate::layout::{CONSTANT, DATA, PAGE, SAVE_SLOT, STACK};
use crate::state::{Mode, RBP, RBX, RDI, RSI, RSP};

/// Completes a memory operand whose kind is set; `index_vector` is a gather's.
pub fn memory(draft: &mut Draft, item: &mut Instruction, index_vector: Option<Register>) {
    let target = target(draft, item);
    let target = segment(draft, item, target);
    match index_vector {
        Some(index) => gather(draft, item, index, target),
        None => form(draft, item, target),
    }
}

/// The operand of `MOV AL, [moffs]` and its like.
pub fn offset_only(draft: &mut Draft, item: &mut Instruction) {
    let target = target(draft, item);
    let target = segment(draft, item, target);
    let unusual = draft.random.percent(20);
    let (size, target) = match draft.mode {
        Mode::Long if target >> 32 == 0 && unusual => (4, target),
        Mode::Long => (8, target),
        Mode::Sixteen if !unusual => (2, target & 0xffff),
        _ => (4, target & 0xffff_ffff),
    };
    item.set_memory_displ_size(size);
    item.set_memory_displacement64(target);
}

fn target(draft: &mut Draft, item: &Instruction) -> u64 {
    let size = (item.memory_size().size() as u64).max(1);
    let random = &mut draft.random;
    if stores_pointers(item) {
        draft.save_slot_written = true;
        return SAVE_SLOT;
    }
    // What was stored there cannot be compared, so nothing may be made of it.
    let image = !draft.save_slot_written && random.percent(75);
    if uses_save_slot(item) && image {
        return SAVE_SLOT;
    }
    if matches!(item.mnemonic(), Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr) && image {
        return SAVE_SLOT + 24;
    }
    let unaligned = DATA.base + 0x100 + random.below(0x1600);
    match random.below(100) {
        0..=4 => DATA.base + PAGE - random.below(size + 1),
        5..=6 => DATA.base - random.below(size + 1),
        7..=8 => CONSTANT.base + random.below(PAGE),
        9..=11 => DATA.end() - random.below(size + 1),
        12 => DATA.end() + random.below(PAGE),
        13 => STACK.base + random.below(STACK.bytes),
        14 => 0x8000_0000_0000 - random.below(size + 1),
        15 => random.integer(),
        16..=30 => unaligned,
        _ => unaligned & !31,
    }
}

/// Images of the x87 or whole state: one place for them, so that the fields nobody can compare are known.
pub fn uses_save_slot(item: &Instruction) -> bool {
    stores_pointers(item)
        || matches!(item.mnemonic(), Mnemonic::Fxrstor | Mnemonic::Fxrstor64 | Mnemonic::Frstor | Mnemonic::Fldenv)
}

/// Instructions that store x87 instruction and data pointers.
pub fn stores_pointers(item: &Instruction) -> bool {
    matches!(
        item.mnemonic(),
        Mnemonic::Fxsave
            | Mnemonic::Fxsave64
            | Mnemonic::Fnsave
            | Mnemonic::Fsave
            | Mnemonic::Fnstenv
            | Mnemonic::Fstenv
            | Mnemonic::Xsave
    )
}

/// Now and then FS or GS, whose base is taken off the target.
fn segment(draft: &mut Draft, item: &mut Instruction, target: u64) -> u64 {
    let target = target.wrapping_sub(draft.mode.data_base());
    if !draft.random.percent(6) {
        return target;
    }
    let choice = if draft.random.percent(50) { (Register::FS, draft.fs_base) } else { (Register::GS, draft.gs_base) };
    let (register, Some(base)) = choice else { return target };
    item.set_segment_prefix(register);
    target.wrapping_sub(base)
}

fn form(draft: &mut Draft, item: &mut Instruction, target: u64) {
    if draft.mode == Mode::Sixteen && draft.random.percent(75) {
        return sixteen_bit_form(draft, item, target);
    }
    let narrow = draft.mode != Mode::Long || (target >> 32 == 0 && draft.random.percent(6));
    let made = match draft.random.below(10) {
        0 if !narrow => instruction_relative(item, target),
        1 => false,
        2..=5 => with_base(draft, item, target, narrow),
        _ => with_index(draft, item, target, narrow),
    };
    if !made {
        absolute(draft, item, target, narrow);
    }
}

/// Base and index of the 16-bit forms; those with BP reach where SS and chance let them.
const SIXTEEN_BIT_FORMS: [(Register, Register); 9] = [
    (Register::None, Register::None),
    (Register::BX, Register::None),
    (Register::SI, Register::None),
    (Register::DI, Register::None),
    (Register::BX, Register::SI),
    (Register::BX, Register::DI),
    (Register::BP, Register::SI),
    (Register::BP, Register::DI),
    (Register::BP, Register::None),
];

fn sixteen_bit_form(draft: &mut Draft, item: &mut Instruction, target: u64) {
    let forms = if draft.random.percent(90) { 6 } else { 9 };
    let form = draft.random.below(forms);
    let (base, index) = SIXTEEN_BIT_FORMS[form as usize];
    let value = |register: Register| match register {
        Register::BX => draft.known[RBX],
        Register::SI => draft.known[RSI],
        Register::DI => draft.known[RDI],
        Register::BP => draft.known[RBP],
        _ => Some(0),
    };
    let (base, index, start) = match (value(base), value(index)) {
        (Some(first), Some(second)) => (base, index, first.wrapping_add(second)),
        _ => (Register::None, Register::None, 0),
    };
    item.set_memory_base(base);
    item.set_memory_index(index);
    let distance = target.wrapping_sub(start) as u16;
    let short = base != Register::None && distance as i8 as u16 == distance;
    item.set_memory_displ_size(if short { 1 } else { 2 });
    item.set_memory_displacement64(if short { distance as i16 as u64 } else { distance.into() });
}

fn instruction_relative(item: &mut Instruction, target: u64) -> bool {
    if target >> 31 != 0 {
        return false;
    }
    item.set_memory_base(Register::RIP);
    item.set_memory_displ_size(8);
    item.set_memory_displacement64(target);
    true
}

/// A bare displacement; where it does not reach, a register that holds anything.
fn absolute(draft: &mut Draft, item: &mut Instruction, target: u64, narrow: bool) {
    if !narrow && target as i32 as u64 != target {
        let number = draft.random.below(16) as u32;
        item.set_memory_base(Register::RAX + number);
        return;
    }
    item.set_memory_displ_size(if narrow { 4 } else { 8 });
    item.set_memory_displacement64(if narrow { target & 0xffff_ffff } else { target });
}

fn with_base(draft: &mut Draft, item: &mut Instruction, target: u64, narrow: bool) -> bool {
    let Some((number, value)) = reachable(draft, target, narrow) else { return false };
    item.set_memory_base(address_register(narrow, number));
    displacement(item, target.wrapping_sub(value), narrow)
}

fn with_index(draft: &mut Draft, item: &mut Instruction, target: u64, narrow: bool) -> bool {
    let scale = 1 << draft.random.below(4);
    let Some((index, index_value)) = known(draft, |number, value| number != 4 && value.wrapping_add(64) < 256) else {
        return with_base(draft, item, target, narrow);
    };
    let rest = target.wrapping_sub(index_value.wrapping_mul(u64::from(scale)));
    let base = if draft.random.percent(75) { reachable(draft, rest, narrow) } else { None };
    if let Some((number, _)) = base {
        item.set_memory_base(address_register(narrow, number));
    }
    item.set_memory_index(address_register(narrow, index));
    item.set_memory_index_scale(scale);
    displacement(item, rest.wrapping_sub(base.map_or(0, |(_, value)| value)), narrow)
}

fn gather(draft: &mut Draft, item: &mut Instruction, index: Register, target: u64) {
    let narrow = draft.mode != Mode::Long;
    item.set_memory_index(index);
    item.set_memory_index_scale(1 << draft.random.below(4));
    match reachable(draft, target, narrow) {
        Some((number, value)) => {
            item.set_memory_base(address_register(narrow, number));
            displacement(item, target.wrapping_sub(value), narrow);
        }
        None => {
            item.set_memory_displ_size(if narrow { 4 } else { 8 });
            item.set_memory_displacement64(if narrow { target & 0xffff_ffff } else { target as i32 as u64 });
        }
    }
}

/// Sets the displacement; false when it does not fit.
fn displacement(item: &mut Instruction, value: u64, narrow: bool) -> bool {
    if !narrow && value as i32 as u64 != value {
        item.set_memory_base(Register::None);
        item.set_memory_index(Register::None);
        item.set_memory_index_scale(1);
        return false;
    }
    let no_base = item.memory_base() == Register::None;
    let size = if narrow { 4 } else { 8 };
    item.set_memory_displ_size(if value as i8 as u64 == value && !no_base { 1 } else { size });
    item.set_memory_displacement64(if narrow { value as i32 as u64 } else { value });
    true
}

fn address_register(narrow: bool, number: usize) -> Register {
    (if narrow { Register::EAX } else { Register::RAX }) + number as u32
}

/// A register from which a displacement reaches `target`.
fn reachable(draft: &mut Draft, target: u64, narrow: bool) -> Option<(usize, u64)> {
    known(draft, |_, value| {
        let distance = target.wrapping_sub(value);
        narrow || distance as i32 as u64 == distance
    })
}

/// A random one of the general registers whose value is known and fits.
fn known(draft: &mut Draft, fits: impl Fn(usize, u64) -> bool) -> Option<(usize, u64)> {
    let count = draft.mode.gprs();
    let first = draft.random.below(count as u64) as usize;
    // SP and BP mean SS, whose base is another one there.
    let usable = |number: &usize| draft.mode != Mode::Sixteen || !matches!(*number, RSP | RBP);
    (0..count)
        .map(|step| (first + step) % count)
        .filter(usable)
        .find_map(|number| draft.known[number].filter(|value| fits(number, *value)).map(|value| (number, value)))
}

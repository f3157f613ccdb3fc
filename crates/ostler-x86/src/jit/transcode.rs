//! Instructions that become themselves, with other register numbers and a host address.

use iced_x86::{
    Instruction, InstructionInfoFactory, InstructionInfoOptions, Mnemonic, OpAccess, OpCodeOperandKind, Register,
};

use crate::host::stub::{is_string_compare, must_be_aligned};
use crate::jit::code::Memory;
use crate::jit::encoding::Encoding;
use crate::jit::memory::Wanted;
use crate::jit::registers::{C, Home, T, home};
use crate::jit::translate::Translator;

/// Where an instruction names an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Reg,
    Rm,
    Vvvv,
    Opcode,
    Memory,
    /// Not encoded, and at home: the accumulator, an immediate.
    Nowhere,
    /// A shift count in CL.
    Count,
}

/// Where the processor finds a kind of operand; `None` for kinds that are not transcoded.
fn place(kind: OpCodeOperandKind) -> Option<Place> {
    use OpCodeOperandKind as K;
    Some(match kind {
        K::r8_reg | K::r16_reg | K::r32_reg | K::r64_reg | K::xmm_reg | K::ymm_reg => Place::Reg,
        K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem | K::xmm_or_mem | K::ymm_or_mem => Place::Rm,
        K::r16_rm | K::r32_rm | K::r64_rm | K::xmm_rm | K::ymm_rm => Place::Rm,
        K::r32_vvvv | K::r64_vvvv | K::xmm_vvvv | K::ymm_vvvv => Place::Vvvv,
        K::r8_opcode | K::r16_opcode | K::r32_opcode | K::r64_opcode => Place::Opcode,
        K::mem => Place::Memory,
        K::al | K::ax | K::eax | K::rax | K::imm8 | K::imm8_const_1 | K::imm8sex16 | K::imm8sex32 => Place::Nowhere,
        K::imm8sex64 | K::imm16 | K::imm32 | K::imm32sex64 | K::imm64 | K::xmm_is4 | K::ymm_is4 => Place::Nowhere,
        K::cl => Place::Count,
        _ => return None,
    })
}

/// The register numbers and memory operand to encode.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fields {
    pub reg: u8,
    pub rm: u8,
    pub vvvv: u8,
    pub opcode: u8,
    pub memory: Option<Memory>,
    /// A register operand is AH, CH, DH or BH: no REX prefix may appear.
    pub high_byte: bool,
}

/// A guest register of the context that an instruction uses, and the scratch register it is in meanwhile.
#[derive(Clone, Copy, Debug)]
struct Borrowed {
    offset: i32,
    scratch: u8,
    written: bool,
}

/// Scratch registers in use for one instruction.
#[derive(Debug)]
struct Scratch {
    free: [Option<u8>; 2],
    borrowed: [Option<Borrowed>; 2],
}

impl Scratch {
    /// The host register for a guest register, which may have to be borrowed.
    fn host(&mut self, guest: u8, written: bool) -> Option<u8> {
        let offset = match home(guest) {
            Home::Host(host) => return Some(host),
            Home::Slot(offset) => offset,
        };
        for known in self.borrowed.iter_mut().flatten() {
            if known.offset == offset {
                known.written |= written;
                return Some(known.scratch);
            }
        }
        let scratch = self.free.iter_mut().find_map(Option::take)?;
        *self.borrowed.iter_mut().find(|place| place.is_none())? = Some(Borrowed { offset, scratch, written });
        Some(scratch)
    }
}

/// A BT with a bit offset in a register reaches beyond its memory operand.
pub(super) fn reaches_beyond(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
        && instruction.op0_register() == Register::None
        && instruction.op1_register() != Register::None
}

impl Translator<'_> {
    /// Emits the instruction with its operands in the host's places.
    pub fn transcode(
        &mut self,
        instruction: &Instruction,
        encoding: &Encoding<'_>,
        factory: &mut InstructionInfoFactory,
    ) -> Option<()> {
        if is_string_compare(instruction.mnemonic()) {
            return None;
        }
        if instruction.mnemonic() == Mnemonic::Adcx || instruction.mnemonic() == Mnemonic::Adox {
            is_x86_feature_detected!("adx").then_some(())?;
        }
        const ACCESS_ONLY: u32 = InstructionInfoOptions::NO_MEMORY_USAGE | InstructionInfoOptions::NO_REGISTER_USAGE;
        let info = factory.info_options(instruction, ACCESS_ONLY);
        let access: [OpAccess; 5] = std::array::from_fn(|index| info.op_access(index as u32));
        let opcode = instruction.code().op_code();
        let (mut places, mut counted, mut memory, mut high) = ([Place::Nowhere; 5], false, None, None);
        for index in 0..instruction.op_count() {
            let mut found = place(opcode.op_kind(index))?;
            let register = instruction.try_op_register(index).unwrap_or(Register::None);
            if instruction.op_kind(index) == iced_x86::OpKind::Memory {
                found = Place::Memory;
                memory = Some(access[index as usize]);
            }
            counted |= found == Place::Count;
            if matches!(register, Register::AH | Register::CH | Register::DH | Register::BH) {
                high = Some(register);
            }
            places[index as usize] = found;
        }
        let mut scratch = Scratch { free: [Some(T), Some(C)], borrowed: [None; 2] };
        let mut fields = Fields { opcode: encoding.opcode, high_byte: high.is_some(), ..Fields::default() };
        if counted {
            scratch.free[1] = None;
        }
        if let Some(access) = memory {
            let borrows = counted || self.borrows(instruction, &places);
            fields.memory = Some(self.host_memory(instruction, encoding, access, borrows, high.is_some())?);
            scratch.free[0] = None;
            if !borrows {
                scratch.free[1] = None;
            }
        }
        for index in 0..instruction.op_count() as usize {
            self.field(instruction, encoding, index, places[index], access[index], &mut scratch, &mut fields)?;
        }
        if fields.high_byte && counted {
            return None;
        }
        for borrowed in scratch.borrowed.into_iter().flatten() {
            self.code.load(borrowed.scratch, borrowed.offset);
        }
        if counted {
            // mov ecx, r14d
            self.code.put(&[0x44, 0x89, 0xf1]);
        }
        self.encode(encoding, &fields)?;
        for borrowed in scratch.borrowed.into_iter().flatten().filter(|borrowed| borrowed.written) {
            self.code.store(borrowed.offset, borrowed.scratch);
        }
        Some(())
    }

    /// Whether a register operand lives in the context.
    fn borrows(&self, instruction: &Instruction, places: &[Place; 5]) -> bool {
        (0..instruction.op_count()).any(|index| {
            let register = instruction.try_op_register(index).unwrap_or(Register::None);
            places[index as usize] != Place::Memory
                && register.is_gpr()
                && matches!(home(register.full_register().number() as u8), Home::Slot(_))
        })
    }

    /// Looks the memory operand up; with `in_one` register when the other is needed, or when REX is not allowed.
    fn host_memory(
        &mut self,
        instruction: &Instruction,
        encoding: &Encoding<'_>,
        access: OpAccess,
        in_one: bool,
        no_rex: bool,
    ) -> Option<Memory> {
        let bytes = u8::try_from(instruction.memory_size().size()).ok().filter(|bytes| (1..=32).contains(bytes))?;
        let write = !matches!(access, OpAccess::Read | OpAccess::CondRead);
        let aligned = if must_be_aligned(instruction, bytes, encoding.vex.is_some()) { bytes } else { 1 };
        let found = match self.found_near(instruction.memory_displacement64() as i32) {
            Some(found) => found,
            None if self.loads_target => self.look_up_guessed(instruction)?,
            None => {
                let address = self.linear_address(instruction)?;
                self.look_up(address, Wanted { bytes, write, aligned })
            }
        };
        if no_rex {
            self.code.lea(C, found);
            return (!in_one).then_some(Memory::at(C, 0));
        }
        if in_one {
            self.code.lea(T, found);
            return Some(Memory::at(T, 0));
        }
        Some(found)
    }

    /// Fills the field that operand `index` is encoded in.
    #[expect(clippy::too_many_arguments, reason = "the operand in its several aspects")]
    fn field(
        &mut self,
        instruction: &Instruction,
        encoding: &Encoding<'_>,
        index: usize,
        place: Place,
        access: OpAccess,
        scratch: &mut Scratch,
        fields: &mut Fields,
    ) -> Option<()> {
        if matches!(place, Place::Memory | Place::Nowhere | Place::Count) {
            return Some(());
        }
        let register = instruction.op_register(index as u32);
        let number = match register {
            Register::CH => return None,
            // Without REX, 4, 6 and 7 name the second byte of RAX, RDX and RBX.
            Register::AH => 4,
            Register::DH => 6,
            Register::BH => 7,
            _ if register.is_gpr() => {
                let written = !matches!(access, OpAccess::Read | OpAccess::CondRead);
                scratch.host(register.full_register().number() as u8, written)?
            }
            _ => register.number() as u8,
        };
        match place {
            Place::Reg => fields.reg = number,
            Place::Rm => fields.rm = number,
            Place::Vvvv => fields.vvvv = number,
            _ => {
                // A register in the opcode extends like the rm field.
                fields.opcode = encoding.opcode & 0xf8 | number & 7;
                fields.rm = number;
            }
        }
        Some(())
    }

    /// Emits prefixes, opcode, operands and immediate; `None` when AH and its like meet a REX prefix.
    pub fn encode(&mut self, encoding: &Encoding<'_>, fields: &Fields) -> Option<()> {
        let names_reg = encoding.modrm.is_some() && self.reg_is_operand(encoding);
        let reg = if names_reg { fields.reg } else { encoding.reg_field() };
        let extensions = match fields.memory {
            Some(memory) => memory.rex(reg),
            None => reg >> 3 << 2 | fields.rm >> 3,
        };
        match encoding.vex {
            Some(vex) => {
                let first = (!extensions & 7) << 5 | encoding.map;
                let last = u8::from(vex.wide) << 7 | (!fields.vvvv & 15) << 3 | vex.length << 2 | vex.prefix;
                self.code.put(&[0xc4, first, last]);
                self.code.byte(fields.opcode);
            }
            None => self.legacy_prefixes(encoding, fields, extensions)?,
        }
        if encoding.modrm.is_some() {
            match fields.memory {
                Some(memory) => self.code.memory_operand(reg, memory),
                None => self.code.byte(0xc0 | (reg & 7) << 3 | fields.rm & 7),
            }
        }
        self.code.put(encoding.immediate);
        Some(())
    }

    fn legacy_prefixes(&mut self, encoding: &Encoding<'_>, fields: &Fields, extensions: u8) -> Option<()> {
        let rex = encoding.rex & 0x48 | if extensions != 0 { 0x40 | extensions } else { 0 };
        if fields.high_byte && rex != 0 {
            return None;
        }
        if encoding.lock {
            self.code.byte(0xf0);
        }
        if encoding.operand_size {
            self.code.byte(0x66);
        }
        if encoding.repeat != 0 {
            self.code.byte(encoding.repeat);
        }
        if rex != 0 {
            self.code.byte(rex);
        }
        let (mut bytes, len) = encoding.opcode_bytes();
        bytes[len - 1] = fields.opcode;
        self.code.put(&bytes[..len]);
        Some(())
    }

    /// Whether the reg field names a register, rather than extending the opcode.
    fn reg_is_operand(&self, encoding: &Encoding<'_>) -> bool {
        match (encoding.map, encoding.opcode) {
            (0, 0x80..=0x83 | 0x8f | 0xc0 | 0xc1 | 0xc6 | 0xc7 | 0xd0..=0xd3 | 0xf6 | 0xf7 | 0xfe | 0xff) => false,
            // SETcc ignores it; BT and the shifts of vectors by an immediate have it as an extension.
            (1, 0x90..=0x9f | 0xba | 0x71..=0x73) => false,
            // BLSR, BLSMSK, BLSI.
            (2, 0xf3) => encoding.vex.is_none(),
            _ => true,
        }
    }
}

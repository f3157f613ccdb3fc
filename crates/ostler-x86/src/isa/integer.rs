//! General-purpose instructions.

use crate::exec::alu::*;
use crate::exec::bits::*;
use crate::exec::branch::*;
use crate::exec::decimal::*;
use crate::exec::mov::*;
use crate::exec::muldiv::*;
use crate::exec::shift::*;
use crate::exec::stack::*;
use crate::exec::string::select_string;
use crate::isa::table;

table! {
    Add => select_binary::<Add>, Plain;
    Adc => select_binary::<Adc>, Plain;
    Sub => select_binary::<Sub>, Plain;
    Sbb => select_binary::<Sbb>, Plain;
    And => select_binary::<And>, Plain;
    Or => select_binary::<Or>, Plain;
    Xor => select_binary::<Xor>, Plain;
    Cmp => select_binary::<Cmp>, Plain;
    Test => select_binary::<Test>, Plain;
    Inc => select_unary::<Inc>, Plain;
    Dec => select_unary::<Dec>, Plain;
    Neg => select_unary::<Neg>, Plain;
    Not => select_unary::<Not>, Plain;
    Xadd => select_xadd, Plain;
    Xchg => select_xchg, Plain;
    Cmpxchg => select_cmpxchg, Plain;
    Cmpxchg8b => select_cmpxchg8b;
    Cmpxchg16b => select_cmpxchg16b, Pair;
    Mul => select_mul, Plain;
    Imul => select_imul, Plain;
    Div => select_div, Divide;
    Idiv => select_idiv, Divide;
    Mulx => select_mulx, Plain;

    Mov | Movnti => select_mov, Plain;
    Movbe => select_movbe, Plain;
    Bswap => select_bswap, Plain;
    Movzx => select_movzx, Plain;
    Movsx | Movsxd => select_movsx, Plain;
    Lea => select_lea, Address;
    Cbw | Cwde | Cdqe | Cwd | Cdq | Cqo => select_extend, Plain;
    Seto | Setno | Setb | Setae | Sete | Setne | Setbe | Seta => select_setcc, Plain;
    Sets | Setns | Setp | Setnp | Setl | Setge | Setle | Setg => select_setcc, Plain;
    Cmovo | Cmovno | Cmovb | Cmovae | Cmove | Cmovne | Cmovbe | Cmova => select_cmov, Plain;
    Cmovs | Cmovns | Cmovp | Cmovnp | Cmovl | Cmovge | Cmovle | Cmovg => select_cmov, Plain;
    Xlatb => select_xlat;
    Lahf | Sahf | Clc | Stc | Cmc => select_flag, Plain;
    Salc | Cld | Std => select_flag;
    Nop | Reservednop => select_nop, Nothing;

    Shl | Sal => select_shift::<Shl>, Plain;
    Shr => select_shift::<Shr>, Plain;
    Sar => select_shift::<Sar>, Plain;
    Rol => select_shift::<Rol>, Plain;
    Ror => select_shift::<Ror>, Plain;
    Rcl => select_shift::<Rcl>, Plain;
    Rcr => select_shift::<Rcr>, Plain;
    Shld => select_shld, Plain;
    Shrd => select_shrd, Plain;

    Bt => select_bit::<Keep>, Plain;
    Bts => select_bit::<SetBit>, Plain;
    Btr => select_bit::<ResetBit>, Plain;
    Btc => select_bit::<Complement>, Plain;
    Bsf | Bsr | Lzcnt | Tzcnt | Popcnt => select_scan, Plain;
    Andn | Bextr | Blsi | Blsmsk | Blsr | Bzhi | Pdep | Pext | Rorx | Sarx | Shlx | Shrx => select_bmi, Plain;
    Adcx | Adox => select_adx, Plain;
    Crc32 => select_crc32, Plain;
    Aaa | Aas | Aam | Aad | Daa | Das => select_decimal;

    Jo | Jno | Jb | Jae | Je | Jne | Jbe | Ja | Js | Jns | Jp | Jnp | Jl | Jge | Jle | Jg => select_jcc, Branch;
    Jmp => select_jmp, Branch;
    Call => select_call, Branch;
    Ret => select_ret, Branch;
    Loop | Loope | Loopne | Jcxz | Jecxz | Jrcxz => select_counted;
    Push => select_push, Stack;
    Pop => select_pop, Stack;
    Pusha | Pushad | Popa | Popad => select_all;
    Enter => select_enter;
    Leave => select_leave, Stack;

    Movsb | Movsw | Movsq => select_string;
    Stosb | Stosw | Stosd | Stosq => select_string;
    Lodsb | Lodsw | Lodsd | Lodsq => select_string;
    Cmpsb | Cmpsw | Cmpsq => select_string;
    Scasb | Scasw | Scasd | Scasq => select_string;
    // One name, two instructions: the string ones have no vector register.
    Movsd => |instruction, op| {
        if instruction.is_string_instruction() { select_string(instruction, op) } else { crate::isa::vector::select_movsd(instruction, op) }
    }, Vector;
    Cmpsd => |instruction, op| {
        if instruction.is_string_instruction() { select_string(instruction, op) } else { crate::isa::vector::select_cmpsd(instruction, op) }
    }, Float;
}

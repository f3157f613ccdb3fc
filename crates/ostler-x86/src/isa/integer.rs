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
    Add => select_binary::<Add>;
    Adc => select_binary::<Adc>;
    Sub => select_binary::<Sub>;
    Sbb => select_binary::<Sbb>;
    And => select_binary::<And>;
    Or => select_binary::<Or>;
    Xor => select_binary::<Xor>;
    Cmp => select_binary::<Cmp>;
    Test => select_binary::<Test>;
    Inc => select_unary::<Inc>;
    Dec => select_unary::<Dec>;
    Neg => select_unary::<Neg>;
    Not => select_unary::<Not>;
    Xadd => select_xadd;
    Xchg => select_xchg;
    Cmpxchg => select_cmpxchg;
    Cmpxchg8b => select_cmpxchg8b;
    Cmpxchg16b => select_cmpxchg16b;
    Mul => select_mul;
    Imul => select_imul;
    Div => select_div;
    Idiv => select_idiv;
    Mulx => select_mulx;

    Mov | Movnti => select_mov;
    Movbe => select_movbe;
    Bswap => select_bswap;
    Movzx => select_movzx;
    Movsx | Movsxd => select_movsx;
    Lea => select_lea;
    Cbw | Cwde | Cdqe | Cwd | Cdq | Cqo => select_extend;
    Seto | Setno | Setb | Setae | Sete | Setne | Setbe | Seta => select_setcc;
    Sets | Setns | Setp | Setnp | Setl | Setge | Setle | Setg => select_setcc;
    Cmovo | Cmovno | Cmovb | Cmovae | Cmove | Cmovne | Cmovbe | Cmova => select_cmov;
    Cmovs | Cmovns | Cmovp | Cmovnp | Cmovl | Cmovge | Cmovle | Cmovg => select_cmov;
    Xlatb => select_xlat;
    Lahf | Sahf | Salc | Clc | Stc | Cmc | Cld | Std => select_flag;
    Nop | Reservednop => select_nop;

    Shl | Sal => select_shift::<Shl>;
    Shr => select_shift::<Shr>;
    Sar => select_shift::<Sar>;
    Rol => select_shift::<Rol>;
    Ror => select_shift::<Ror>;
    Rcl => select_shift::<Rcl>;
    Rcr => select_shift::<Rcr>;
    Shld => select_shld;
    Shrd => select_shrd;

    Bt => select_bit::<Keep>;
    Bts => select_bit::<SetBit>;
    Btr => select_bit::<ResetBit>;
    Btc => select_bit::<Complement>;
    Bsf | Bsr | Lzcnt | Tzcnt | Popcnt => select_scan;
    Andn | Bextr | Blsi | Blsmsk | Blsr | Bzhi | Pdep | Pext | Rorx | Sarx | Shlx | Shrx => select_bmi;
    Adcx | Adox => select_adx;
    Crc32 => select_crc32;
    Aaa | Aas | Aam | Aad | Daa | Das => select_decimal;

    Jo | Jno | Jb | Jae | Je | Jne | Jbe | Ja | Js | Jns | Jp | Jnp | Jl | Jge | Jle | Jg => select_jcc;
    Jmp => select_jmp;
    Call => select_call;
    Ret => select_ret;
    Loop | Loope | Loopne | Jcxz | Jecxz | Jrcxz => select_counted;
    Push => select_push;
    Pop => select_pop;
    Pusha | Pushad | Popa | Popad => select_all;
    Enter => select_enter;
    Leave => select_leave;

    Movsb | Movsw | Movsq => select_string;
    Stosb | Stosw | Stosd | Stosq => select_string;
    Lodsb | Lodsw | Lodsd | Lodsq => select_string;
    Cmpsb | Cmpsw | Cmpsq => select_string;
    Scasb | Scasw | Scasd | Scasq => select_string;
    // One name, two instructions: the string ones have no vector register.
    Movsd => |instruction, op| {
        if instruction.is_string_instruction() { select_string(instruction, op) } else { crate::isa::vector::select_movsd(instruction, op) }
    };
    Cmpsd => |instruction, op| {
        if instruction.is_string_instruction() { select_string(instruction, op) } else { crate::isa::vector::select_cmpsd(instruction, op) }
    };
}

//! x87, and the instructions that save and restore the x87, SSE and AVX state.

use crate::exec::fxsave::{select_fxsave, select_mxcsr};
use crate::exec::x87::{select_arithmetic, select_control, select_emms, select_environment, select_wait};
use crate::exec::xsave::select_xsave;
use crate::isa::table;

table! {
    Wait => select_wait;
    Fninit | Fnclex | Fnstcw | Fldcw | Fnstsw | Fneni | Fndisi | Fnsetpm => select_control;
    Fnstenv | Fldenv | Fnsave | Frstor => select_environment;
    Fld | Fst | Fstp | Fstpnce | Fild | Fist | Fistp | Fisttp | Fbld | Fbstp | Fxch | Ffree | Ffreep => select_arithmetic;
    Fld1 | Fldl2t | Fldl2e | Fldpi | Fldlg2 | Fldln2 | Fldz | Fincstp | Fdecstp | Fnop => select_arithmetic;
    Fadd | Faddp | Fiadd | Fsub | Fsubp | Fisub | Fsubr | Fsubrp | Fisubr | Fmul | Fmulp | Fimul => select_arithmetic;
    Fdiv | Fdivp | Fidiv | Fdivr | Fdivrp | Fidivr | Fprem | Fprem1 | Fabs | Fchs | Frndint | Fscale => select_arithmetic;
    Fsqrt | Fxtract | Fcom | Fcomp | Fcompp | Fucom | Fucomp | Fucompp | Ficom | Ficomp | Ftst | Fxam => select_arithmetic;
    Fcomi | Fcomip | Fucomi | Fucomip | Fcmovb | Fcmove | Fcmovbe | Fcmovu | Fcmovnb | Fcmovne => select_arithmetic;
    Fcmovnbe | Fcmovnu | Fsin | Fcos | Fsincos | Fptan | Fpatan | F2xm1 | Fyl2x | Fyl2xp1 => select_arithmetic;
    Emms => select_emms;
    Fxsave | Fxsave64 | Fxrstor | Fxrstor64 => select_fxsave;
    Xsave | Xsave64 | Xsaveopt | Xsaveopt64 | Xrstor | Xrstor64 => select_xsave;
    Ldmxcsr | Stmxcsr | Vldmxcsr | Vstmxcsr => select_mxcsr;
}

//! x87, and the instructions that save and restore the x87, SSE and AVX state.

use crate::exec::fxsave::{select_fxsave, select_mxcsr};
use crate::exec::x87::{select_control, select_emms, select_wait};
use crate::exec::xsave::select_xsave;
use crate::isa::table;

table! {
    Wait => select_wait;
    Fninit | Fnclex | Fnstcw | Fldcw | Fnstsw | Fneni | Fndisi | Fnsetpm => select_control;
    Emms => select_emms;
    Fxsave | Fxsave64 | Fxrstor | Fxrstor64 => select_fxsave;
    Xsave | Xsave64 | Xsaveopt | Xsaveopt64 | Xrstor | Xrstor64 => select_xsave;
    Ldmxcsr | Stmxcsr | Vldmxcsr | Vstmxcsr => select_mxcsr;
}

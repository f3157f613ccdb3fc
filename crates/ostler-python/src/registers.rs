//! The register sets: which struct is which dataclass of `ostler.registers`.

use ostler_engine::regs::{LapicState, MpState, XsaveArea};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

use crate::convert::{Mirror, expect_class, mirror};

/// A class of `ostler.registers`, looked up once.
macro_rules! class {
    ($py:expr, $name:expr) => {{
        static CLASS: pyo3::sync::PyOnceLock<pyo3::Py<pyo3::types::PyType>> = pyo3::sync::PyOnceLock::new();
        CLASS.import($py, "ostler.registers", $name)?
    }};
}
pub(crate) use class;

mirror!(Regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags });
mirror!(Segment { base, limit, selector, kind, present, dpl, db, s, l, g, avl, unusable });
mirror!(DescriptorTable { base, limit });
mirror!(Sregs { cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, cr0, cr2, cr3, cr4, cr8, efer, apic_base, pdptrs });
mirror!(DebugRegs { db, dr6, dr7 });
mirror!(CpuidEntry { function, index, significant_index, eax, ebx, ecx, edx });
mirror!(Events { exception, interrupt, nmi_pending, nmi_masked, interrupt_shadow, sipi_vector });
mirror!(GuestDebug { single_step, software_breakpoints, hardware_breakpoints });
mirror!(PicState {
    last_irr,
    irr,
    imr,
    isr,
    priority_add,
    irq_base,
    read_reg_select,
    poll,
    special_mask,
    init_state,
    auto_eoi,
    rotate_on_auto_eoi,
    special_fully_nested_mode,
    init4,
    elcr,
    elcr_mask,
});
mirror!(IoapicState { base_address, ioregsel, id, irr, redirtbl });
mirror!(PitChannelState {
    count,
    latched_count,
    count_latched,
    status_latched,
    status,
    read_state,
    write_state,
    write_latch,
    rw_mode,
    mode,
    bcd,
    gate,
    count_load_time_ns,
});
mirror!(IrqchipState { pics, ioapic, pit, speaker });

/// The bytes in attribute `name` of `value`.
fn bytes(value: &Bound<'_, PyAny>, name: &str) -> PyResult<PyBackedBytes> {
    Ok(value.getattr(name)?.extract::<PyBackedBytes>()?)
}

impl Mirror for XsaveArea {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        class!(py, "XsaveArea").call1((PyBytes::new(py, &self.bytes),))
    }

    fn from_python(value: &Bound<'_, PyAny>) -> PyResult<Self> {
        expect_class(value, class!(value.py(), "XsaveArea"))?;
        Ok(Self { bytes: bytes(value, "data")?.to_vec() })
    }
}

impl Mirror for LapicState {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        class!(py, "LapicState").call1((PyBytes::new(py, &self.regs),))
    }

    fn from_python(value: &Bound<'_, PyAny>) -> PyResult<Self> {
        expect_class(value, class!(value.py(), "LapicState"))?;
        let regs = bytes(value, "regs")?;
        let wrong = |_| PyTypeError::new_err(format!("LapicState.regs: expected 1024 bytes, got {}", regs.len()));
        Ok(Self { regs: regs[..].try_into().map_err(wrong)? })
    }
}

const MP_STATES: [(MpState, &str); 4] = [
    (MpState::Runnable, "runnable"),
    (MpState::Uninitialized, "uninitialized"),
    (MpState::InitReceived, "init-received"),
    (MpState::Halted, "halted"),
];

impl Mirror for MpState {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let (_, name) = MP_STATES[*self as usize];
        class!(py, "MpState").call1((name,))
    }

    fn from_python(value: &Bound<'_, PyAny>) -> PyResult<Self> {
        expect_class(value, class!(value.py(), "MpState"))?;
        let name: String = value.getattr("value")?.extract()?;
        let known = MP_STATES.iter().find(|(_, known)| *known == name);
        known.map(|(state, _)| *state).ok_or_else(|| PyTypeError::new_err(format!("no MpState {name:?}")))
    }
}

//! `ostler._native`: the engine as Python classes. Conversions and GIL discipline, no logic.

use pyo3::prelude::*;

#[pymodule(gil_used = false)]
mod _native {}

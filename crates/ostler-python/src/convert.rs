//! Rust structs as Python dataclasses and back.
//!
//! The dataclasses live in `ostler.registers`, where users read, copy and compare them. A
//! [`mirror!`] line names the fields once; the compiler sees to it that none is forgotten.

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyTuple, PyType};

/// A value that has a Python form.
pub trait Mirror: Sized {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>>;
    fn from_python(value: &Bound<'_, PyAny>) -> PyResult<Self>;
}

macro_rules! mirror_builtin {
    ($($kind:ty)*) => {$(
        impl Mirror for $kind {
            fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
                Ok(self.into_pyobject(py)?.to_owned().into_any())
            }

            fn from_python(value: &Bound<'_, PyAny>) -> PyResult<Self> {
                value.extract()
            }
        }
    )*};
}

mirror_builtin!(bool u8 u16 u32 u64 i64);

impl<T: Mirror> Mirror for Option<T> {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.as_ref().map_or_else(|| Ok(py.None().into_bound(py)), |value| value.to_python(py))
    }

    fn from_python(value: &Bound<'_, PyAny>) -> PyResult<Self> {
        if value.is_none() { Ok(None) } else { T::from_python(value).map(Some) }
    }
}

impl<A: Mirror, B: Mirror> Mirror for (A, B) {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok((self.0.to_python(py)?, self.1.to_python(py)?).into_pyobject(py)?.into_any())
    }

    fn from_python(value: &Bound<'_, PyAny>) -> PyResult<Self> {
        let (first, second): (Bound<'_, PyAny>, Bound<'_, PyAny>) = value.extract()?;
        Ok((A::from_python(&first)?, B::from_python(&second)?))
    }
}

impl<T: Mirror, const N: usize> Mirror for [T; N] {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let items = self.iter().map(|item| item.to_python(py)).collect::<PyResult<Vec<_>>>()?;
        Ok(PyTuple::new(py, items)?.into_any())
    }

    fn from_python(value: &Bound<'_, PyAny>) -> PyResult<Self> {
        let items = list_from_python(value)?;
        let got = items.len();
        items.try_into().map_err(|_| PyTypeError::new_err(format!("expected {N} items, got {got}")))
    }
}

/// A sequence of mirrored values from any Python iterable.
pub fn list_from_python<T: Mirror>(value: &Bound<'_, PyAny>) -> PyResult<Vec<T>> {
    value.try_iter()?.map(|item| T::from_python(&item?)).collect()
}

/// The field `name` of an instance of `class`; a value that does not fit is named in the error.
pub fn field<T: Mirror>(value: &Bound<'_, PyAny>, class: &str, name: &str) -> PyResult<T> {
    T::from_python(&value.getattr(name)?).map_err(|error| {
        let py = value.py();
        PyErr::from_type(error.get_type(py), format!("{class}.{name}: {}", error.value(py)))
    })
}

/// Fails unless `value` is an instance of `class`.
pub fn expect_class(value: &Bound<'_, PyAny>, class: &Bound<'_, PyType>) -> PyResult<()> {
    if value.is_instance(class)? {
        return Ok(());
    }
    Err(PyTypeError::new_err(format!("expected {}, got {}", class.name()?, value.get_type().name()?)))
}

/// Mirrors a struct as the dataclass of the same name in `ostler.registers`.
macro_rules! mirror {
    ($kind:ident { $($field:ident),* $(,)? }) => {
        impl $crate::convert::Mirror for ostler_engine::regs::$kind {
            fn to_python<'py>(
                &self,
                py: pyo3::Python<'py>,
            ) -> pyo3::PyResult<pyo3::Bound<'py, pyo3::PyAny>> {
                use pyo3::types::PyDictMethods as _;
                let ostler_engine::regs::$kind { $($field),* } = self;
                let fields = pyo3::types::PyDict::new(py);
                $(fields.set_item(stringify!($field), $field.to_python(py)?)?;)*
                let class = $crate::registers::class!(py, stringify!($kind));
                pyo3::types::PyAnyMethods::call(class.as_any(), (), Some(&fields))
            }

            fn from_python(value: &pyo3::Bound<'_, pyo3::PyAny>) -> pyo3::PyResult<Self> {
                let class = $crate::registers::class!(value.py(), stringify!($kind));
                $crate::convert::expect_class(value, class)?;
                Ok(Self { $($field: $crate::convert::field(value, stringify!($kind), stringify!($field))?),* })
            }
        }
    };
}
pub(crate) use mirror;

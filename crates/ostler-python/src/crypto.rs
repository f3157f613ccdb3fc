//! Sector ciphers and Argon2. The work happens detached from the interpreter.

use std::sync::Arc;

use ostler_crypto::{Algorithm, Argon2Kind, Iv, Mode};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// `SectorCipher` of `ostler-crypto`.
#[derive(Debug)]
#[pyclass(frozen, module = "ostler._native")]
pub struct SectorCipher {
    pub cipher: Arc<ostler_crypto::SectorCipher>,
}

#[pymethods]
impl SectorCipher {
    #[new]
    #[pyo3(signature = (algorithm, mode, iv, key, *, essiv_key = None, sector_bytes = 512))]
    fn new(
        algorithm: &str,
        mode: &str,
        iv: &str,
        key: &[u8],
        essiv_key: Option<&[u8]>,
        sector_bytes: usize,
    ) -> PyResult<Self> {
        let algorithm = match algorithm {
            "aes" => Algorithm::Aes,
            "serpent" => Algorithm::Serpent,
            "twofish" => Algorithm::Twofish,
            name => return Err(unknown("cipher", name)),
        };
        let mode = match mode {
            "ecb" => Mode::Ecb,
            "cbc" => Mode::Cbc,
            "xts" => Mode::Xts,
            name => return Err(unknown("mode", name)),
        };
        let iv = match iv {
            "plain" => Iv::Plain,
            "plain64" => Iv::Plain64,
            "essiv" => Iv::Essiv(essiv_key.unwrap_or_default().to_vec()),
            name => return Err(unknown("IV generator", name)),
        };
        let cipher = ostler_crypto::SectorCipher::new(algorithm, mode, &iv, key, sector_bytes);
        Ok(Self { cipher: Arc::new(cipher.map_err(wrong)?) })
    }

    #[pyo3(signature = (data, first, step = 1))]
    fn encrypt<'py>(&self, py: Python<'py>, data: &[u8], first: u64, step: u64) -> PyResult<Bound<'py, PyBytes>> {
        PyBytes::new_with(py, data.len(), |buffer| {
            buffer.copy_from_slice(data);
            py.detach(|| self.cipher.encrypt(first, step, buffer)).map_err(wrong)
        })
    }

    #[pyo3(signature = (data, first, step = 1))]
    fn decrypt<'py>(&self, py: Python<'py>, data: &[u8], first: u64, step: u64) -> PyResult<Bound<'py, PyBytes>> {
        PyBytes::new_with(py, data.len(), |buffer| {
            buffer.copy_from_slice(data);
            py.detach(|| self.cipher.decrypt(first, step, buffer)).map_err(wrong)
        })
    }
}

/// Argon2i or Argon2id.
#[pyfunction]
#[pyo3(signature = (kind, password, salt, *, passes, memory_kib, lanes, length))]
#[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
pub fn argon2<'py>(
    py: Python<'py>,
    kind: &str,
    password: &[u8],
    salt: &[u8],
    passes: u32,
    memory_kib: u32,
    lanes: u32,
    length: usize,
) -> PyResult<Bound<'py, PyBytes>> {
    let kind = match kind {
        "argon2i" => Argon2Kind::I,
        "argon2id" => Argon2Kind::Id,
        name => return Err(unknown("Argon2", name)),
    };
    let key =
        py.detach(|| ostler_crypto::argon2(kind, password, salt, passes, memory_kib, lanes, length)).map_err(wrong)?;
    Ok(PyBytes::new(py, &key))
}

fn unknown(what: &str, name: &str) -> PyErr {
    PyValueError::new_err(format!("there is no {what} {name:?}"))
}

fn wrong(error: ostler_crypto::Error) -> PyErr {
    PyValueError::new_err(error.to_string())
}

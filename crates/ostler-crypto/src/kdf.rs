//! Argon2 (RFC 9106), which LUKS2 makes keys from passphrases with.

use argon2::{Algorithm, Argon2, Params, Version};

use crate::Error;

/// Which of the three, of which LUKS2 has two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Argon2Kind {
    I,
    Id,
}

/// A key of `length` bytes. `memory_kib` is what this takes: who calls has to bound it.
pub fn argon2(
    kind: Argon2Kind,
    password: &[u8],
    salt: &[u8],
    passes: u32,
    memory_kib: u32,
    lanes: u32,
    length: usize,
) -> Result<Vec<u8>, Error> {
    let wrong = |error: argon2::Error| Error::Argon2(error.to_string());
    let params = Params::new(memory_kib, passes, lanes, Some(length)).map_err(wrong)?;
    let algorithm = match kind {
        Argon2Kind::I => Algorithm::Argon2i,
        Argon2Kind::Id => Algorithm::Argon2id,
    };
    let mut key = vec![0; length];
    Argon2::new(algorithm, Version::V0x13, params).hash_password_into(password, salt, &mut key).map_err(wrong)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn argon2id_is_the_reference_implementations() {
        // phc-winner-argon2, test.c: version 0x13, t=2, m=2^16, p=1, "password", "somesalt".
        let key = argon2(Argon2Kind::Id, b"password", b"somesalt", 2, 1 << 16, 1, 32).unwrap();
        assert_eq!(key[..6], [0x09, 0x31, 0x61, 0x15, 0xd5, 0xcf]);
    }

    #[test]
    fn parameters_that_cannot_be_are_an_error() {
        assert!(argon2(Argon2Kind::I, b"p", b"somesalt", 0, 64, 1, 32).is_err());
        assert!(argon2(Argon2Kind::I, b"p", b"salt", 1, 64, 1, 32).is_err());
    }
}

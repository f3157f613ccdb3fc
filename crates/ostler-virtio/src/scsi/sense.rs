//! Why a command failed: sense data of SPC-4, section 4.5, in the fixed format.

use ostler_block::BlockError;

/// Bytes of sense data in the fixed format.
pub const FIXED_BYTES: usize = 18;

/// Sense key, additional sense code and its qualifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    pub key: u8,
    pub code: u8,
    pub qualifier: u8,
}

impl Sense {
    pub const UNRECOVERED_READ: Self = Self::new(0x3, 0x11, 0x00);
    pub const WRITE_ERROR: Self = Self::new(0x3, 0x0c, 0x00);
    pub const INVALID_OPCODE: Self = Self::new(0x5, 0x20, 0x00);
    pub const OUT_OF_RANGE: Self = Self::new(0x5, 0x21, 0x00);
    pub const INVALID_FIELD_IN_CDB: Self = Self::new(0x5, 0x24, 0x00);
    pub const NO_SUCH_UNIT: Self = Self::new(0x5, 0x25, 0x00);
    pub const INVALID_FIELD_IN_LIST: Self = Self::new(0x5, 0x26, 0x00);
    pub const LIST_LENGTH: Self = Self::new(0x5, 0x1a, 0x00);
    pub const NO_MEDIUM: Self = Self::new(0x2, 0x3a, 0x00);
    pub const MEDIUM_CHANGED: Self = Self::new(0x6, 0x28, 0x00);
    pub const REMOVAL_PREVENTED: Self = Self::new(0x5, 0x53, 0x02);
    pub const WRITE_PROTECTED: Self = Self::new(0x7, 0x27, 0x00);

    const fn new(key: u8, code: u8, qualifier: u8) -> Self {
        Self { key, code, qualifier }
    }

    /// The fixed format, about the current command.
    pub fn fixed(self) -> [u8; FIXED_BYTES] {
        let mut bytes = [0; FIXED_BYTES];
        (bytes[0], bytes[2], bytes[7]) = (0x70, self.key, (FIXED_BYTES - 8) as u8);
        (bytes[12], bytes[13]) = (self.code, self.qualifier);
        bytes
    }
}

/// How a command ends that does not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// CHECK CONDITION.
    Check(Sense),
    /// The request's buffer is shorter than what the command transfers.
    Overrun,
}

impl From<Sense> for Failure {
    fn from(sense: Sense) -> Self {
        Self::Check(sense)
    }
}

/// What the block layer could not do; `host` is for failures that are not the guest's.
pub fn of_block(error: &BlockError, host: Sense) -> Failure {
    Failure::Check(match error {
        BlockError::Range { .. } => Sense::OUT_OF_RANGE,
        BlockError::ReadOnly => Sense::WRITE_PROTECTED,
        _ => host,
    })
}

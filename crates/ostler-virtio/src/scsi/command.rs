//! Operation codes, and the fields of the command blocks that transfer blocks.

pub const TEST_UNIT_READY: u8 = 0x00;
pub const REQUEST_SENSE: u8 = 0x03;
pub const READ_6: u8 = 0x08;
pub const WRITE_6: u8 = 0x0a;
pub const INQUIRY: u8 = 0x12;
pub const MODE_SENSE_6: u8 = 0x1a;
pub const START_STOP_UNIT: u8 = 0x1b;
pub const PREVENT_ALLOW: u8 = 0x1e;
pub const READ_CAPACITY_10: u8 = 0x25;
pub const READ_10: u8 = 0x28;
pub const WRITE_10: u8 = 0x2a;
pub const VERIFY_10: u8 = 0x2f;
pub const SYNCHRONIZE_CACHE_10: u8 = 0x35;
pub const WRITE_SAME_10: u8 = 0x41;
pub const UNMAP: u8 = 0x42;
pub const READ_TOC: u8 = 0x43;
pub const GET_CONFIGURATION: u8 = 0x46;
pub const GET_EVENT_STATUS: u8 = 0x4a;
pub const READ_DISC_INFORMATION: u8 = 0x51;
pub const MODE_SENSE_10: u8 = 0x5a;
pub const READ_16: u8 = 0x88;
pub const WRITE_16: u8 = 0x8a;
pub const VERIFY_16: u8 = 0x8f;
pub const SYNCHRONIZE_CACHE_16: u8 = 0x91;
pub const WRITE_SAME_16: u8 = 0x93;
pub const SERVICE_ACTION_IN_16: u8 = 0x9e;
pub const REPORT_LUNS: u8 = 0xa0;
pub const READ_12: u8 = 0xa8;
pub const WRITE_12: u8 = 0xaa;

pub const READ_CAPACITY_16: u8 = 0x10;

/// A run of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    pub first: u64,
    pub count: u64,
}

/// The blocks that a command block names; its operation code says where they are.
pub fn blocks(cdb: &[u8]) -> Blocks {
    match cdb[0] >> 5 {
        0 => {
            let count = if cdb[4] == 0 { 256 } else { u64::from(cdb[4]) };
            Blocks { first: be(&cdb[1..4]) & 0x1f_ffff, count }
        }
        4 => Blocks { first: be(&cdb[2..10]), count: be(&cdb[10..14]) },
        5 => Blocks { first: be(&cdb[2..6]), count: be(&cdb[6..10]) },
        _ => Blocks { first: be(&cdb[2..6]), count: be(&cdb[7..9]) },
    }
}

/// A big-endian number of up to 8 bytes.
pub fn be(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_where_each_size_of_command_has_them() {
        let mut cdb = [0; 32];
        cdb[..6].copy_from_slice(&[READ_6, 0xff, 2, 3, 0, 0]);
        assert_eq!(blocks(&cdb), Blocks { first: 0x1f_0203, count: 256 });
        cdb[..10].copy_from_slice(&[READ_10, 0, 1, 2, 3, 4, 0xee, 5, 6, 0xee]);
        assert_eq!(blocks(&cdb), Blocks { first: 0x0102_0304, count: 0x0506 });
        cdb[..12].copy_from_slice(&[READ_12, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0xee, 0xee]);
        assert_eq!(blocks(&cdb), Blocks { first: 0x0102_0304, count: 0x0506_0708 });
        cdb[..16].copy_from_slice(&[READ_16, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0xee, 0xee]);
        assert_eq!(blocks(&cdb), Blocks { first: 0x0102_0304_0506_0708, count: 0x090a_0b0c });
    }
}

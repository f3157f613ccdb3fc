//! Memory type range registers (SDM vol. 3, 12.11). They are remembered; all memory is write-back.

/// Variable ranges.
const VARIABLE: usize = 8;
/// Variable ranges, fixed ranges, write-combining.
const CAPABILITIES: u64 = VARIABLE as u64 | 1 << 8 | 1 << 10;

const MTRR_CAP: u32 = 0xfe;
const PHYS_BASE0: u32 = 0x200;
const PHYS_LAST: u32 = PHYS_BASE0 + 2 * VARIABLE as u32 - 1;
const DEF_TYPE: u32 = 0x2ff;
/// The fixed ranges: 64 KiB, two of 16 KiB, eight of 4 KiB.
const FIXED: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];

/// Enabled, default type write-back: what firmware leaves.
const DEF_TYPE_RESET: u64 = 1 << 11 | 6;

#[derive(Clone, Copy, Debug)]
pub struct Mtrrs {
    def_type: u64,
    fixed: [u64; FIXED.len()],
    /// Base and mask by turns.
    variable: [u64; 2 * VARIABLE],
}

impl Default for Mtrrs {
    fn default() -> Self {
        Self { def_type: DEF_TYPE_RESET, fixed: [0; FIXED.len()], variable: [0; 2 * VARIABLE] }
    }
}

fn is_type(kind: u64) -> bool {
    matches!(kind, 0 | 1 | 4 | 5 | 6)
}

pub fn saved() -> impl Iterator<Item = u32> {
    FIXED.into_iter().chain(PHYS_BASE0..=PHYS_LAST).chain([DEF_TYPE])
}

impl Mtrrs {
    /// `None` when the MSR is not one of these.
    pub fn read(&self, msr: u32) -> Option<u64> {
        match msr {
            MTRR_CAP => Some(CAPABILITIES),
            DEF_TYPE => Some(self.def_type),
            PHYS_BASE0..=PHYS_LAST => Some(self.variable[(msr - PHYS_BASE0) as usize]),
            _ => FIXED.iter().position(|fixed| *fixed == msr).map(|index| self.fixed[index]),
        }
    }

    /// False when the MSR is not one of these, or does not take the value.
    pub fn write(&mut self, msr: u32, value: u64) -> bool {
        match msr {
            DEF_TYPE if value & !0xcff == 0 && is_type(value & 0xff) => self.def_type = value,
            PHYS_BASE0..=PHYS_LAST => {
                let is_mask = msr % 2 == 1;
                if value >> 52 != 0 || !is_mask && !is_type(value & 0xff) {
                    return false;
                }
                self.variable[(msr - PHYS_BASE0) as usize] = value;
            }
            _ => {
                let index = FIXED.iter().position(|fixed| *fixed == msr);
                let valid = value.to_le_bytes().iter().all(|kind| is_type(u64::from(*kind)));
                let Some(index) = index.filter(|_| valid) else { return false };
                self.fixed[index] = value;
            }
        }
        true
    }
}

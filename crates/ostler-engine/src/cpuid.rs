//! What a user may have of CPUID: no feature that the accelerator does not offer.

use crate::regs::CpuidEntry;

/// Leaf numbers whose registers are sets of features.
pub mod leaf {
    pub const FEATURES: u32 = 1;
    pub const STRUCTURED: u32 = 7;
    pub const XSAVE: u32 = 0xd;
    pub const KVM_FEATURES: u32 = 0x4000_0001;
    pub const EXTENDED_FEATURES: u32 = 0x8000_0001;
    pub const POWER: u32 = 0x8000_0007;
    pub const SIZES: u32 = 0x8000_0008;
    pub const AMD_FEATURES_2: u32 = 0x8000_0021;
}

/// `wanted` without the features that `offered` lacks. What is no feature stays.
pub fn limited_to(wanted: &[CpuidEntry], offered: &[CpuidEntry]) -> Vec<CpuidEntry> {
    wanted.iter().map(|row| limit(row, offered)).collect()
}

fn limit(wanted: &CpuidEntry, offered: &[CpuidEntry]) -> CpuidEntry {
    let mut row = *wanted;
    let same = |ours: &&CpuidEntry| {
        ours.function == wanted.function && (!ours.significant_index || ours.index == wanted.index)
    };
    let ours = offered.iter().find(same).copied().unwrap_or_default();
    match (wanted.function, wanted.index) {
        (leaf::FEATURES | leaf::EXTENDED_FEATURES, _) => {
            row.ecx &= ours.ecx;
            row.edx &= ours.edx;
        }
        (leaf::STRUCTURED, index) => {
            row.ebx &= ours.ebx;
            row.ecx &= ours.ecx;
            row.edx &= ours.edx;
            if index > 0 {
                row.eax &= ours.eax;
            }
        }
        (leaf::XSAVE, 0 | 1) | (leaf::KVM_FEATURES | leaf::AMD_FEATURES_2, _) => row.eax &= ours.eax,
        (leaf::POWER, _) => row.edx &= ours.edx,
        (leaf::SIZES, _) => row.ebx &= ours.ebx,
        _ => {}
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(ecx: u32, edx: u32) -> CpuidEntry {
        CpuidEntry { function: leaf::FEATURES, ecx, edx, ..Default::default() }
    }

    #[test]
    fn feature_that_is_not_offered_is_taken_away_and_what_is_no_feature_stays() {
        let brand = CpuidEntry { function: 0x8000_0002, eax: 7, ..Default::default() };
        let got = limited_to(&[features(0b110, 0b11), brand], &[features(0b010, 0b01)]);
        assert_eq!(got, [features(0b010, 0b01), brand]);
    }

    #[test]
    fn row_that_is_not_offered_loses_its_features() {
        let wanted = |index| CpuidEntry {
            function: leaf::STRUCTURED,
            index,
            significant_index: true,
            eax: 1,
            ebx: 7,
            ..Default::default()
        };
        let got = limited_to(&[wanted(0), wanted(1)], &[]);
        // EAX of subleaf 0 is the number of the last one.
        assert_eq!([(got[0].eax, got[0].ebx), (got[1].eax, got[1].ebx)], [(1, 0), (0, 0)]);
    }
}

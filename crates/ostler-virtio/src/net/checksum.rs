//! The Internet checksum (RFC 1071).

/// The sum of `bytes` as 16-bit big-endian words, folded, added to `sum`.
pub fn sum(bytes: &[u8], sum: u16) -> u16 {
    // Any order of bytes gives the same sum but for a swap of its halves (RFC 1071, section 2B), so
    // eight of the host's bytes are added at a time.
    let mut total = u128::from(sum.to_be());
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        total += u128::from(u64::from_ne_bytes(chunk.try_into().unwrap_or_default()));
    }
    let mut last = [0; 8];
    last[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    total += u128::from(u64::from_ne_bytes(last));
    u16::from_be(fold(total))
}

/// The sum of two sums.
pub fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

fn fold(mut total: u128) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// Computes the checksum that a sender left half done: `frame` from `start` on, with the
/// pseudo-header's sum in the field at `start + offset`, where the result goes.
///
/// False when the field is not inside the frame.
pub fn complete(frame: &mut [u8], start: usize, offset: usize) -> bool {
    if start + offset + 2 > frame.len() {
        return false;
    }
    let checksum = !sum(&frame[start..], 0);
    // UDP's zero says that there is none; both zeros count the same (RFC 768).
    let checksum = if checksum == 0 { 0xffff } else { checksum };
    frame[start + offset..start + offset + 2].copy_from_slice(&checksum.to_be_bytes());
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As RFC 1071 defines it, word by word.
    fn by_definition(bytes: &[u8]) -> u16 {
        let mut total = 0u32;
        for pair in bytes.chunks(2) {
            total += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    #[test]
    fn sum_of_any_length_is_that_of_the_definition() {
        let bytes: Vec<u8> = (0..97u32).map(|n| (n * 91 + 200) as u8).collect();
        for len in 0..bytes.len() {
            assert_eq!(sum(&bytes[..len], 0), by_definition(&bytes[..len]), "{len} bytes");
        }
        assert_eq!(sum(&[0xff; 64], 0x1234), 0x1234);
    }

    #[test]
    fn completed_checksum_verifies() {
        let mut frame: Vec<u8> = (0..61).collect();
        assert!(complete(&mut frame, 20, 16));
        // With the field in, all but the former content of the field sums to all ones.
        let rest = sum(&frame[20..], 0);
        assert_eq!(add(rest, u16::from_be_bytes([36, 37])), 0xffff);
        assert!(!complete(&mut frame, 50, 10));
    }
}

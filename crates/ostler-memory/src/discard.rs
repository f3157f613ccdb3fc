//! Giving the host memory back that the guest does not need the contents of.

use std::os::fd::AsRawFd;

use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::PAGE_BYTES;
use crate::ram::{GuestMap, Region};

/// Gives back the whole pages in `len` bytes from `gpa` on; what is not memory is passed over. They
/// read as zeros afterwards and take host memory again when touched. Returns the bytes given back,
/// whether or not the host had memory behind them.
pub fn discard(map: &GuestMap, gpa: u64, len: u64) -> u64 {
    let Some(end) = gpa.checked_add(len) else { return 0 };
    let mut at = gpa.next_multiple_of(PAGE_BYTES);
    let end = end & !(PAGE_BYTES - 1);
    let mut given = 0;
    while at < end {
        let Some(region) = map.find_region(GuestAddress(at)) else {
            at = next_region(map, at).unwrap_or(end);
            continue;
        };
        let piece_end = end.min(region.start_addr().0 + region.len());
        let offset = at - region.start_addr().0;
        if discard_in(region, offset as usize, (piece_end - at) as usize) {
            given += piece_end - at;
        }
        at = piece_end;
    }
    given
}

/// Where the first region after `gpa` begins.
fn next_region(map: &GuestMap, gpa: u64) -> Option<u64> {
    map.iter().map(|region| region.start_addr().0).filter(|start| *start > gpa).min()
}

fn discard_in(region: &Region, offset: usize, len: usize) -> bool {
    let done = match region.file_offset() {
        None => {
            // SAFETY: page-aligned and inside the region's private mapping, which `region` keeps; no
            // Rust reference to guest memory exists that the change to zeros could surprise.
            unsafe { libc::madvise(region.as_ptr().add(offset).cast(), len, libc::MADV_DONTNEED) }
        }
        Some(file) => {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            let start = file.start() + offset as u64;
            // SAFETY: a system call on a descriptor that is ours.
            unsafe { libc::fallocate(file.file().as_raw_fd(), mode, start as libc::off_t, len as libc::off_t) }
        }
    };
    (**region).bitmap().mark_dirty(offset, len);
    done == 0
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::FromRawFd;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::{Backing, GuestRam, SlotConfig};

    const PAGE: usize = PAGE_BYTES as usize;

    fn ram(slots: &[(u64, u64)]) -> GuestRam {
        let ram = GuestRam::new();
        for (slot, &(gpa, size)) in (0..).zip(slots) {
            ram.set_slot(SlotConfig { slot, gpa, size, log_dirty: true, ..SlotConfig::default() }).expect("a slot");
            ram.write(gpa, &vec![0xaa; size as usize]).expect("memory");
        }
        ram
    }

    fn byte(ram: &GuestRam, gpa: u64) -> u8 {
        let mut byte = [0];
        ram.read(gpa, &mut byte).expect("memory");
        byte[0]
    }

    #[test]
    fn discard_zeroes_whole_pages_only_and_marks_them_dirty() {
        let ram = ram(&[(0, 16 * PAGE_BYTES)]);
        ram.take_dirty_log(0).expect("a log");
        assert_eq!(discard(&ram.map(), PAGE_BYTES - 1, 2 * PAGE_BYTES + 1), 2 * PAGE_BYTES);
        assert_eq!([0, 1, 2, 3].map(|page| byte(&ram, page * PAGE_BYTES)), [0xaa, 0, 0, 0xaa]);
        assert_eq!(ram.take_dirty_log(0).expect("a log")[0], 0b110);
    }

    #[test]
    fn discard_passes_over_holes_and_past_the_end() {
        let ram = ram(&[(0, PAGE_BYTES), (4 * PAGE_BYTES, PAGE_BYTES)]);
        assert_eq!(discard(&ram.map(), 0, 1 << 40), 2 * PAGE_BYTES);
        assert_eq!(byte(&ram, 4 * PAGE_BYTES), 0);
        assert_eq!(discard(&ram.map(), u64::MAX - 4096, 8192), 0);
        assert_eq!(discard(&ram.map(), 2 * PAGE_BYTES, PAGE_BYTES), 0);
    }

    #[test]
    fn discard_of_shared_memory_punches_a_hole_into_the_file() {
        // SAFETY: the name is a C string.
        let fd = unsafe { libc::memfd_create(c"ram".as_ptr(), 0) };
        assert!(fd >= 0);
        // SAFETY: a descriptor that nobody else owns.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(8 * PAGE_BYTES).expect("room");
        let ram = GuestRam::new();
        let backing = Backing::Shared { file: file.try_clone().expect("a duplicate"), offset: 4 * PAGE_BYTES };
        ram.set_slot(SlotConfig { size: 4 * PAGE_BYTES, backing, ..SlotConfig::default() }).expect("a slot");
        ram.write(0, &[1; 4 * PAGE]).expect("memory");
        let before = file.metadata().expect("metadata").blocks();
        assert_eq!(discard(&ram.map(), PAGE_BYTES, 2 * PAGE_BYTES), 2 * PAGE_BYTES);
        assert_eq!(before - file.metadata().expect("metadata").blocks(), 2 * PAGE_BYTES / 512);
        assert_eq!([0, 1, 3].map(|page| byte(&ram, page * PAGE_BYTES)), [1, 0, 1]);
    }
}

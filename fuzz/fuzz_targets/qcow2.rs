//! A qcow2 image whose tables are the input: L1, L2, refcounts, compressed clusters.
//!
//! Run with `cargo fuzz run qcow2`. The first 16 bytes choose the layout and what is done; the rest
//! is the file. Nothing may panic, hang, or take memory that the file does not justify. Headers,
//! snapshot tables and bitmap directories are parsed in Python: `python -m fuzz.images`.

#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use ostler_block::qcow2::exchange::Change;
use ostler_block::qcow2::{Layout, Options};
use ostler_block::storage::MemoryStorage;
use ostler_block::{Disk, Qcow2};

const FILE_BYTES: u64 = 4 << 20;
const DISK_BYTES: u64 = 1 << 20;

fn layout(choice: &[u8]) -> Layout {
    let extended_l2 = choice[0] & 1 != 0;
    let cluster_bits = if extended_l2 { 14 } else { 9 + u32::from(choice[1] % 8) };
    let mut layout = Layout {
        version: 2 + u32::from(choice[0] >> 1 & 1),
        cluster_bits,
        refcount_order: u32::from(choice[2] % 8),
        size: DISK_BYTES,
        l1_offset: u64::from(choice[3] % 4) << cluster_bits,
        refcount_table_offset: u64::from(choice[4] % 4) << cluster_bits,
        refcount_table_clusters: u32::from(choice[5] % 3),
        extended_l2,
        zstd: choice[0] & 4 != 0,
        lazy_refcounts: choice[0] & 8 != 0,
        ..Layout::default()
    };
    layout.l1_entries = layout.l1_needed() as u32 + u32::from(choice[6] % 2);
    layout
}

fn use_disk(image: &Qcow2, choice: &[u8]) -> ostler_block::Result<()> {
    let offset = (u64::from(choice[7]) << 12 | u64::from(choice[8])) % (DISK_BYTES - 8192);
    let mut bytes = [0; 8192];
    image.read_bytes(&mut bytes, offset)?;
    image.extent_at(0, DISK_BYTES)?;
    if choice[9] & 1 != 0 {
        image.write_bytes(&bytes[..usize::from(choice[10]) * 32], offset)?;
        image.write_zeroes(offset, 4096, choice[9] & 2 != 0)?;
        image.discard(offset / 2, 65536)?;
        image.flush()?;
    }
    if choice[9] & 4 != 0 {
        let (l1, snapshots) = (image.l1(), (0, 0));
        let at = image.allocate(8 * l1.len() as u64)?;
        image.exchange(&Change { l1: None, size: DISK_BYTES, copy_at: Some(at), gone: &[], snapshots, freed: &[] })?;
        image.exchange(&Change { l1: Some(&l1), size: DISK_BYTES, copy_at: None, gone: &l1, snapshots, freed: &[] })?;
        image.refresh_flags()?;
    }
    image.read_bytes(&mut bytes, offset)
}

fuzz_target!(|data: &[u8]| {
    let Some((choice, file)) = data.split_first_chunk::<16>() else { return };
    let storage = Arc::new(MemoryStorage::new(file.to_vec(), FILE_BYTES));
    let options = Options { l2_cache_bytes: 4096, ..Options::default() };
    let Ok(image) = Qcow2::open(storage, None, None, layout(choice), options) else { return };
    let _refused = use_disk(&image, choice);
    if let Ok(report) = image.check(&[(0, 1)], &[(512, 100)]) {
        let runs: Vec<_> = report.differences.iter().take(64).map(|run| (run.first, run.count, run.references)).collect();
        let _refused = image.set_refcounts(&runs);
        let _refused = image.rebuild_refcounts(&[], &[], (choice[11] < 9).then_some(choice[11].into()));
    }
    let _refused = image.settle();
});

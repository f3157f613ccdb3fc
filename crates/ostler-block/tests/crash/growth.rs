//! A file that several make longer at once.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use ostler_block::pieces::{Sink, Source};
use ostler_block::storage::{FileStorage, MemoryStorage, Run, Storage};

use crate::fragile::{empty, open};

const FAR: u64 = 8 << 20;

/// Whoever asks for its length is told one that another's write changes at once.
#[derive(Debug)]
struct Busy {
    below: MemoryStorage,
    /// At which question, from now on.
    at: AtomicI64,
}

impl Storage for Busy {
    fn len(&self) -> io::Result<u64> {
        let len = self.below.len()?;
        if self.at.fetch_sub(1, Ordering::SeqCst) == 0 {
            self.below.write_bytes(b"another's", FAR)?;
        }
        Ok(len)
    }

    fn read(&self, into: &Sink<'_>, offset: u64) -> io::Result<()> {
        self.below.read(into, offset)
    }

    fn write(&self, from: &Source<'_>, offset: u64) -> io::Result<()> {
        self.below.write(from, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.below.flush()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.below.set_len(len)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.below.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.below.write_zeroes(offset, len, unmap)
    }

    fn run_at(&self, offset: u64, limit: u64) -> io::Result<Run> {
        self.below.run_at(offset, limit)
    }

    fn grows_with_zeroes(&self) -> bool {
        true
    }
}

#[test]
fn clusters_that_are_mapped_cut_off_nothing_that_is_written_behind_them() {
    for (subclusters, at) in [false, true].into_iter().flat_map(|subclusters| (0..4).map(move |at| (subclusters, at))) {
        let (layout, bytes) = empty(14, 4, subclusters);
        let storage = Arc::new(Busy { below: MemoryStorage::new(bytes, 1 << 30), at: AtomicI64::new(-1) });
        let image = open(&layout, storage.clone());
        storage.at.store(at, Ordering::SeqCst);
        image.preallocate(0, 1 << 20).expect("clusters");
        let mut found = [0; 9];
        storage.below.read_bytes(&mut found, FAR).expect("what was written");
        let was_asked = storage.at.load(Ordering::SeqCst) < 0;
        assert!(was_asked || at > 0);
        assert_eq!(&found, if was_asked { b"another's" } else { &[0; 9] });
    }
}

#[test]
fn zeroes_at_the_end_of_a_file_cut_off_nothing_that_is_written_behind_them() {
    const PIECE: u64 = 4096;
    const PIECES: u64 = 4000;
    let path = std::env::temp_dir().join(format!("ostler-growth-{}", std::process::id()));
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).expect("a file");
    std::fs::remove_file(&path).expect("removed");
    let storage = FileStorage::new(file).expect("a file");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for piece in (0..PIECES).filter(|piece| piece % 2 == 1) {
                storage.write_bytes(&[7; PIECE as usize], piece * PIECE).expect("a write");
            }
        });
        scope.spawn(|| {
            for piece in (0..PIECES).filter(|piece| piece % 2 == 0) {
                // Mostly where the other is, and somewhat ahead.
                let at = (storage.len().expect("a length") / PIECE / 2 * 2).max(piece);
                storage.write_zeroes(at * PIECE, PIECE, piece % 4 == 0).expect("zeroes");
            }
        });
    });
    let mut all = vec![0; (PIECES * PIECE) as usize];
    storage.read_bytes(&mut all, 0).expect("what was written");
    for (number, piece) in all.chunks(PIECE as usize).enumerate().filter(|(number, _)| number % 2 == 1) {
        assert!(piece.iter().all(|byte| *byte == 7), "piece {number}");
    }
}

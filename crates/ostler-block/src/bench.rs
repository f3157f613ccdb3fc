//! Many requests of one size, to be timed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::Result;
use crate::buffer::Buffer;
use crate::disk::Disk;

/// What is done how often.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub count: u64,
    pub bytes: u64,
    pub offset: u64,
    /// From one request to the next; they begin anew at the end of the disk.
    pub step: u64,
    /// A write of this byte; without, a read.
    pub pattern: Option<u8>,
    /// After how many requests there is a flush; 0 for none.
    pub flush_every: u64,
    /// Requests under way at once.
    pub threads: usize,
}

/// Makes all requests.
pub fn run(disk: &dyn Disk, load: &Load) -> Result<()> {
    let next = AtomicU64::new(0);
    let failure = Mutex::new(None);
    let work = || {
        if let Err(error) = requests(disk, load, &next) {
            failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
    };
    thread::scope(|scope| {
        for _ in 1..load.threads.max(1) {
            scope.spawn(work);
        }
        work();
    });
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

fn requests(disk: &dyn Disk, load: &Load, next: &AtomicU64) -> Result<()> {
    let mut bytes = Buffer::new(load.bytes as usize);
    bytes.fill(load.pattern.unwrap_or(0));
    let places = (disk.size().saturating_sub(load.offset + load.bytes) / load.step.max(1)) + 1;
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= load.count {
            return Ok(());
        }
        let offset = load.offset + number % places * load.step;
        match load.pattern {
            Some(_) => disk.write_bytes(&bytes, offset)?,
            None => disk.read_bytes(&mut bytes, offset)?,
        }
        if load.flush_every != 0 && number % load.flush_every == load.flush_every - 1 {
            disk.flush()?;
        }
    }
}

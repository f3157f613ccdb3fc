//! Compressed clusters: raw deflate or zstd, anywhere in the file.

use std::collections::VecDeque;
use std::sync::Arc;

use flate2::{Decompress, FlushDecompress};
use zstd::zstd_safe::{DCtx, InBuffer, OutBuffer};

use super::Qcow2;
use super::tables::{Mapping, Tables};
use crate::pieces::{Sink, Source};
use crate::{BlockError, Result};

const KEPT: usize = 8;

/// The clusters unpacked last, by L2 entry.
#[derive(Debug, Default)]
pub struct Unpacked(VecDeque<(u64, Arc<Vec<u8>>)>);

impl Qcow2 {
    pub(super) fn forget_unpacked(&self) {
        self.unpacked.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).0.clear();
    }

    pub(super) fn read_compressed(&self, mapping: &Mapping, into: &Sink<'_>, offset: u64) -> Result<()> {
        let bytes = self.unpack(mapping.host)?;
        let within = (offset & self.shape.in_cluster()) as usize;
        into.copy_from(&bytes[within..within + into.len()]);
        Ok(())
    }

    fn unpack(&self, entry: u64) -> Result<Arc<Vec<u8>>> {
        let recent = || self.unpacked.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some((_, bytes)) = recent().0.iter().find(|(word, _)| *word == entry) {
            return Ok(Arc::clone(bytes));
        }
        let layout = self.layout();
        let at = layout.compressed(entry);
        let mut packed = vec![0; at.bytes as usize];
        self.storage.read_bytes(&mut packed, at.offset)?;
        let mut bytes = vec![0; layout.cluster() as usize];
        let done = if layout.zstd { unzstd(&packed, &mut bytes) } else { inflate(&packed, &mut bytes) };
        if !done {
            return Err(BlockError::damaged(format!("the compressed cluster at {:#x} does not unpack", at.offset)));
        }
        let bytes = Arc::new(bytes);
        let mut kept = recent();
        kept.0.push_back((entry, Arc::clone(&bytes)));
        if kept.0.len() > KEPT {
            kept.0.pop_front();
        }
        Ok(bytes)
    }

    /// Stores one guest cluster, at `offset`, in its packed form; plain if that is not smaller.
    pub(super) fn write_packed(&self, cluster: &[u8], packed: &[u8], offset: u64) -> Result<()> {
        let layout = self.layout();
        if layout.external_data {
            return Err(BlockError::Refused("an external data file holds nothing compressed; leave -c out".into()));
        }
        if packed.len() as u64 >= layout.cluster() || packed.is_empty() {
            let len = (layout.size - offset).min(cluster.len() as u64);
            return self.write_entered(&Source::new(&cluster[..len as usize]), offset);
        }
        self.mark_dirty()?;
        let number = offset >> layout.cluster_bits;
        let at = {
            let mut tables = self.await_landing(self.tables(), number, number + 1);
            tables.make_table_writable(self.storage.as_ref(), number)?;
            let at = self.place_packed(&mut tables, packed.len() as u64)?;
            tables.in_flight.push((number, number + 1));
            at
        };
        let written = self.storage.write_bytes(packed, at);
        let mut tables = self.tables();
        tables.in_flight.retain(|&(first, _)| first != number);
        self.landed.notify_all();
        // A failure leaves the space counted until the next check: it may be shared by now.
        written?;
        let old = tables.entry(self.storage.as_ref(), number)?;
        self.note_crowding(&tables);
        tables.unlink(old, false)?;
        let word = layout.compressed_entry(at, packed.len() as u64);
        tables.set_entry(self.storage.as_ref(), number, super::entry::Entry { word, bitmap: 0 })
    }

    /// Room for `len` bytes, after the last compressed cluster if it has some: its offset.
    fn place_packed(&self, tables: &mut Tables, len: u64) -> Result<u64> {
        let (storage, layout) = (self.storage.as_ref(), tables.layout);
        let used = tables.packed_end & layout.in_cluster();
        let room = if used == 0 { 0 } else { layout.cluster() - used };
        let current = tables.packed_end >> layout.cluster_bits;
        let can_share = room != 0 && tables.refcounts.get(storage, current)? < layout.max_refcount();
        let at = if can_share && room >= len {
            tables.refcounts.add(storage, current, 1, 1)?;
            tables.packed_end
        } else {
            let (fresh, _one) = tables.refcounts.allocate(storage, 1)?;
            tables.check_data_place(fresh << layout.cluster_bits, layout.cluster())?;
            if can_share && fresh == current + 1 {
                tables.refcounts.add(storage, current, 1, 1)?;
                tables.packed_end
            } else {
                fresh << layout.cluster_bits
            }
        };
        tables.packed_end = at + len;
        Ok(at)
    }
}

/// Whether raw deflate filled `bytes`. What follows the stream is padding.
fn inflate(packed: &[u8], bytes: &mut [u8]) -> bool {
    let mut stream = Decompress::new(false);
    let wanted = bytes.len() as u64;
    stream.decompress(packed, bytes, FlushDecompress::Finish).is_ok_and(|_| stream.total_out() == wanted)
        || stream.total_out() == wanted
}

/// Whether a zstd frame filled `bytes`. What follows the frame is padding.
fn unzstd(packed: &[u8], bytes: &mut [u8]) -> bool {
    let mut context = DCtx::create();
    let wanted = bytes.len();
    let (mut input, mut output) = (InBuffer::around(packed), OutBuffer::around(bytes));
    while output.pos() < wanted {
        let before = (input.pos(), output.pos());
        if context.decompress_stream(&mut output, &mut input).is_err() || before == (input.pos(), output.pos()) {
            return false;
        }
    }
    true
}

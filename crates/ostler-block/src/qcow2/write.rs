//! Writes: in place where a cluster is mapped and owned, else into new clusters.

use std::sync::MutexGuard;
use std::sync::atomic::Ordering;

use super::Qcow2;
use super::entry::{Entry, units};
use super::layout::{COPIED, SUBCLUSTERS};
use super::tables::Tables;
use crate::Result;
use crate::buffer::{ALIGN, Scratch};
use crate::copy::RESERVED_BYTES;
use crate::disk::Content;
use crate::pieces::{Sink, Source};

/// The most clusters of one allocation; a request that needs more makes several.
const MAX_CLUSTERS: u64 = 1024;
/// What is read in vain rather than in two calls.
const READ_OVER: usize = 16 << 10;

/// Guest clusters on their way into host clusters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flight {
    /// Guest clusters.
    pub(super) first: u64,
    pub(super) count: u64,
    /// Offset of the first host cluster.
    pub(super) host: u64,
    /// The host clusters have never been written: they are zero.
    is_fresh: bool,
    /// The host clusters were allocated for this; they are freed if it fails.
    pub(super) is_new: bool,
    /// The subclusters that are written, where entries are extended: first and end.
    pub(super) touched: (u64, u64),
}

/// What the guest sees on both sides of a request.
struct Around {
    bytes: Scratch,
    /// The length of the first part, and of the last.
    before: usize,
    after: usize,
}

impl Around {
    fn parts(&self) -> (&[u8], &[u8]) {
        (&self.bytes[..self.before], &self.bytes[self.bytes.len() - self.after..])
    }
}

impl Qcow2 {
    /// Writes with the gate entered and the range checked.
    pub(super) fn write_entered(&self, from: &Source<'_>, offset: u64) -> Result<()> {
        let mut done = 0;
        while done < from.len() {
            let at = offset + done as u64;
            let rest = from.slice(done, from.len() - done);
            done += match self.write_in_place(&rest, at)? {
                0 => self.write_new(&rest, at)?,
                written => written,
            };
        }
        Ok(())
    }

    /// Maps the clusters of a range without writing them: new ones read as zeroes where the storage
    /// grows so, and as what the file has there otherwise.
    pub fn preallocate(&self, offset: u64, len: u64) -> Result<()> {
        self.check_write()?;
        let end = offset.saturating_add(len).min(self.layout().size);
        let cluster = self.layout().cluster();
        let mut at = offset;
        while at < end {
            self.relieve()?;
            let _gate = self.enter();
            self.mark_dirty()?;
            let step = match self.take_off(at, end - at)? {
                Some(flight) => {
                    self.begin_clusters(&flight)?;
                    self.land(&flight, Ok(0))?;
                    flight.count * cluster
                }
                None => cluster,
            };
            at = (at & !(cluster - 1)) + step;
        }
        self.is_unsettled.store(true, Ordering::Release);
        Ok(())
    }

    /// Has the file reach as far as clusters that are mapped without being written. Others write behind them meanwhile,
    /// so that no length is set: the last bytes, which are nobody's yet, become zeroes.
    pub(super) fn begin_clusters(&self, flight: &Flight) -> Result<()> {
        let end = flight.host + (flight.count << self.shape.cluster_bits);
        let file_end = self.storage.len()?;
        if self.shape.external_data || file_end >= end || !flight.is_new && file_end > flight.host {
            return Ok(());
        }
        let last = self.shape.cluster().min(ALIGN as u64);
        Ok(self.storage.write_zeroes(end - last, last, true)?)
    }

    /// How much from the start is mapped and owned, and was written.
    fn write_in_place(&self, from: &Source<'_>, offset: u64) -> Result<usize> {
        let mapping = {
            let mut tables = self.tables();
            let mapping = tables.lookup(self.storage.as_ref(), offset, from.len() as u64)?;
            if mapping.content != Content::Data || !mapping.is_owned {
                return Ok(0);
            }
            tables.check_data_place(mapping.host, mapping.len)?;
            mapping
        };
        self.check_end(mapping.host, mapping.len)?;
        self.data.write(&from.slice(0, mapping.len as usize), mapping.host)?;
        Ok(mapping.len as usize)
    }

    /// Allocates for the start of `from` and writes it: how much. Zero when the mapping changed
    /// meanwhile, so that it has to be looked up again.
    fn write_new(&self, from: &Source<'_>, offset: u64) -> Result<usize> {
        self.mark_dirty()?;
        let Some(flight) = self.take_off(offset, from.len() as u64)? else { return Ok(0) };
        let extended = self.shape.extended_l2;
        let filled = if extended { self.fill_units(&flight, from, offset) } else { self.fill(&flight, from, offset) };
        self.land(&flight, filled)
    }

    /// Claims host clusters for the guest clusters of a range, as many as are in a row.
    pub(super) fn take_off(&self, offset: u64, len: u64) -> Result<Option<Flight>> {
        let storage = self.storage.as_ref();
        let mut tables = self.tables();
        let bits = tables.layout.cluster_bits;
        let (first, end) = (offset >> bits, ((offset + len - 1) >> bits) + 1);
        let end = end.min(first + MAX_CLUSTERS);
        tables = self.await_landing(tables, first, end);
        let wanted = self.count_needing(&mut tables, first, end, offset)?;
        if wanted == 0 {
            return Ok(None);
        }
        for cluster in first..first + wanted {
            tables.make_table_writable(storage, cluster)?;
        }
        let mut flight = match self.reusable(&mut tables, first)? {
            Some(host) => Flight { first, count: 1, host, is_fresh: false, is_new: false, touched: (0, 0) },
            None => self.claim(&mut tables, first, wanted)?,
        };
        flight.touched = tables.layout.units_of(offset, len);
        tables.in_flight.push((first, first + flight.count));
        Ok(Some(flight))
    }

    /// Waits until nobody allocates guest clusters `first..end`.
    pub(super) fn await_landing<'t>(
        &'t self,
        mut tables: MutexGuard<'t, Tables>,
        first: u64,
        end: u64,
    ) -> MutexGuard<'t, Tables> {
        while tables.in_flight.iter().any(|&(theirs, theirs_end)| theirs < end && first < theirs_end) {
            tables = self.landed.wait(tables).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        tables
    }

    /// How many clusters from `first` on cannot be written in place.
    fn count_needing(&self, tables: &mut Tables, first: u64, end: u64, offset: u64) -> Result<u64> {
        if tables.layout.extended_l2 {
            let mapping = tables.lookup(self.storage.as_ref(), offset, 1)?;
            return Ok(u64::from(mapping.content != Content::Data || !mapping.is_owned));
        }
        let mut count = 0;
        for cluster in first..end {
            let entry = tables.entry(self.storage.as_ref(), cluster)?;
            let in_place = entry.content(&tables.layout, 0)? == Content::Data && entry.is_owned();
            let reusable = entry.is_owned() && entry.host(&tables.layout)?.is_some();
            if in_place || reusable && count != 0 {
                break;
            }
            count += 1;
            if reusable {
                break;
            }
        }
        Ok(count)
    }

    /// The host cluster that guest cluster `first` owns already, without its content being read.
    fn reusable(&self, tables: &mut Tables, first: u64) -> Result<Option<u64>> {
        let entry = tables.entry(self.storage.as_ref(), first)?;
        let host = if entry.is_owned() { entry.host(&tables.layout)? } else { None };
        if let Some(host) = host {
            tables.check_data_place(host, tables.layout.cluster())?;
        }
        Ok(host)
    }

    fn claim(&self, tables: &mut Tables, first: u64, wanted: u64) -> Result<Flight> {
        let bits = tables.layout.cluster_bits;
        if tables.layout.external_data {
            let host = first << bits;
            return Ok(Flight { first, count: wanted, host, is_fresh: false, is_new: false, touched: (0, 0) });
        }
        let fresh_from = tables.refcounts.fresh_from;
        let (cluster, count) = tables.refcounts.allocate(self.storage.as_ref(), wanted)?;
        let host = cluster << bits;
        tables.check_data_place(host, count << bits)?;
        let is_fresh = host >= fresh_from && self.data.grows_with_zeroes();
        Ok(Flight { first, count, host, is_fresh, is_new: true, touched: (0, 0) })
    }

    /// Writes whole clusters: the request's bytes, and around them what was there before.
    pub(super) fn fill(&self, flight: &Flight, from: &Source<'_>, offset: u64) -> Result<usize> {
        let bits = self.shape.cluster_bits;
        let (start, end) = (flight.first << bits, (flight.first + flight.count) << bits);
        let len = (end - offset).min(from.len() as u64);
        let around = self.around(flight, (start, end), (offset, offset + len))?;
        let host = flight.host + (offset - start) - around.before as u64;
        if flight.is_fresh && len >= RESERVED_BYTES {
            self.data.reserve(host, len)?;
        }
        let (before, after) = around.parts();
        self.data.write(&from.slice(0, len as usize).between(before, after), host)?;
        Ok(len as usize)
    }

    /// What the guest sees from `start` to `offset` and from `stop` to `end`, or nothing where the new
    /// cluster has it already: zeroes.
    fn around(&self, flight: &Flight, (start, end): (u64, u64), (offset, stop): (u64, u64)) -> Result<Around> {
        let before = if self.has_old(flight, start, offset - start)? { (offset - start) as usize } else { 0 };
        let after = if self.has_old(flight, stop, end - stop)? { (end - stop) as usize } else { 0 };
        let between = (stop - offset) as usize;
        if before != 0 && after != 0 && between <= READ_OVER {
            let mut bytes = Scratch::new(before + between + after);
            self.read_entered(&Sink::new(&mut bytes), start)?;
            return Ok(Around { bytes, before, after });
        }
        let mut bytes = Scratch::new(before + after);
        let (head, tail) = bytes.split_at_mut(before);
        self.read_entered(&Sink::new(head), start)?;
        self.read_entered(&Sink::new(tail), stop)?;
        Ok(Around { bytes, before, after })
    }

    /// Whether what the guest sees in a range has to be written to a new cluster.
    fn has_old(&self, flight: &Flight, offset: u64, len: u64) -> Result<bool> {
        Ok(len != 0 && !(flight.is_fresh && self.is_zero(offset, len)?))
    }

    /// Writes the subclusters of one cluster that the request touches.
    fn fill_units(&self, flight: &Flight, from: &Source<'_>, offset: u64) -> Result<usize> {
        let layout = &self.shape;
        let unit = 1 << layout.unit_bits();
        let start = flight.first << layout.cluster_bits;
        let len = (start + layout.cluster() - offset).min(from.len() as u64);
        if flight.is_new {
            self.move_other_units(flight, offset, offset + len)?;
        }
        let (low, high) = (offset / unit * unit, (offset + len).next_multiple_of(unit));
        let around = self.around(flight, (low, high), (offset, offset + len))?;
        let host = flight.host + (offset - start) - around.before as u64;
        let (before, after) = around.parts();
        self.data.write(&from.slice(0, len as usize).between(before, after), host)?;
        Ok(len as usize)
    }

    /// Copies the subclusters that the old cluster holds, and the request does not touch, to the new.
    pub(super) fn move_other_units(&self, flight: &Flight, from: u64, end: u64) -> Result<()> {
        let layout = &self.shape;
        let old = self.tables().entry(self.storage.as_ref(), flight.first)?;
        let (unit, start) = (1 << layout.unit_bits(), flight.first << layout.cluster_bits);
        let mut bytes = vec![0; unit as usize];
        for number in 0..SUBCLUSTERS {
            let at = start + number * unit;
            let is_kept = at + unit <= from || at >= end;
            let content = old.content(layout, number)?;
            if is_kept && matches!(content, Content::Data | Content::Compressed) {
                self.read_entered(&Sink::new(&mut bytes), at)?;
                self.data.write_bytes(&bytes, flight.host + number * unit)?;
            }
        }
        Ok(())
    }

    /// Links the clusters of a flight that was filled, or frees them.
    pub(super) fn land(&self, flight: &Flight, filled: Result<usize>) -> Result<usize> {
        let mut tables = self.tables();
        let done = match filled {
            Ok(len) => self.link_all(&mut tables, flight).map(|()| len),
            Err(error) => self.give_up(&mut tables, flight).and(Err(error)),
        };
        tables.in_flight.retain(|&(first, _)| first != flight.first);
        self.landed.notify_all();
        self.note_crowding(&tables);
        done
    }

    fn give_up(&self, tables: &mut Tables, flight: &Flight) -> Result<()> {
        if !flight.is_new {
            return Ok(());
        }
        let cluster = flight.host >> tables.layout.cluster_bits;
        tables.refcounts.add(self.storage.as_ref(), cluster, flight.count, -1)
    }

    fn link_all(&self, tables: &mut Tables, flight: &Flight) -> Result<()> {
        for number in 0..flight.count {
            let cluster = flight.first + number;
            let old = tables.entry(self.storage.as_ref(), cluster)?;
            let host = flight.host + (number << tables.layout.cluster_bits);
            let new = if tables.layout.extended_l2 { with_units(old, host, flight.touched) } else { Entry::data(host) };
            if flight.is_new {
                tables.unlink(old, false)?;
            }
            tables.set_entry(self.storage.as_ref(), cluster, new)?;
        }
        Ok(())
    }
}

/// The entry of a cluster at `host` after its subclusters `first..end` were written.
fn with_units(old: Entry, host: u64, (first, end): (u64, u64)) -> Entry {
    let written = units(first, end);
    let kept = if old.is_compressed() { units(0, SUBCLUSTERS) } else { old.bitmap };
    Entry { word: host | COPIED, bitmap: (kept | written) & !(written << SUBCLUSTERS) }
}

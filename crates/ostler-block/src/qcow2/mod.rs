//! qcow2 (QEMU's `docs/interop/qcow2`): the guest's bytes found through two levels of tables.
//!
//! A request looks its range up ([`tables`]), reads or writes clusters in place, and has the others
//! allocated ([`write`]). Changed tables stay in memory until [`flush`] writes them in the order
//! that keeps the image sound whenever the process or the host dies.
//!
//! Locks, in this order: the *gate*, shared by requests and held alone while tables are written or
//! walked as a whole; then the *tables*, held for look-ups and changes in memory, not while data
//! moves. A cluster that is being allocated is in `Tables::in_flight`; who needs it waits.
//!
//! A cluster that lost its last user is free only after the tables that say so are stable: until
//! then it is in `Tables::unlinked`, so no write can reach data that a crash would bring back.

mod cache;
pub mod check;
mod compressed;
mod discard;
mod entry;
pub mod exchange;
mod flush;
mod l2;
pub mod layout;
mod legacy_aes;
mod pull;
pub mod refcounts;
mod tables;
mod tree;
mod write;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use ostler_crypto::SectorCipher;

use self::compressed::Unpacked;
pub use self::layout::Layout;
use self::tables::{Mapping, Tables};
use crate::dirty::DirtyMap;
use crate::disk::{Content, Disk, Extent, check_range};
use crate::pieces::{Sink, Source};
use crate::storage::Storage;
use crate::{BlockError, Result};

/// Runs shorter than this are not looked at for holes of the file below.
const HOLE_BYTES: u64 = 64 << 10;

/// How an image is opened.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub readonly: bool,
    /// Bytes of L2 tables that are kept in memory.
    pub l2_cache_bytes: u64,
    /// Flushes do not wait for stable storage.
    pub is_unsafe: bool,
    /// Space of discarded clusters is given back to the host.
    pub punch_holes: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { readonly: false, l2_cache_bytes: 32 << 20, is_unsafe: false, punch_holes: true }
    }
}

/// An open qcow2 image.
#[derive(Debug)]
pub struct Qcow2 {
    storage: Arc<dyn Storage>,
    /// Where the guest's clusters are: the same, decrypted or not, or the external data file.
    data: Arc<dyn Storage>,
    /// Of the data clusters, where the disk numbers their sectors (`crypt_method` 1).
    legacy_cipher: Option<Arc<SectorCipher>>,
    backing: Option<Arc<dyn Disk>>,
    options: Options,
    /// The layout as it was opened. What no change of the image changes is known without the tables.
    shape: Layout,
    gate: RwLock<()>,
    tables: Mutex<Tables>,
    /// Told when an allocation is no longer in flight.
    landed: Condvar,
    /// Data was written since the last flush.
    is_unsettled: AtomicBool,
    /// Bytes of the disk, as the layout has them: requests need not wait for the tables to know.
    size: AtomicU64,
    /// The caches hold more than they should.
    is_crowded: AtomicBool,
    /// The file has at least begun every cluster below.
    known_end: AtomicU64,
    unpacked: Mutex<Unpacked>,
    /// What is written is marked in each of them.
    recorders: RwLock<Vec<Arc<DirtyMap>>>,
    is_recorded: AtomicBool,
}

impl Qcow2 {
    /// Opens what `layout` says is in `storage`; `data` is the external data file, or
    /// what decrypts the clusters in `storage`, if it has one.
    pub fn open(
        storage: Arc<dyn Storage>,
        data: Option<Arc<dyn Storage>>,
        backing: Option<Arc<dyn Disk>>,
        layout: Layout,
        options: Options,
    ) -> Result<Self> {
        layout.check()?;
        if layout.external_data && data.is_none() {
            return Err(BlockError::Refused("the external data file is missing; give it with data_file".into()));
        }
        let tables = Tables::open(&layout, storage.as_ref(), options.l2_cache_bytes)?;
        Ok(Self {
            data: data.unwrap_or_else(|| Arc::clone(&storage)),
            storage,
            legacy_cipher: None,
            backing,
            options,
            shape: layout,
            gate: RwLock::new(()),
            tables: Mutex::new(tables),
            landed: Condvar::new(),
            is_unsettled: AtomicBool::new(false),
            size: AtomicU64::new(layout.size),
            is_crowded: AtomicBool::new(false),
            known_end: AtomicU64::new(if layout.external_data { u64::MAX } else { 0 }),
            unpacked: Mutex::new(Unpacked::default()),
            recorders: RwLock::default(),
            is_recorded: AtomicBool::new(false),
        })
    }

    /// Marks what is written from now on in these maps, and in no others.
    pub fn record(&self, maps: Vec<Arc<DirtyMap>>) {
        let _alone = self.close_gate();
        self.is_recorded.store(!maps.is_empty(), Ordering::Release);
        *self.recorders.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = maps;
    }

    fn mark_written(&self, offset: u64, len: u64) {
        if self.is_recorded.load(Ordering::Acquire) {
            let maps = self.recorders.read().unwrap_or_else(|poisoned| poisoned.into_inner());
            maps.iter().for_each(|map| map.mark(offset, len));
        }
    }

    pub fn layout(&self) -> Layout {
        self.tables().layout
    }

    /// Held by requests: no table is walked or written meanwhile.
    fn enter(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Held alone: no request is under way.
    fn close_gate(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn lookup(&self, offset: u64, limit: u64) -> Result<Mapping> {
        self.tables().lookup(self.storage.as_ref(), offset, limit)
    }

    fn check_write(&self) -> Result<()> {
        if self.options.readonly { Err(BlockError::ReadOnly) } else { Ok(()) }
    }

    /// Reads with the gate entered; what is after the end of the disk is zero.
    fn read_entered(&self, into: &Sink<'_>, offset: u64) -> Result<()> {
        let mut done = 0;
        while done < into.len() {
            let at = offset + done as u64;
            let mapping = self.lookup(at, (into.len() - done) as u64)?;
            let piece = into.slice(done, mapping.len as usize);
            self.read_run(&mapping, &piece, at)?;
            done += mapping.len as usize;
        }
        Ok(())
    }

    fn read_run(&self, mapping: &Mapping, into: &Sink<'_>, offset: u64) -> Result<()> {
        match mapping.content {
            Content::Data => {
                self.check_end(mapping.host, mapping.len)?;
                match &self.legacy_cipher {
                    Some(cipher) => self.read_legacy(cipher, into, mapping.host, offset),
                    None => Ok(self.data.read(into, mapping.host)?),
                }
            }
            Content::Compressed => self.read_compressed(mapping, into, offset),
            Content::Unallocated => self.read_backing(into, offset),
            Content::Zero => {
                into.fill_zero();
                Ok(())
            }
        }
    }

    /// Fails where the file ends before a cluster begins: what was there is lost, not zero.
    fn check_end(&self, host: u64, len: u64) -> Result<()> {
        let end = host.saturating_add(len);
        if end <= self.known_end.load(Ordering::Relaxed) {
            return Ok(());
        }
        let file_end = self.storage.len()?;
        let known_end = file_end.next_multiple_of(self.shape.cluster());
        self.known_end.store(known_end, Ordering::Relaxed);
        if end <= known_end { Ok(()) } else { Err(BlockError::CutOff { host: end, file_end }) }
    }

    fn read_backing(&self, into: &Sink<'_>, offset: u64) -> Result<()> {
        let Some(backing) = &self.backing else {
            into.fill_zero();
            return Ok(());
        };
        let there = backing.size().saturating_sub(offset).min(into.len() as u64) as usize;
        if there != 0 {
            backing.read(&into.slice(0, there), offset)?;
        }
        into.slice(there, into.len() - there).fill_zero();
        Ok(())
    }

    /// Whether the whole range is known to be zero; the gate is entered.
    fn is_zero(&self, offset: u64, len: u64) -> Result<bool> {
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let (is_zero, run) = self.zero_entered(at, end - at)?;
            if !is_zero || run == 0 {
                return Ok(false);
            }
            at += run;
        }
        Ok(true)
    }

    fn zero_entered(&self, offset: u64, limit: u64) -> Result<(bool, u64)> {
        let mapping = self.lookup(offset, limit)?;
        match (mapping.content, &self.backing) {
            (Content::Zero, _) | (Content::Unallocated, None) => Ok((true, mapping.len)),
            (Content::Unallocated, Some(backing)) => {
                let there = backing.size().saturating_sub(offset).min(mapping.len);
                if there == 0 { Ok((true, mapping.len)) } else { backing.zero_at(offset, there) }
            }
            (Content::Data, _) if mapping.len >= HOLE_BYTES && self.legacy_cipher.is_none() => {
                self.check_end(mapping.host, mapping.len)?;
                // Space that was reserved and never written is a hole of the file.
                let run = self.data.run_at(mapping.host, mapping.len)?;
                Ok((!run.is_data && self.data.grows_with_zeroes(), run.len.max(1)))
            }
            _ => Ok((false, mapping.len)),
        }
    }
}

impl Disk for Qcow2 {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read(&self, into: &Sink<'_>, offset: u64) -> Result<()> {
        let _gate = self.enter();
        check_range(offset, into.len() as u64, self.size())?;
        self.read_entered(into, offset)
    }

    fn write(&self, from: &Source<'_>, offset: u64) -> Result<()> {
        self.check_write()?;
        self.relieve()?;
        let _gate = self.enter();
        check_range(offset, from.len() as u64, self.size())?;
        self.mark_written(offset, from.len() as u64);
        self.is_unsettled.store(true, Ordering::Release);
        self.write_entered(from, offset)
    }

    fn flush(&self) -> Result<()> {
        self.flush_all()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.check_write()?;
        self.relieve()?;
        let _gate = self.enter();
        check_range(offset, len, self.size())?;
        self.mark_written(offset, len);
        self.discard_entered(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.check_write()?;
        self.relieve()?;
        let _gate = self.enter();
        check_range(offset, len, self.size())?;
        self.mark_written(offset, len);
        self.is_unsettled.store(true, Ordering::Release);
        self.zero_range(offset, len, unmap)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        let _gate = self.enter();
        check_range(offset, limit, self.size())?;
        let mut run = self.lookup(offset, limit)?.extent();
        while run.len < limit {
            let next = self.lookup(offset + run.len, limit - run.len)?.extent();
            let continues = run.host_offset.map(|host| host + run.len) == next.host_offset;
            if next.content != run.content || !continues && next.content == Content::Data {
                break;
            }
            run.len += next.len;
        }
        Ok(run)
    }

    fn zero_at(&self, offset: u64, limit: u64) -> Result<(bool, u64)> {
        let _gate = self.enter();
        self.zero_entered(offset, limit)
    }

    fn write_compressed(&self, cluster: &[u8], packed: &[u8], offset: u64) -> Result<()> {
        self.check_write()?;
        self.relieve()?;
        let _gate = self.enter();
        check_range(offset, 1, self.size())?;
        self.mark_written(offset, cluster.len() as u64);
        self.is_unsettled.store(true, Ordering::Release);
        self.write_packed(cluster, packed, offset)
    }
}

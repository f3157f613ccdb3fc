//! KVM's memory slots follow the slots of `GuestRam`.
//!
//! KVM limits a slot to 2^31 - 1 pages, so ours may be several of its: *pieces*. Numbers of pieces are
//! our own, reused when a slot goes.

use std::collections::BTreeMap;
use std::sync::Arc;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use ostler_engine::AccelError;
use ostler_engine::accel::Result;
use ostler_memory::{GuestMap, GuestRam, PAGE_BYTES, SlotView};

use crate::dirty;

/// 4 TiB; a multiple of 64 pages, so that the words of a piece's dirty log are words of the slot's.
const PIECE_BYTES: u64 = 1 << 42;

/// What KVM was told.
#[derive(Debug, Default)]
pub struct Slots {
    known: BTreeMap<u32, Known>,
    /// Numbers of pieces that are free, below `next`.
    free: Vec<u32>,
    next: u32,
    /// Keeps the host memory mapped that KVM uses.
    map: Option<Arc<GuestMap>>,
}

#[derive(Debug)]
struct Known {
    view: SlotView,
    pieces: Vec<u32>,
}

/// A part of a slot that is one slot of KVM.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    pub number: u32,
    pub first_page: u64,
    pub pages: u64,
}

fn pieces(view: &SlotView, numbers: &[u32]) -> impl Iterator<Item = Piece> {
    let size = view.size;
    (0..size).step_by(PIECE_BYTES as usize).zip(numbers.to_vec()).map(move |(offset, number)| Piece {
        number,
        first_page: offset / PAGE_BYTES,
        pages: (size - offset).min(PIECE_BYTES) / PAGE_BYTES,
    })
}

impl Slots {
    /// Tells KVM of every change since the last time.
    pub fn follow(&mut self, vm: &VmFd, ram: &GuestRam, limit: u32, dirty: &dirty::Log) -> Result<()> {
        let (map, views) = ram.layout();
        let gone: Vec<_> = self
            .known
            .iter()
            .filter(|(number, known)| !views.iter().any(|view| view.slot == **number && same_place(view, &known.view)))
            .map(|(number, _)| *number)
            .collect();
        for number in gone {
            self.remove(vm, number)?;
        }
        for view in &views {
            self.set(vm, view, limit, ram, dirty)?;
        }
        self.map = Some(map);
        Ok(())
    }

    /// The slots that are logged, and their pieces.
    pub fn logged(&self) -> impl Iterator<Item = (u32, Vec<Piece>)> {
        let logged = self.known.iter().filter(|(_, known)| known.view.log_dirty);
        logged.map(|(number, known)| (*number, pieces(&known.view, &known.pieces).collect()))
    }

    /// The slot that KVM's slot `number` is a piece of, and the page of it that `page` is.
    pub fn page_of(&self, number: u32, page: u64) -> Option<(u32, u64)> {
        let known = self.known.iter().find(|(_, known)| known.pieces.contains(&number));
        let (slot, known) = known?;
        let mut pieces = pieces(&known.view, &known.pieces);
        pieces.find(|piece| piece.number == number).map(|piece| (*slot, piece.first_page + page))
    }

    fn set(&mut self, vm: &VmFd, view: &SlotView, limit: u32, ram: &GuestRam, dirty: &dirty::Log) -> Result<()> {
        let numbers = match self.known.get(&view.slot) {
            Some(known) if known.view == *view => return Ok(()),
            Some(known) => known.pieces.clone(),
            None => self.take_numbers(view, limit)?,
        };
        let was_logged = self.known.get(&view.slot).is_some_and(|known| known.view.log_dirty);
        let all: Vec<_> = pieces(view, &numbers).collect();
        if was_logged && !view.log_dirty {
            // What the log still holds goes with it.
            dirty.collect(vm, view.slot, &all, ram)?;
        }
        self.known.insert(view.slot, Known { view: *view, pieces: numbers });
        for piece in all {
            set_region(vm, view, piece, piece.pages)?;
        }
        Ok(())
    }

    fn remove(&mut self, vm: &VmFd, number: u32) -> Result<()> {
        let Some(known) = self.known.remove(&number) else { return Ok(()) };
        for piece in pieces(&known.view, &known.pieces) {
            // A piece that KVM refused is not there to be removed.
            let _refused = set_region(vm, &known.view, piece, 0);
        }
        self.free.extend(known.pieces);
        Ok(())
    }

    fn take_numbers(&mut self, view: &SlotView, limit: u32) -> Result<Vec<u32>> {
        let wanted = view.size.div_ceil(PIECE_BYTES);
        let left = u64::from(limit - self.next) + self.free.len() as u64;
        if wanted > left {
            return Err(AccelError::Unavailable(format!(
                "slot {}: KVM has {limit} memory slots, and all are in use; make them fewer and larger",
                view.slot
            )));
        }
        let take = |_| {
            self.free.pop().unwrap_or_else(|| {
                self.next += 1;
                self.next - 1
            })
        };
        Ok((0..wanted).map(take).collect())
    }
}

/// Whether a change from one to the other is one of flags that KVM allows.
fn same_place(new: &SlotView, old: &SlotView) -> bool {
    SlotView { log_dirty: old.log_dirty, ..*new } == *old
}

fn set_region(vm: &VmFd, view: &SlotView, piece: Piece, pages: u64) -> Result<()> {
    let flag = |on: bool, flag: u32| if on { flag } else { 0 };
    let offset = piece.first_page * PAGE_BYTES;
    let region = kvm_userspace_memory_region {
        slot: piece.number,
        flags: flag(view.read_only, KVM_MEM_READONLY) | flag(view.log_dirty, KVM_MEM_LOG_DIRTY_PAGES),
        guest_phys_addr: view.gpa + offset,
        memory_size: pages * PAGE_BYTES,
        userspace_addr: view.host_address + offset,
    };
    // SAFETY: the range is mapped for as long as `Slots::map` holds the map, which is replaced only
    // after KVM was told of the change.
    unsafe { vm.set_user_memory_region(region) }.map_err(crate::ioctl::host("KVM_SET_USER_MEMORY_REGION"))
}

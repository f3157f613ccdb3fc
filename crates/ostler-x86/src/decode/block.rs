//! Decoded blocks, kept by physical address so that they survive remapping.
//!
//! A block is a run of instructions within one page, up to the first that may jump. Look-up has
//! two stages: [`CodeCache::jump`], by linear address, good until translations change; and the
//! pages, by physical address and code width, good until the bytes change. An instruction that
//! crosses into the next page is a block of its own and remembers both pages.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use ostler_memory::{GuestRam, LINE_BYTES, PAGE_BYTES, WatchedWrite, WriteWatch};

use crate::decode::op::Op;
use crate::jit::links::Translated;
use crate::mmu::page_set::PageSet;
use crate::mmu::physical::PAGE_MASK;

/// Instructions per block at most: bounds the time between two looks at the signals.
pub const MAX_OPS: usize = 64;
const JUMPS: usize = 8192;
const FETCHES: usize = 256;
/// Blocks kept before everything is dropped: bounds what a guest can make us remember.
const MAX_BLOCKS: usize = 100_000;
/// Instructions decoded before the blocks that are of no use any more are looked for: about 1 MiB.
const CROWD: usize = 16 * 1024;

/// A decoded block.
#[derive(Debug)]
pub struct Block {
    pub ops: Box<[Op]>,
    /// What they were decoded from.
    pub bytes: Box<[u8]>,
    /// Physical address of the first byte.
    pub gpa: u64,
    /// Bytes.
    pub len: u16,
    pub bitness: u8,
    /// The page of the rest of an instruction that crosses a page boundary.
    pub second_page: Option<u64>,
    pub translated: Translated,
}

#[derive(Clone, Copy, Debug)]
struct Jump {
    linear: u64,
    tag: u64,
    block: *const Block,
}

/// A translated page of code.
#[derive(Clone, Copy, Debug, Default)]
struct Fetch {
    page: u64,
    tag: u64,
    gpa: u64,
    global: bool,
}

/// What tells the jumps and fetches of now from others that have the same linear address.
#[derive(Clone, Copy, Debug, Default)]
struct Tags {
    /// Of the address space, and of pages that every address space has; see [`Tags::update`].
    current: u64,
    global: u64,
    /// Counts what makes every jump and fetch stale.
    generation: u64,
    /// The TLB's tag of the address space.
    space: u64,
    /// Code width and privilege.
    mode: u64,
}

/// Bits of a tag below those of the address space.
const MODE_BITS: u32 = 8;
/// Bits of an address space's tag.
const SPACE_BITS: u32 = 12;

impl Tags {
    fn update(&mut self) {
        let with = |space: u64| self.generation << (SPACE_BITS + MODE_BITS) | space << MODE_BITS | self.mode;
        // The TLB has no tag 0.
        (self.current, self.global) = (with(self.space), with(0));
    }

    fn forget(&mut self) {
        self.generation += 1;
        self.update();
    }

    fn of(&self, global: bool) -> u64 {
        if global { self.global } else { self.current }
    }

    #[inline(always)]
    fn has(&self, tag: u64) -> bool {
        tag == self.current || tag == self.global
    }
}

/// Multiplies: the keys are page numbers and offsets, which a guest gains nothing by colliding.
#[derive(Clone, Copy, Debug, Default)]
struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }
}

type AddressMap<K, V> = HashMap<K, V, BuildHasherDefault<AddressHasher>>;
/// The blocks that begin in one page, by offset and code width.
type PageBlocks = AddressMap<u32, Box<Block>>;

/// The blocks of one vCPU.
#[derive(Debug)]
pub struct CodeCache {
    jumps: Box<[Jump; JUMPS]>,
    fetches: Box<[Fetch; FETCHES]>,
    pages: AddressMap<u64, PageBlocks>,
    blocks: usize,
    /// Instructions decoded since [`CodeCache::shed`].
    fresh_ops: usize,
    /// How many crossing instructions have their rest in a page; none for those that are not there.
    second_pages: AddressMap<u64, u32>,
    /// Pages that lost their last block.
    emptied: AddressMap<u64, ()>,
    /// Pages that are watched for this vCPU.
    held: AddressMap<u64, ()>,
    /// Blocks that were invalidated but may still be running: they must not move.
    #[expect(clippy::vec_box, reason = "jumps and the running block point to them")]
    retired: Vec<Box<Block>>,
    tags: Tags,
    /// The pages whose translations were used for fetches since all were last forgotten, so that INVLPG of a page
    /// of data leaves the blocks findable.
    pub fetched: PageSet,
    watch: Arc<WriteWatch>,
    seen: u64,
}

// SAFETY: the pointers in `jumps` point into `pages` and `retired`, which move with it.
unsafe impl Send for CodeCache {}

fn key(gpa: u64, bitness: u32) -> u32 {
    (gpa % PAGE_BYTES) as u32 | bitness << 12
}

impl CodeCache {
    pub fn new(ram: &GuestRam) -> Self {
        Self {
            jumps: Box::new([Jump { linear: 0, tag: 0, block: std::ptr::null() }; JUMPS]),
            fetches: Box::new([Fetch::default(); FETCHES]),
            pages: AddressMap::default(),
            blocks: 0,
            fresh_ops: 0,
            second_pages: AddressMap::default(),
            emptied: AddressMap::default(),
            held: AddressMap::default(),
            retired: Vec::new(),
            tags: Tags { generation: 1, ..Tags::default() },
            fetched: PageSet::default(),
            watch: Arc::clone(ram.watch()),
            seen: ram.watch().sequence(),
        }
    }

    /// Says how code is decoded and with which rights it is fetched from now on.
    pub fn set_mode(&mut self, bitness: u32, user: bool) {
        self.tags.mode = u64::from(bitness) | u64::from(user);
        self.tags.update();
    }

    /// Says which address space is fetched from, by the TLB's tag of it.
    pub fn set_space(&mut self, space: u64) {
        self.tags.space = space;
        self.tags.update();
    }

    /// Translations changed: linear addresses have to be looked up anew.
    pub fn forget_translations(&mut self) {
        self.fetched = PageSet::default();
        self.tags.forget();
    }

    /// The translation of the page of `linear` changed.
    pub fn forget_translation(&mut self, linear: u64) {
        if self.fetched.may_cover(linear) {
            self.forget_translations();
        }
    }

    /// The block at `linear`, if it was run since translations last changed.
    #[inline(always)]
    pub fn jump(&self, linear: u64) -> Option<*const Block> {
        let jump = &self.jumps[jump_slot(linear)];
        (jump.linear == linear && self.tags.has(jump.tag)).then_some(jump.block)
    }

    /// Whether the block at `linear` that [`CodeCache::jump`] finds is there in every address space.
    #[inline(always)]
    pub fn is_in_every_space(&self, linear: u64) -> bool {
        let jump = &self.jumps[jump_slot(linear)];
        jump.linear == linear && jump.tag == self.tags.global
    }

    /// `global`: every address space has this code at `linear`.
    pub fn remember_jump(&mut self, linear: u64, block: *const Block, global: bool) {
        self.jumps[jump_slot(linear)] = Jump { linear, tag: self.tags.of(global), block };
    }

    /// The physical page of the code page of `linear` and whether it is global, if known.
    pub fn fetch(&self, linear: u64) -> Option<(u64, bool)> {
        [self.tags.current, self.tags.global].into_iter().find_map(|tag| {
            let fetch = &self.fetches[fetch_slot(linear, tag)];
            (fetch.page == linear & PAGE_MASK && fetch.tag == tag).then_some((fetch.gpa, fetch.global))
        })
    }

    pub fn remember_fetch(&mut self, linear: u64, gpa: u64, global: bool) {
        let tag = self.tags.of(global);
        self.fetches[fetch_slot(linear, tag)] = Fetch { page: linear & PAGE_MASK, tag, gpa: gpa & PAGE_MASK, global };
    }

    /// The block at `gpa` decoded for `bitness`.
    pub fn find(&self, gpa: u64, bitness: u32) -> Option<&Block> {
        self.pages.get(&(gpa & PAGE_MASK))?.get(&key(gpa, bitness)).map(Box::as_ref)
    }

    pub fn insert(&mut self, block: Block) -> *const Block {
        if self.blocks >= MAX_BLOCKS {
            self.forget_all();
        }
        let (gpa, bitness) = (block.gpa, u32::from(block.bitness));
        self.fresh_ops += block.ops.len();
        if let Some(second) = block.second_page {
            *self.second_pages.entry(second).or_default() += 1;
        }
        let block = Box::new(block);
        let pointer: *const Block = &raw const *block;
        if let Some(old) = self.pages.entry(gpa & PAGE_MASK).or_default().insert(key(gpa, bitness), block) {
            old.second_page.into_iter().for_each(|page| self.leave_second_page(page));
            self.retired.push(old);
            self.tags.forget();
        } else {
            self.blocks += 1;
        }
        pointer
    }

    /// Another whenever a block that was found by its linear address may no longer be there.
    #[inline(always)]
    pub fn generation(&self) -> u64 {
        self.tags.current >> MODE_BITS
    }

    /// Whether of two [`CodeCache::generation`]s the address space is all that differs: what every space has is still
    /// where it was.
    pub fn differ_by_space(one: u64, other: u64) -> bool {
        one >> SPACE_BITS == other >> SPACE_BITS
    }

    /// Every block.
    pub fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.pages.values().flat_map(|blocks| blocks.values().map(Box::as_ref))
    }

    /// The dropped blocks that [`CodeCache::bury`] would free.
    pub fn retired(&self) -> &[Box<Block>] {
        &self.retired
    }

    /// Whether bytes of cached code may have changed since [`CodeCache::take_changes`].
    #[inline(always)]
    pub fn has_changes(&self) -> bool {
        self.watch.sequence() != self.seen
    }

    /// Drops the blocks whose bytes changed.
    pub fn take_changes(&mut self) {
        let (seen, writes) = self.watch.since(self.seen);
        self.seen = seen;
        match writes {
            Some(writes) => writes.iter().for_each(|write| self.forget_range(write)),
            None => self.forget_all(),
        }
    }

    fn forget_range(&mut self, write: &WatchedWrite) {
        let first = (write.gpa & PAGE_MASK).saturating_sub(PAGE_BYTES);
        let last = write.gpa + (write.len - 1);
        let mut page = first;
        while page <= last {
            self.forget_in_page(page, write);
            page += PAGE_BYTES;
        }
    }

    fn forget_in_page(&mut self, page: u64, write: &WatchedWrite) {
        let Some(blocks) = self.pages.get_mut(&page) else { return };
        let dead: Vec<u32> = blocks.iter().filter(|(_, block)| block.overlaps(write)).map(|(key, _)| *key).collect();
        if dead.is_empty() {
            return;
        }
        self.blocks -= dead.len();
        let dropped: Vec<_> = dead.iter().filter_map(|key| blocks.remove(key)).collect();
        if blocks.is_empty() {
            self.pages.remove(&page);
            self.emptied.insert(page, ());
        }
        dropped.iter().filter_map(|block| block.second_page).for_each(|page| self.leave_second_page(page));
        self.retired.extend(dropped);
        self.tags.forget();
    }

    fn leave_second_page(&mut self, page: u64) {
        let Some(count) = self.second_pages.get_mut(&page) else { return };
        *count -= 1;
        if *count == 0 {
            self.second_pages.remove(&page);
            self.emptied.insert(page, ());
        }
    }

    /// Notes that what was to be decoded in `page` came to nothing.
    pub fn abandon(&mut self, page: u64) {
        self.emptied.insert(page, ());
    }

    /// Whether [`CodeCache::take_emptied`] may have something.
    pub fn has_emptied(&self) -> bool {
        !self.emptied.is_empty()
    }

    /// Notes that `page` is watched for this vCPU; false when it was already.
    pub fn hold(&mut self, page: u64) -> bool {
        self.held.insert(page, ()).is_none()
    }

    /// The pages that need not be watched for this vCPU any more.
    pub fn take_emptied(&mut self) -> Vec<u64> {
        let mut emptied: Vec<u64> = std::mem::take(&mut self.emptied).into_keys().collect();
        emptied.retain(|page| {
            let in_use = self.pages.contains_key(page) || self.second_pages.contains_key(page);
            !in_use && self.held.remove(page).is_some()
        });
        emptied
    }

    /// Whether it is time for [`CodeCache::shed`].
    pub fn is_crowded(&self) -> bool {
        self.fresh_ops >= CROWD
    }

    /// Drops the blocks of 64-bit code that were neither translated nor run since the last time: much of a guest's code
    /// runs once, when it starts. Only where executions are counted, which is where code is translated.
    pub fn shed(&mut self) {
        let before = self.retired.len();
        let (retired, emptied) = (&mut self.retired, &mut self.emptied);
        self.pages.retain(|page, blocks| {
            retired.extend(blocks.extract_if(|_, block| !block.is_worth_keeping()).map(|(_, block)| block));
            if blocks.is_empty() {
                emptied.insert(*page, ());
            }
            !blocks.is_empty()
        });
        let second: Vec<u64> = self.retired[before..].iter().filter_map(|block| block.second_page).collect();
        second.into_iter().for_each(|page| self.leave_second_page(page));
        self.blocks -= self.retired.len() - before;
        self.fresh_ops = 0;
        self.tags.forget();
    }

    /// Drops every block: all pages that were watched for this vCPU.
    pub fn release_all(&mut self) -> Vec<u64> {
        self.forget_all();
        self.emptied.clear();
        std::mem::take(&mut self.held).into_keys().collect()
    }

    /// Drops every block.
    pub fn forget_all(&mut self) {
        self.emptied.extend(self.pages.keys().chain(self.second_pages.keys()).map(|page| (*page, ())));
        self.second_pages.clear();
        self.retired.extend(self.pages.drain().flat_map(|(_, blocks)| blocks.into_values()));
        self.blocks = 0;
        self.tags.forget();
    }

    /// Frees the dropped blocks; none may be running.
    pub fn bury(&mut self) {
        self.retired.clear();
    }
}

fn jump_slot(linear: u64) -> usize {
    (linear ^ linear >> 13) as usize % JUMPS
}

/// Two address spaces that have code at the same address shall not take each other's places.
fn fetch_slot(linear: u64, tag: u64) -> usize {
    let mixed = tag.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    ((linear / PAGE_BYTES) ^ mixed) as usize % FETCHES
}

impl Block {
    /// Whether it may run again soon, as far as one can tell.
    fn is_worth_keeping(&self) -> bool {
        self.bitness != 64 || self.translated.is_used()
    }

    /// Whether a write touched bytes this block was decoded from.
    fn overlaps(&self, write: &WatchedWrite) -> bool {
        let write_end = write.gpa + write.len;
        let in_first = PAGE_BYTES - self.gpa % PAGE_BYTES;
        let first_len = u64::from(self.len).min(in_first);
        let hit = |start: u64, len: u64| write.gpa < start + len && start < write_end;
        hit(self.gpa, first_len) || self.second_page.is_some_and(|page| hit(page, u64::from(self.len) - first_len))
    }
}

/// The watched lines that bytes `offset .. offset + len` of a page lie in.
pub fn lines_of(offset: u64, len: u64) -> u64 {
    let (first, last) = (offset / LINE_BYTES, (offset + len - 1) / LINE_BYTES);
    u64::MAX << first & u64::MAX >> (63 - last.min(63))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert(cache: &mut CodeCache, gpa: u64, bitness: u8) {
        cache.insert(Block {
            ops: Box::new([]),
            bytes: Box::new([]),
            gpa,
            len: 1,
            bitness,
            second_page: None,
            translated: Translated::default(),
        });
    }

    fn run(cache: &CodeCache, gpa: u64) {
        assert!(!cache.find(gpa, 64).expect("it is there").translated.is_due(u32::MAX));
    }

    #[test]
    fn blocks_that_did_not_run_since_the_last_time_are_shed_with_their_pages() {
        let mut cache = CodeCache::new(&GuestRam::new());
        [0x1000, 0x1040, 0x2000].into_iter().for_each(|gpa| insert(&mut cache, gpa, 64));
        insert(&mut cache, 0x3000, 32);
        cache.find(0x1040, 64).expect("it is there").translated.set(0x1234, crate::jit::Key::default());
        (0x1000..=0x3000).step_by(0x1000).for_each(|page| assert!(cache.hold(page)));
        run(&cache, 0x1000);
        let generation = cache.generation();
        cache.shed();
        let left = [0x1000, 0x1040, 0x2000].map(|gpa| cache.find(gpa, 64).is_some());
        assert_eq!(left, [true, true, false], "one ran, one is translated");
        assert!(cache.find(0x3000, 32).is_some(), "its executions are not counted");
        assert_ne!(cache.generation(), generation, "jumps may have led to what is gone");
        assert_eq!((cache.take_emptied(), cache.retired().len()), (vec![0x2000], 1));
        cache.shed();
        assert!(cache.find(0x1000, 64).is_none() && cache.find(0x1040, 64).is_some());
    }

    fn cache() -> CodeCache {
        CodeCache::new(&GuestRam::new())
    }

    /// Two bytes at `gpa`.
    fn decode(cache: &mut CodeCache, gpa: u64) {
        let second_page = (gpa % PAGE_BYTES == PAGE_BYTES - 1).then_some(gpa + 1);
        for page in [Some(gpa & PAGE_MASK), second_page].into_iter().flatten() {
            cache.hold(page);
        }
        let (ops, bytes) = (Box::default(), Box::new([0; 2]));
        cache.insert(Block { ops, bytes, gpa, len: 2, bitness: 64, second_page, translated: Translated::default() });
    }

    fn overwrite(cache: &mut CodeCache, gpa: u64) -> Vec<u64> {
        cache.forget_range(&WatchedWrite { gpa, len: 1 });
        let mut emptied = cache.take_emptied();
        emptied.sort_unstable();
        emptied
    }

    #[test]
    fn crossing_block_that_is_dropped_gives_both_its_pages_back() {
        let mut cache = cache();
        decode(&mut cache, 0x5fff);
        assert_eq!(overwrite(&mut cache, 0x6000), [0x5000, 0x6000]);
    }

    #[test]
    fn second_page_is_kept_while_a_block_is_there() {
        let mut cache = cache();
        decode(&mut cache, 0x5fff);
        decode(&mut cache, 0x6010);
        assert_eq!(overwrite(&mut cache, 0x5fff), [0x5000]);
        assert_eq!(overwrite(&mut cache, 0x6010), [0x6000]);
        decode(&mut cache, 0x5fff);
        decode(&mut cache, 0x5fff);
        assert_eq!(overwrite(&mut cache, 0x5fff), [0x5000, 0x6000], "the first was replaced");
    }

    #[test]
    fn page_that_no_block_came_of_is_given_back() {
        let mut cache = cache();
        cache.hold(0x5000);
        cache.abandon(0x5000);
        assert_eq!(cache.take_emptied(), [0x5000]);
    }

    #[test]
    fn dropping_everything_again_and_again_remembers_each_page_once() {
        let mut cache = cache();
        for _ in 0..10 {
            decode(&mut cache, 0x5fff);
            cache.forget_all();
        }
        assert_eq!(cache.emptied.len(), 2);
    }

    #[test]
    fn crossing_block_that_is_shed_gives_both_its_pages_back() {
        let mut cache = cache();
        decode(&mut cache, 0x5fff);
        cache.shed();
        let mut emptied = cache.take_emptied();
        emptied.sort_unstable();
        assert_eq!(emptied, [0x5000, 0x6000]);
    }
}

//! Where each byte of a disk is kept, through the images behind it.

use std::fmt::Write;
use std::sync::Arc;

use crate::Result;
use crate::disk::{Content, Disk, Extent};
use crate::storage::Storage;

/// An image of a chain: what its layer alone holds, and the file that this is in.
#[derive(Clone, Debug)]
pub struct Layer {
    pub disk: Arc<dyn Disk>,
    /// Looked into for holes.
    pub file: Option<Arc<dyn Storage>>,
}

/// A run of a disk, as `qemu-img map` describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    pub start: u64,
    pub len: u64,
    /// 0 is the image in front.
    pub depth: usize,
    /// Some layer holds it.
    pub present: bool,
    pub zero: bool,
    pub data: bool,
    pub compressed: bool,
    pub host_offset: Option<u64>,
}

impl Mapped {
    fn continues(&self, next: &Self) -> bool {
        let kind = |run: &Self| (run.depth, run.present, run.zero, run.data, run.compressed);
        kind(self) == kind(next) && self.host_offset.map(|at| at + self.len) == next.host_offset
    }
}

/// The runs from `offset` to `end`, neighbours of one kind as one.
pub fn map(layers: &[Layer], offset: u64, end: u64) -> Result<Vec<Mapped>> {
    let mut runs = Runs { found: Vec::new(), known: None };
    runs.add_layer(layers, 0, offset, end)?;
    Ok(runs.found)
}

/// What the clusters of a disk take that hold anything but zeroes.
pub fn data_bytes(layers: &[Layer], end: u64, cluster: u64) -> Result<u64> {
    let (mut clusters, mut next) = (0, 0);
    for run in map(layers, 0, end)?.iter().filter(|run| !run.zero) {
        let first = (run.start / cluster).max(next);
        next = next.max((run.start + run.len).div_ceil(cluster));
        clusters += next.saturating_sub(first);
    }
    Ok(clusters * cluster)
}

/// The runs as `qemu-img map --output json` prints them.
pub fn json(runs: &[Mapped]) -> String {
    let mut text = String::with_capacity(160 * runs.len() + 2);
    text.push('[');
    for (number, run) in runs.iter().enumerate() {
        let separator = if number == 0 { "" } else { ",\n" };
        let Mapped { start, len, depth, present, zero, data, compressed, host_offset } = run;
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "{separator}{{ \"start\": {start}, \"length\": {len}, \"depth\": {depth}, \"present\": {present}, \
             \"zero\": {zero}, \"data\": {data}, \"compressed\": {compressed}"
        );
        if let Some(offset) = host_offset {
            let _ = write!(text, ", \"offset\": {offset}");
        }
        text.push('}');
    }
    text.push(']');
    text
}

/// A run of the file of layer `depth`: data or a hole.
struct Known {
    depth: usize,
    start: u64,
    end: u64,
    is_data: bool,
}

/// Files are asked for their runs up to here, to be asked less often.
const REACH: u64 = 1 << 40;

struct Runs {
    found: Vec<Mapped>,
    /// What a file was last asked for.
    known: Option<Known>,
}

impl Runs {
    fn push(&mut self, run: Mapped) {
        match self.found.last_mut() {
            Some(last) if last.continues(&run) => last.len += run.len,
            _ => self.found.push(run),
        }
    }

    fn add_layer(&mut self, layers: &[Layer], depth: usize, offset: u64, end: u64) -> Result<()> {
        let Some(layer) = layers.get(depth) else { return Ok(()) };
        let there = end.min(layer.disk.size());
        let mut at = offset;
        while at < there {
            let extent = layer.disk.extent_at(at, there - at)?;
            if extent.content == Content::Unallocated && depth + 1 < layers.len() {
                self.add_layer(layers, depth + 1, at, at + extent.len)?;
            } else {
                self.add_extent(layer, depth, at, &extent)?;
            }
            at += extent.len;
        }
        // Behind the end of a shorter image the one in front of it decides, as QEMU counts.
        let at = offset.max(there);
        if at < end {
            let nothing = Mapped {
                start: at,
                len: end - at,
                depth: depth.saturating_sub(1),
                present: false,
                zero: true,
                data: false,
                compressed: false,
                host_offset: None,
            };
            self.push(nothing);
        }
        Ok(())
    }

    fn add_extent(&mut self, layer: &Layer, depth: usize, start: u64, extent: &Extent) -> Result<()> {
        let data = matches!(extent.content, Content::Data | Content::Compressed);
        let whole = Mapped {
            start,
            len: extent.len,
            depth,
            present: extent.content != Content::Unallocated,
            zero: !data,
            data,
            compressed: extent.content == Content::Compressed,
            host_offset: extent.host_offset,
        };
        match (&layer.file, extent.host_offset) {
            (Some(file), Some(host)) if data => self.add_pieces(file.as_ref(), &whole, host),
            _ => {
                self.push(whole);
                Ok(())
            }
        }
    }

    /// What is at `host` of the file of layer `depth`: whether it is data, and where it ends.
    fn run_of_file(&mut self, file: &dyn Storage, depth: usize, host: u64) -> Result<(bool, u64)> {
        let known = self.known.as_ref().filter(|known| known.depth == depth);
        let run = match known {
            Some(known) if (known.start..known.end).contains(&host) => return Ok((known.is_data, known.end)),
            Some(known) if known.end == host => file.next_run(host, REACH, !known.is_data)?,
            _ => file.run_at(host, REACH)?,
        };
        let end = host.saturating_add(run.len.max(1));
        self.known = Some(Known { depth, start: host, end, is_data: run.is_data });
        Ok((run.is_data, end))
    }

    /// Holes of the file read as zeroes.
    fn add_pieces(&mut self, file: &dyn Storage, whole: &Mapped, host: u64) -> Result<()> {
        let mut done = 0;
        while done < whole.len {
            let (is_data, end) = self.run_of_file(file, whole.depth, host + done)?;
            let len = (end - host - done).min(whole.len - done);
            let host_offset = Some(host + done);
            self.push(Mapped { start: whole.start + done, len, zero: !is_data, host_offset, ..*whole });
            done += len;
        }
        Ok(())
    }
}

//! A node of the host's `/dev` that commands are passed on to: opened for us alone, and what sysfs says of it.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The part of a page that a buffer which begins anywhere may need one segment more for.
const PAGE_BYTES: u64 = 4096;

/// A device of the host, and what keeps others from it.
#[derive(Debug)]
pub(super) struct Node {
    pub file: File,
    pub is_block: bool,
    /// Of a `/dev/sgN` of a disk: the block device. `O_EXCL` of sg(4) knows of no other node of the same disk, so that it is
    /// this which mounts, volume groups and other machines hold.
    _disk: Option<File>,
    /// The directory of the block device in sysfs, where there is one.
    block: Option<PathBuf>,
}

impl Node {
    /// Opens a node of a whole SCSI device. `ErrorKind::Unsupported` for what is none: a part of one, too, since commands
    /// name sectors of all of it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = claim(OpenOptions::new().read(true).write(true), path)?;
        let about = file.metadata()?;
        if about.file_type().is_block_device() {
            let block = entry("block", &about);
            if block.join("partition").exists() || !block.join("device/scsi_device").exists() {
                return Err(io::ErrorKind::Unsupported.into());
            }
            return Ok(Self { file, is_block: true, _disk: None, block: Some(block) });
        }
        if !about.file_type().is_char_device() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let block = disk_of(&entry("char", &about))?;
        let disk = block.as_deref().map(claim_disk).transpose()?;
        Ok(Self { file, is_block: false, _disk: disk, block })
    }

    /// What the queue of the disk takes at once in pieces of a page; no limit where there is no such queue.
    pub fn segment_limit(&self) -> u64 {
        let Some(block) = &self.block else { return u64::MAX };
        let segments = fs::read_to_string(block.join("queue/max_segments")).ok();
        let segments = segments.and_then(|text| text.trim().parse::<u64>().ok());
        segments.map_or(u64::MAX, |segments| segments.saturating_sub(1).saturating_mul(PAGE_BYTES))
    }
}

fn claim(how: &mut OpenOptions, path: &Path) -> io::Result<File> {
    how.custom_flags(libc::O_EXCL | libc::O_NONBLOCK).open(path)
}

fn entry(kind: &str, about: &Metadata) -> PathBuf {
    format!("/sys/dev/{kind}/{}", number(about)).into()
}

fn number(about: &Metadata) -> String {
    format!("{}:{}", libc::major(about.rdev()), libc::minor(about.rdev()))
}

/// The block device of a generic one, in sysfs; tapes and changers have none.
fn disk_of(generic: &Path) -> io::Result<Option<PathBuf>> {
    match fs::read_dir(generic.join("device/block")) {
        Ok(mut found) => Ok(found.next().transpose()?.map(|disk| disk.path())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Holds the disk whose directory in sysfs is `block`, by its node in `/dev`.
fn claim_disk(block: &Path) -> io::Result<File> {
    let name = block.file_name().ok_or(io::ErrorKind::NotFound)?;
    // The name of a driver may have slashes in /dev, which sysfs writes as exclamation marks.
    let path = Path::new("/dev").join(name.to_string_lossy().replace('!', "/"));
    let disk = claim(OpenOptions::new().read(true), &path)?;
    let is_it = fs::read_to_string(block.join("dev"))?.trim() == number(&disk.metadata()?);
    if is_it { Ok(disk) } else { Err(io::ErrorKind::NotFound.into()) }
}

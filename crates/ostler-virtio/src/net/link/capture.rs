//! A copy of every frame that crosses a link, in a file that tcpdump and Wireshark read.
//!
//! The format is pcap with nanoseconds (draft-ietf-opsawg-pcap). Frames are as the guest sees them:
//! large ones are not cut yet, checksums that are left to others are not there.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Link, Sent};
use crate::net::frame::{Frame, MAX_FRAME_BYTES};
use crate::net::offload::Offloads;

/// Magic number of the format with nanoseconds, version 2.4, no zone, no accuracy.
const MAGIC: u32 = 0xa1b2_3c4d;
const VERSION: u32 = 2 | 4 << 16;
const LINKTYPE_ETHERNET: u32 = 1;

/// A capture file; several links may share it.
#[derive(Debug)]
pub struct Capture {
    /// `None` after the host refused to store a frame: the guest goes on without the capture.
    file: Mutex<Option<File>>,
}

impl Capture {
    /// Begins a capture at the start of `file`.
    pub fn begin(mut file: File) -> io::Result<Self> {
        let header = [MAGIC, VERSION, 0, 0, MAX_FRAME_BYTES as u32, LINKTYPE_ETHERNET];
        file.write_all(&words(&header))?;
        Ok(Self { file: Mutex::new(Some(file)) })
    }

    fn record(&self, frame: &Frame) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let len = frame.bytes().len() as u32;
        let mut record = words(&[since.as_secs() as u32, since.subsec_nanos(), len, len]);
        record.extend_from_slice(frame.bytes());
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // One write a record: whoever reads the file meanwhile sees whole ones.
        if file.as_mut().is_some_and(|file| file.write_all(&record).is_err()) {
            *file = None;
        }
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A link whose frames are captured.
#[derive(Debug)]
pub struct CaptureLink {
    pub link: Arc<dyn Link>,
    pub capture: Arc<Capture>,
}

impl Link for CaptureLink {
    fn takes(&self) -> Offloads {
        self.link.takes()
    }

    fn send(&self, queue: usize, frame: &Frame) -> Sent {
        let sent = self.link.send(queue, frame);
        if sent != Sent::Later {
            self.capture.record(frame);
        }
        sent
    }

    fn flush(&self, queue: usize) -> bool {
        self.link.flush(queue)
    }

    fn receive(&self, queue: usize, frame: &mut Frame) -> bool {
        let received = self.link.receive(queue, frame);
        if received {
            self.capture.record(frame);
        }
        received
    }

    fn readable(&self, queue: usize) -> Option<RawFd> {
        self.link.readable(queue)
    }

    fn writable(&self) -> Option<(RawFd, libc::c_short)> {
        self.link.writable()
    }

    fn guest_takes(&self, offloads: Offloads) {
        self.link.guest_takes(offloads);
    }

    fn use_pairs(&self, pairs: usize) {
        self.link.use_pairs(pairs);
    }

    fn unplug(&self) {
        self.link.unplug();
    }

    fn is_up(&self) -> bool {
        self.link.is_up()
    }
}

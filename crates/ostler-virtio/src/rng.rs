//! virtio-rng (virtio 1.2, section 5.4): fills what it is given from the host's generator.

use std::io;

use ostler_memory::GuestMap;

use crate::chain::{Broken, Chain};
use crate::worker::{Outcome, Service};

/// Bytes one request gets at most; the driver asks again for more.
const MAX_BYTES: u64 = 64 << 10;
const PIECE_BYTES: usize = 256;

#[derive(Debug, Default)]
pub struct RngService;

impl Service for RngService {
    fn serve(&mut self, chain: &Chain, map: &GuestMap) -> Result<Outcome, Broken> {
        let wanted = chain.writable.len().min(MAX_BYTES);
        let mut done = 0;
        while done < wanted {
            let mut piece = [0; PIECE_BYTES];
            let len = (wanted - done).min(PIECE_BYTES as u64);
            let bytes = &mut piece[..len as usize];
            if fill_random(bytes).is_err() || chain.writable.write_at(map, done, bytes).is_err() {
                break;
            }
            done += len;
        }
        Ok(Outcome::Done(done as u32))
    }
}

/// Fills `bytes`, at most 256 of them: then the kernel neither stops half-way nor is interrupted.
fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of a live slice.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got == bytes.len() as libc::ssize_t { Ok(()) } else { Err(io::Error::last_os_error()) }
}

//! A queue whose memory is the input: table, rings, buffers, everything.

use std::sync::LazyLock;

use ostler_memory::{GuestRam, SlotConfig};
use ostler_virtio::{Broken, Outcome, Position, Ring, RingConfig, Service};

const RAM_BYTES: u64 = 64 << 10;
const MAX_REQUESTS: usize = 64;

static RAM: LazyLock<GuestRam> = LazyLock::new(|| {
    let ram = GuestRam::new();
    ram.set_slot(SlotConfig { size: RAM_BYTES, log_dirty: true, ..SlotConfig::default() }).expect("a slot");
    ram
});

fn serve(config: &RingConfig, service: &mut dyn Service) -> Result<(), Broken> {
    let map = RAM.map();
    let Ok(mut ring) = Ring::new(config, &map) else { return Ok(()) };
    let mut held = Vec::new();
    for _ in 0..MAX_REQUESTS {
        let Some(chain) = ring.pop(&map)? else { break };
        match service.serve(&chain, &map)? {
            Outcome::Done(len) => {
                assert!(u64::from(len) <= chain.writable.len());
                held.push((chain, len));
                ring.push_all(&map, &held)?;
                held.clear();
                ring.needs_interrupt(&map)?;
            }
            Outcome::More => {
                let len = chain.writable.len() as u32;
                held.push((chain, len));
            }
            Outcome::Later => {
                ring.unpop(&chain);
                break;
            }
        }
    }
    ring.enable_kicks(&map).map(|_more| ())
}

/// Lets `service` serve the queue that `data` describes: a byte of features, then memory.
pub fn run(data: &[u8], service: &mut dyn Service) {
    let Some((flags, memory)) = data.split_first() else { return };
    let memory = &memory[..memory.len().min(RAM_BYTES as usize - 16)];
    RAM.write(0, &vec![0; RAM_BYTES as usize]).expect("memory");
    RAM.write(16, memory).expect("memory");
    let packed = flags & 4 != 0;
    let config = RingConfig {
        size: 8,
        desc_table: 0x10,
        avail_ring: 0x90,
        used_ring: 0xb0,
        position: if packed { Position::PACKED_START } else { Position::default() },
        event_idx: flags & 1 != 0,
        indirect: flags & 2 != 0,
        packed,
    };
    let _broken = serve(&config, service);
}

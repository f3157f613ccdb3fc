//! virtio-balloon: `cargo fuzz run virtio_balloon`. The first byte chooses the queue.

#![no_main]

mod ring;

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use ostler_virtio::balloon::{Balloon, HintService, InflateService, ReportService, StatsService};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

fuzz_target!(|data: &[u8]| {
    let Some((queue, data)) = data.split_first() else { return };
    let balloon = Arc::new(Balloon::default());
    match queue % 4 {
        0 => ring::run(data, &mut InflateService(balloon)),
        1 => ring::run(data, &mut ReportService(balloon)),
        2 => ring::run(data, &mut HintService::new(balloon, Box::new(|_id| ()))),
        _ => {
            let wanted = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
            ring::run(data, &mut StatsService::new(wanted, Box::new(|_stats| ())));
        }
    }
});

//! virtio-vsock: `cargo fuzz run virtio_vsock`. The guest's packets go where nobody listens, and the
//! answers come back.

#![no_main]

mod ring;

use std::os::unix::net::UnixListener;
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use ostler_virtio::vsock::{Hub, ReceiveService, TransmitService};

static HUB: LazyLock<Arc<Hub>> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("ostler-fuzz-{}", std::process::id()));
    let listener = UnixListener::bind(&path).expect("a listener");
    Arc::new(Hub::new(3, listener, path).expect("a hub"))
});

fuzz_target!(|data: &[u8]| {
    ring::run(data, &mut TransmitService::new(Arc::clone(&HUB)));
    // What the hub has to say to that, into the same memory.
    ring::run(data, &mut ReceiveService::new(Arc::clone(&HUB)));
    HUB.reset();
});

//! Queues that are answered outside the crate: `cargo fuzz run virtio_calls`.

#![no_main]

mod ring;

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use ostler_virtio::host::{CallService, Feed, FeedService};

fuzz_target!(|data: &[u8]| {
    ring::run(data, &mut CallService::new(Box::new(|request, room| Some(vec![request.len() as u8; room.min(4096)]))));
    let feed = Arc::new(Feed::new().expect("a feed"));
    feed.put(vec![1; 300]);
    ring::run(data, &mut FeedService(feed));
});

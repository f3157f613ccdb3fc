//! Queues answered from outside the crate.

use std::sync::{Arc, Mutex};

use crate::driver::{DATA, Driver, WRITE};
use ostler_virtio::ServedQueue;
use ostler_virtio::host::{CallService, Feed, FeedService, MAX_REQUEST_BYTES, MAX_WAITING};

#[test]
fn request_is_handed_over_whole_and_the_answer_is_cut_to_the_room() {
    let mut driver = Driver::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let handler = Box::new(move |request: &[u8], room: usize| {
        log.lock().expect("not poisoned").push((request.to_vec(), room));
        Some(b"an answer".to_vec())
    });
    let _worker = driver.start(CallService::new(handler));
    driver.put(DATA, b"ask");
    driver.lay(0, &[(DATA, 1, 0), (DATA + 1, 2, 0), (DATA + 64, 3, WRITE), (DATA + 128, 4, WRITE)]);
    assert_eq!(driver.round_trip(0), (0, 7));
    assert_eq!((driver.get(DATA + 64, 3), driver.get(DATA + 128, 4)), (b"an ".to_vec(), b"answ".to_vec()));
    assert_eq!(*seen.lock().expect("not poisoned"), [(b"ask".to_vec(), 7)]);
}

#[test]
fn request_too_long_outside_memory_or_for_a_defective_device_breaks_the_queue() {
    for (gpa, len) in [(DATA, MAX_REQUEST_BYTES as u32 + 1), (1 << 40, 16), (DATA, 16)] {
        let mut driver = Driver::new();
        let _worker = driver.start(CallService::new(Box::new(|_, _| None)));
        driver.lay(0, &[(gpa, len, 0)]);
        driver.offer(0);
        driver.ring();
        driver.broken.wait(1);
    }
}

#[test]
fn messages_fill_buffers_in_order_and_wait_for_them() {
    let mut driver = Driver::new();
    let feed = Arc::new(Feed::new().expect("a feed"));
    assert!(feed.put(b"early".to_vec()));
    let mut worker = driver.start(FeedService(Arc::clone(&feed)));
    driver.lay(0, &[(DATA, 8, WRITE)]);
    assert_eq!(driver.round_trip(0), (0, 5));
    assert_eq!(driver.get(DATA, 5), b"early");
    driver.offer(0);
    driver.ring();
    assert!(feed.put(b"much too long".to_vec()));
    driver.bell.wait(2);
    assert_eq!((driver.used(1), driver.get(DATA, 8)), ((0, 8), b"much too".to_vec()));
    driver.offer(0);
    driver.ring();
    assert_eq!(worker.stop().next_used, 2, "nothing to hand over");
}

#[test]
fn feed_nobody_empties_takes_only_so_much() {
    let feed = Feed::new().expect("a feed");
    assert!((0..MAX_WAITING).all(|_| feed.put(vec![0])));
    assert!(!feed.put(vec![0]));
    feed.clear();
    assert!(feed.put(vec![0]));
}

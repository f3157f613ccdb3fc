//! Cards on a switch, driven as their manuals say, and by drivers that heed nothing.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

use ostler_engine::BusDevice;
use ostler_engine::irq::Level;
use ostler_memory::{GuestMap, GuestRam, SlotConfig};
use ostler_nic::{BadState, Card, Chip, Delivery, E1000, Rtl8139, Saved, Window, Work};
use ostler_virtio::net::link::Sent;
use ostler_virtio::net::offload::Offloads;
use ostler_virtio::net::{Frame, Header, Link, Nic, Switch, SwitchPort};

const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const RAM_BYTES: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(30);
const TRANSMIT_RING: u64 = 0x1000;
const RECEIVE_RING: u64 = 0x2000;
const BUFFERS: u64 = 0x1_0000;
const ROUNDS: u64 = 30_000;

/// A line that can be waited for.
#[derive(Clone, Debug, Default)]
struct Line(Arc<(Mutex<bool>, Condvar)>);

impl Line {
    fn wait_for(&self, level: bool) {
        let (current, changed) = &*self.0;
        let guard = current.lock().expect("no panic");
        let waited = changed.wait_timeout_while(guard, PATIENCE, |current| *current != level).expect("no panic");
        assert!(!waited.1.timed_out(), "the line never became {level}");
    }
}

impl Level for Line {
    fn set_level(&self, level: bool) {
        *self.0.0.lock().expect("no panic") = level;
        self.0.1.notify_all();
    }
}

struct Lab {
    ram: Arc<GuestRam>,
    card: Arc<Card>,
    registers: Window,
    peer: Arc<SwitchPort>,
    line: Line,
}

impl Lab {
    fn new(chip: Box<dyn Chip>, bar: u8) -> Self {
        let switch = Arc::new(Switch::default());
        let (ours, peer) = (switch.port().expect("a port"), switch.port().expect("a port"));
        Self::on(ours, peer, chip, bar)
    }

    fn on(link: Arc<dyn Link>, peer: Arc<SwitchPort>, chip: Box<dyn Chip>, bar: u8) -> Self {
        let ram = Arc::new(GuestRam::new());
        ram.set_slot(SlotConfig { size: RAM_BYTES, ..SlotConfig::default() }).expect("a slot");
        let nic = Arc::new(Nic::new(link, MAC, 1));
        let card = Arc::new(Card::start("net-test", chip, nic, Arc::clone(&ram)).expect("a thread"));
        let line = Line::default();
        card.connect(Box::new(line.clone()));
        card.command(false, true);
        Self { registers: card.window(bar), ram, card, peer, line }
    }

    fn set(&self, register: u64, size: usize, value: u64) {
        self.registers.write(register, &value.to_le_bytes()[..size]);
    }

    fn get(&self, register: u64, size: usize) -> u64 {
        let mut bytes = [0; 8];
        self.registers.read(register, &mut bytes[..size]);
        u64::from_le_bytes(bytes)
    }

    fn descriptor(&self, gpa: u64, words: [u32; 4]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.ram.write(gpa, &bytes).expect("memory");
    }

    fn words(&self, gpa: u64) -> [u32; 4] {
        let mut bytes = [0; 16];
        self.ram.read(gpa, &mut bytes).expect("memory");
        [0, 4, 8, 12].map(|at| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]))
    }

    fn memory(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read(gpa, &mut bytes).expect("memory");
        bytes
    }

    /// The next frame that the card sent.
    fn sent(&self) -> Vec<u8> {
        let (mut frame, end) = (Frame::default(), Instant::now() + PATIENCE);
        while !self.peer.receive(0, &mut frame) {
            assert!(Instant::now() < end, "nothing was sent");
            std::thread::yield_now();
        }
        frame.bytes().to_vec()
    }

    fn arrive(&self, bytes: &[u8]) {
        self.peer.send(0, &Frame::exact(Header::default(), bytes));
    }
}

fn frame(len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len).map(|at| at as u8).collect();
    bytes[..6].copy_from_slice(&MAC);
    bytes[12..14].copy_from_slice(&[0x88, 0xb5]);
    bytes
}

fn e1000() -> Lab {
    set_up_e1000(Lab::new(Box::new(E1000::new(MAC, true)), 0))
}

fn set_up_e1000(lab: Lab) -> Lab {
    for (register, value) in [
        (0x3800, TRANSMIT_RING),
        (0x3808, 128),
        (0x0400, 2),
        (0x2800, RECEIVE_RING),
        (0x2808, 128),
        (0x0100, 2 | 1 << 15 | 0b11 << 16),
        (0x00d0, 0xff),
    ] {
        lab.set(register, 4, value);
    }
    lab
}

#[test]
fn e1000_sends_a_frame_of_several_pieces_with_its_tag() {
    let lab = e1000();
    lab.set(0x0000, 4, 1 << 30);
    lab.set(0x0038, 4, 0x8100);
    lab.ram.write(BUFFERS, &frame(100)).expect("memory");
    lab.descriptor(TRANSMIT_RING, [BUFFERS as u32, 0, 40, 0]);
    lab.descriptor(TRANSMIT_RING + 16, [BUFFERS as u32 + 40, 0, 60 | 0x4900_0000, 0x0064_0000]);
    lab.set(0x3818, 4, 2);
    lab.line.wait_for(true);
    let sent = lab.sent();
    assert_eq!(sent[12..16], [0x81, 0, 0, 0x64]);
    assert_eq!([&sent[..12], &sent[16..]].concat(), frame(100));
    assert_eq!((lab.get(0x3810, 4), lab.words(TRANSMIT_RING + 16)[3] & 1), (2, 1));
    assert_eq!(lab.words(TRANSMIT_RING)[3] & 1, 0, "it asked for no report");
    assert_eq!(lab.get(0x00c0, 4), 3);
    lab.line.wait_for(false);
}

#[test]
fn e1000_receives_into_several_buffers_and_waits_for_room() {
    let lab = e1000();
    for index in 0..8 {
        lab.descriptor(RECEIVE_RING + 16 * index, [(BUFFERS + 0x1000 * index) as u32, 0, 0, 0]);
    }
    lab.arrive(&frame(300));
    // Buffers of 256 bytes: one is not enough.
    lab.set(0x2818, 4, 1);
    lab.set(0x2818, 4, 2);
    lab.line.wait_for(true);
    assert_ne!(lab.get(0x00c0, 4) & 0x80, 0);
    let (first, second) = (lab.words(RECEIVE_RING), lab.words(RECEIVE_RING + 16));
    assert_eq!((first[2], first[3] & 3, second[2], second[3] & 3), (256, 1, 48, 3));
    let parts = [lab.memory(BUFFERS, 256), lab.memory(BUFFERS + 0x1000, 44)].concat();
    assert_eq!(parts, frame(300));
    assert_eq!(lab.get(0x2810, 4), 2);
}

/// 250 bytes by TCP, whose IP header has no length yet.
fn segments() -> Vec<u8> {
    let mut bytes = vec![0; 54 + 250];
    bytes[..6].copy_from_slice(&[0xff; 6]);
    bytes[12..14].copy_from_slice(&[8, 0]);
    (bytes[14], bytes[22], bytes[23]) = (0x45, 64, 6);
    bytes[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    bytes[46] = 0x50;
    bytes
}

#[test]
fn e1000_segments_what_the_next_does_not() {
    let lab = e1000();
    lab.ram.write(BUFFERS, &segments()).expect("memory");
    // IP from 14, its checksum at 24; TCP from 34, its at 50; 54 bytes of headers, 100 of data.
    let context = [14 | 24 << 8 | 33 << 16, 34 | 50 << 8, 250 | 0x2700_0000, 54 << 8 | 100 << 16];
    lab.descriptor(TRANSMIT_RING, context);
    lab.descriptor(TRANSMIT_RING + 16, [BUFFERS as u32, 0, 304 | 1 << 20 | 0x2d00_0000, 0x300]);
    lab.set(0x3818, 4, 2);
    let (mut frame, end) = (Frame::default(), Instant::now() + PATIENCE);
    while !lab.peer.receive(0, &mut frame) {
        assert!(Instant::now() < end, "nothing was sent");
        std::thread::yield_now();
    }
    // A switch takes it whole, with what is left to do in its header.
    assert_eq!((frame.header.gso_type, frame.header.gso_size, frame.header.hdr_len), (1, 100, 54));
    assert_eq!((frame.header.csum_start, frame.header.csum_offset), (34, 16));
    assert_eq!(frame.bytes()[16..18], [1, 34], "the IP header's length");
}

fn rtl8139() -> Lab {
    let lab = Lab::new(Box::new(Rtl8139::new(MAC, true, true)), 1);
    for (register, size, value) in [
        (0xe0, 2, 0x23),
        (0x20, 8, TRANSMIT_RING),
        (0xe4, 8, RECEIVE_RING),
        (0x44, 4, 0x0e),
        (0x37, 1, 0x0c),
        (0x3c, 2, 0xffff),
    ] {
        lab.set(register, size, value);
    }
    lab
}

#[test]
fn rtl8139_rings_carry_frames_both_ways() {
    let lab = rtl8139();
    lab.ram.write(BUFFERS, &frame(100)).expect("memory");
    let own = 1u32 << 31;
    lab.descriptor(TRANSMIT_RING, [own | 1 << 29 | 40, 0, BUFFERS as u32, 0]);
    lab.descriptor(TRANSMIT_RING + 16, [own | 1 << 30 | 1 << 28 | 60, 0, BUFFERS as u32 + 40, 0]);
    lab.set(0xd9, 1, 0x40);
    assert_eq!(lab.sent(), frame(100));
    lab.line.wait_for(true);
    assert_eq!(lab.words(TRANSMIT_RING)[0] & own, 0);
    lab.set(0x3e, 2, 0xffff);
    lab.arrive(&frame(200));
    // The driver makes room without saying so.
    lab.descriptor(RECEIVE_RING, [own | 1 << 30 | 1536, 0, BUFFERS as u32 + 0x2000, 0]);
    lab.line.wait_for(true);
    let status = lab.words(RECEIVE_RING)[0];
    assert_eq!((status & own, status & 0x1fff, status >> 28 & 7), (0, 204, 7));
    assert_eq!(lab.memory(BUFFERS + 0x2000, 200), frame(200));
}

#[test]
fn rtl8139_plain_buffers_carry_frames_both_ways_and_wrap() {
    let lab = Lab::new(Box::new(Rtl8139::new(MAC, true, false)), 0);
    for (register, size, value) in
        [(0x30, 4, RECEIVE_RING), (0x44, 4, 0x0e), (0x37, 1, 0x0c), (0x3c, 2, 0xffff), (0x20, 4, BUFFERS)]
    {
        lab.set(register, size, value);
    }
    lab.ram.write(BUFFERS, &frame(100)).expect("memory");
    lab.set(0x10, 4, 100);
    assert_eq!(lab.sent(), frame(100));
    lab.line.wait_for(true);
    assert_eq!(lab.get(0x10, 4) & 0xa000, 0xa000);
    assert_eq!(lab.get(0x60, 2) & 0x1001, 0x1001);
    lab.set(0x3e, 2, 0xffff);
    let mut place = 0;
    for _ in 0..9 {
        lab.arrive(&frame(1000));
        lab.line.wait_for(true);
        assert_eq!(lab.get(0x37, 1) & 1, 0);
        // Eight and a bit go into 8 KiB; what does not fit goes on at its start.
        let around = |at: u64, len: usize| -> Vec<u8> {
            let at = at % 8192;
            let first = len.min((8192 - at) as usize);
            [lab.memory(RECEIVE_RING + at, first), lab.memory(RECEIVE_RING, len - first)].concat()
        };
        assert_eq!(around(place, 4), [1, 0x40, 0xec, 3]);
        assert_eq!(around(place + 4, 1000), frame(1000));
        place = (place + 1008) % 8192;
        lab.set(0x38, 2, place.wrapping_sub(16) & 0xffff);
        lab.set(0x3e, 2, 0xffff);
        lab.line.wait_for(false);
    }
}

/// Knuth's generator, so that a failure can be seen again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.next() as usize % from.len()]
    }
}

/// Registers of both chips that matter, so that nonsense is plausible.
const PLACES: [u64; 30] = [
    0x3800, 0x3804, 0x3808, 0x3810, 0x3818, 0x2800, 0x2804, 0x2808, 0x2810, 0x2818, 0x0100, 0x0400, 0x0000, 0x00c4,
    0x00c8, 0x00d0, 0x5000, 0x10, 0x20, 0x24, 0x30, 0x37, 0x38, 0x3a, 0x3c, 0x44, 0xd9, 0xe0, 0xe4, 0x50,
];

fn scramble(lab: &Lab, random: &mut Random) {
    for _ in 0..8 {
        let gpa = random.pick(&[TRANSMIT_RING, RECEIVE_RING]) + 16 * (random.next() % 8);
        let address = random.pick(&[BUFFERS, RAM_BYTES - 8, 1 << 40, u64::MAX - 4, TRANSMIT_RING]);
        let length = random.pick(&[0u64, 14, 60, 300, 1 << 15, 0xffff, 0xf_ffff]) as u32;
        let bits = (random.next() as u32) << 16 | 1 << random.pick(&[20u32, 24, 27, 29, 31]);
        let words = [address as u32, (address >> 32) as u32, length | bits, random.next() as u32];
        let turned = [words[2], words[3], words[0], words[1]];
        lab.descriptor(gpa, if random.next().is_multiple_of(2) { words } else { turned });
    }
}

#[test]
fn cards_under_a_driver_that_heeds_nothing_stay_and_stop() {
    let chips: [fn() -> Box<dyn Chip>; 3] = [
        || Box::new(E1000::new(MAC, true)),
        || Box::new(Rtl8139::new(MAC, true, true)),
        || Box::new(Rtl8139::new(MAC, true, false)),
    ];
    for (seed, chip) in (1..).zip(chips) {
        let lab = Lab::new(chip(), 0);
        let mut random = Random(seed);
        let values = [0u64, 1, 2, 7, 8, 16, 128, TRANSMIT_RING, RECEIVE_RING, 0xffff, 0xf_ff80, u32::MAX.into(), 0x0c];
        let mut taken = Frame::default();
        for round in 0..ROUNDS {
            if round % 16 == 0 {
                scramble(&lab, &mut random);
                lab.arrive(&frame(14 + random.next() as usize % 2000));
            }
            let place = if random.next().is_multiple_of(8) { random.next() % 0x6000 } else { random.pick(&PLACES) };
            let size = random.pick(&[1, 2, 4, 4, 4, 8]);
            let value = if random.next().is_multiple_of(4) { random.next() << 1 } else { random.pick(&values) };
            lab.set(place, size, value);
            lab.get(place, size);
            while lab.peer.receive(0, &mut taken) {}
        }
        let saved: Vec<_> = lab.card.save().into_iter().map(|(name, words)| (name.to_owned(), words)).collect();
        lab.card.load(&saved).expect("its own state");
        lab.card.stop();
        assert!(lab.get(0, 4) <= u32::MAX.into());
    }
}

/// A link with one frame coming in. Where it knows a card, each frame, either way, finds the driver taking
/// its access to memory away.
#[derive(Debug, Default)]
struct Scripted {
    card: Mutex<Weak<Card>>,
    incoming: Mutex<Option<Frame>>,
    passed: AtomicUsize,
}

impl Scripted {
    fn forbid(&self) {
        let card = self.card.lock().expect("no panic").clone();
        if let Some(card) = card.upgrade() {
            card.command(false, false);
        }
        self.passed.fetch_add(1, Ordering::Release);
    }

    fn wait(&self) {
        let end = Instant::now() + PATIENCE;
        while self.passed.load(Ordering::Acquire) == 0 {
            assert!(Instant::now() < end, "no frame passed");
            std::thread::yield_now();
        }
    }
}

impl Link for Scripted {
    fn takes(&self) -> Offloads {
        Offloads::ALL
    }

    fn send(&self, _queue: usize, _frame: &Frame) -> Sent {
        self.forbid();
        Sent::Done
    }

    fn receive(&self, _queue: usize, frame: &mut Frame) -> bool {
        let Some(incoming) = self.incoming.lock().expect("no panic").take() else { return false };
        self.forbid();
        *frame = incoming;
        true
    }

    fn readable(&self, _queue: usize) -> Option<RawFd> {
        None
    }
}

/// What the card has written, by its head and by the status of its first descriptor, when the driver
/// forbids it to amid a frame: before it may again, and after.
fn written_when_forbidden(prepare: impl Fn(&Lab, &Scripted), head: u64, ring: u64) -> [(u64, u32); 2] {
    [false, true].map(|resumes| {
        let link = Arc::new(Scripted::default());
        let peer = Arc::new(Switch::default()).port().expect("a port");
        let on = Arc::clone(&link);
        let lab = set_up_e1000(Lab::on(on, peer, Box::new(E1000::new(MAC, true)), 0));
        *link.card.lock().expect("no panic") = Arc::downgrade(&lab.card);
        prepare(&lab, &link);
        link.wait();
        if resumes {
            lab.card.command(false, true);
            lab.line.wait_for(true);
        }
        // Its thread has ended what it had begun.
        lab.card.stop();
        (lab.get(head, 4), lab.words(ring)[3] & 1)
    })
}

#[test]
fn card_that_may_not_access_memory_tells_of_a_frame_sent_when_it_may() {
    let send = |lab: &Lab, _: &Scripted| {
        lab.descriptor(TRANSMIT_RING, [BUFFERS as u32, 0, 60 | 0x0900_0000, 0]);
        lab.set(0x3818, 4, 1);
    };
    assert_eq!(written_when_forbidden(send, 0x3810, TRANSMIT_RING), [(0, 0), (1, 1)]);
}

#[test]
fn card_that_may_not_access_memory_delivers_a_frame_when_it_may() {
    let receive = |lab: &Lab, link: &Scripted| {
        *link.incoming.lock().expect("no panic") = Some(Frame::exact(Header::default(), &frame(60)));
        lab.descriptor(RECEIVE_RING, [BUFFERS as u32, 0, 0, 0]);
        lab.set(0x2818, 4, 1);
    };
    assert_eq!(written_when_forbidden(receive, 0x2810, RECEIVE_RING), [(0, 0), (1, 1)]);
}

/// A chip whose driver makes room, silently, just after a frame has found none.
#[derive(Debug, Default)]
struct Scanty {
    delivered: usize,
    looked: AtomicUsize,
}

impl Chip for Scanty {
    fn read(&mut self, _bar: u8, _offset: u64, _size: usize) -> u64 {
        0
    }

    fn write(&mut self, _bar: u8, _offset: u64, _size: usize, _value: u64) -> Work {
        Work::Nothing
    }

    fn take_frame(&mut self, _map: &GuestMap, _frame: &mut Frame) -> bool {
        false
    }

    fn frame_sent(&mut self, _map: &GuestMap) {}

    fn has_room(&self, _map: &GuestMap) -> bool {
        // What has not been fetched is for the link to tell, which this one does not.
        self.delivered == 0 || self.looked.fetch_add(1, Ordering::Relaxed) != 0
    }

    fn deliver(&mut self, _map: &GuestMap, _frame: &[u8]) -> Delivery {
        self.delivered += 1;
        self.looked.store(0, Ordering::Relaxed);
        Delivery::Taken
    }

    fn makes_room_silently(&self) -> bool {
        true
    }

    fn interrupting(&mut self, _now: Instant) -> bool {
        self.delivered == 25
    }

    fn set_link(&mut self, _up: bool) {}

    fn reset(&mut self) {}

    fn save(&self) -> Saved {
        Vec::new()
    }

    fn load(&mut self, _saved: &[(String, Vec<u32>)]) -> Result<(), BadState> {
        Ok(())
    }
}

#[test]
fn room_made_while_the_thread_falls_asleep_is_found() {
    let link = Arc::new(Scripted::default());
    let on = Arc::clone(&link);
    let lab = Lab::on(on, Arc::new(Switch::default()).port().expect("a port"), Box::new(Scanty::default()), 0);
    let mut bytes = segments();
    bytes[16..18].copy_from_slice(&[1, 34]);
    let header = Header { flags: 1, gso_type: 1, hdr_len: 54, gso_size: 10, csum_start: 34, csum_offset: 16 };
    // The guest takes 25 frames instead, each of which waits in the card, where nothing else wakes it.
    *link.incoming.lock().expect("no panic") = Some(Frame::exact(header, &bytes));
    lab.card.set_link(true);
    lab.line.wait_for(true);
}

#[test]
fn chip_says_what_becomes_of_frames() {
    let ram = GuestRam::new();
    ram.set_slot(SlotConfig { size: RAM_BYTES, ..SlotConfig::default() }).expect("a slot");
    let mut chip = E1000::new(MAC, true);
    assert_eq!(chip.deliver(&ram.map(), &frame(60)), Delivery::NoRoom);
    for (register, value) in [(0x2800, RECEIVE_RING), (0x2808, 128), (0x2818, 7), (0x0100, 2)] {
        chip.write(0, register, 4, value);
    }
    assert_eq!(chip.deliver(&ram.map(), &frame(1515)), Delivery::TooLong);
    assert_eq!(chip.deliver(&ram.map(), &[0xff; 60]), Delivery::Refused);
    assert_eq!(chip.deliver(&ram.map(), &frame(1514)), Delivery::Taken);
    chip.write(0, 0x0100, 4, 2 | 1 << 5);
    assert_eq!(chip.deliver(&ram.map(), &frame(9000)), Delivery::Taken);
}

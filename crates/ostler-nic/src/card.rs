//! A chip between a bus and a cable, and the thread that moves its frames.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{fmt, io};

use ostler_engine::bus::BusDevice;
use ostler_engine::irq::Level;
use ostler_memory::{GuestMap, GuestRam};
use ostler_virtio::net::{Frame, Nic, Receiver, Sender};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::chip::{BadState, Chip, Delivery, Saved, Work};

/// How often a ring is looked at whose driver makes room without saying so.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// A controller, its interrupt pin, and its cable. Dropping it ends its thread.
pub struct Card {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Card").field("nic", &self.shared.nic).finish_non_exhaustive()
    }
}

/// Lock order: chip, then pin.
#[derive(Debug)]
struct Shared {
    nic: Arc<Nic>,
    ram: Arc<GuestRam>,
    inner: Mutex<Inner>,
    /// vCPUs that wait for `inner`; the thread lets them go first.
    waiting: AtomicU32,
    pin: Mutex<Pin>,
    doorbell: EventFd,
    stopping: AtomicBool,
}

#[derive(Debug)]
struct Inner {
    chip: Box<dyn Chip>,
    /// The function may read and write memory.
    master: bool,
    /// The thread has found nothing to send, so that it has to be told of more.
    sent_all: bool,
    /// It has found no room, likewise.
    starved: bool,
    /// It sleeps, or is about to.
    asleep: bool,
}

#[derive(Debug, Default)]
struct Pin {
    line: Option<Box<dyn Level>>,
    level: bool,
    disabled: bool,
}

impl Pin {
    fn drive(&self) {
        if let Some(line) = &self.line {
            line.set_level(self.level && !self.disabled);
        }
    }
}

impl Card {
    /// A card with `chip` on the cable of `nic`. Its thread is called `name`, at most 15 bytes.
    pub fn start(name: &str, chip: Box<dyn Chip>, nic: Arc<Nic>, ram: Arc<GuestRam>) -> io::Result<Self> {
        let inner = Inner { chip, master: false, sent_all: false, starved: false, asleep: false };
        let shared = Arc::new(Shared {
            nic: Arc::clone(&nic),
            ram,
            inner: Mutex::new(inner),
            waiting: AtomicU32::new(0),
            pin: Mutex::default(),
            doorbell: EventFd::new(EFD_NONBLOCK)?,
            stopping: AtomicBool::new(false),
        });
        let mut mover = Mover {
            shared: Arc::clone(&shared),
            receiver: Receiver::new(Arc::clone(&nic), 0),
            sender: Sender::new(nic, 0),
            frame: Frame::default(),
            stage: Stage::Idle,
        };
        let thread = thread::Builder::new().name(name.into()).spawn(move || mover.run())?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    pub fn nic(&self) -> &Nic {
        &self.shared.nic
    }

    /// The registers behind base address register `bar`.
    pub fn window(&self, bar: u8) -> Window {
        Window { shared: Arc::clone(&self.shared), bar }
    }

    /// Where the interrupt pin leads.
    pub fn connect(&self, line: Box<dyn Level>) {
        let mut pin = lock(&self.shared.pin);
        pin.line = Some(line);
        pin.drive();
    }

    /// The pin's level, whether or not it is disabled.
    pub fn interrupting(&self) -> bool {
        lock(&self.shared.pin).level
    }

    /// What the command register says: whether the pin is disabled, and memory may be accessed.
    pub fn command(&self, intx_disabled: bool, master: bool) {
        let mut inner = self.shared.enter();
        let begins = master && !inner.master;
        inner.master = master;
        let mut pin = lock(&self.shared.pin);
        if pin.disabled != intx_disabled {
            pin.disabled = intx_disabled;
            pin.drive();
        }
        drop(pin);
        drop(inner);
        if begins {
            self.shared.ring();
        }
    }

    /// The cable has a carrier or has lost it.
    pub fn set_link(&self, up: bool) {
        self.shared.change(|chip| chip.set_link(up));
    }

    pub fn reset(&self) {
        self.shared.change(|chip| chip.reset());
    }

    pub fn save(&self) -> Saved {
        self.shared.enter().chip.save()
    }

    pub fn load(&self, saved: &[(String, Vec<u32>)]) -> Result<(), BadState> {
        self.shared.change(|chip| chip.load(saved))
    }

    /// Ends the thread. Registers answer as before, and frames stay where they are.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.ring();
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            // A panic has printed its message.
            let _panicked = thread.join();
        }
        // The line may belong to others, too.
        lock(&self.shared.pin).line = None;
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// The chip, for a vCPU or the machine.
    fn enter(&self) -> MutexGuard<'_, Inner> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let inner = lock(&self.inner);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        inner
    }

    /// The chip, for the thread: whoever waits comes first.
    fn enter_last(&self) -> MutexGuard<'_, Inner> {
        while self.waiting.load(Ordering::Relaxed) != 0 {
            thread::yield_now();
        }
        lock(&self.inner)
    }

    /// Brings the pin in accord with the chip. The lock is held, so that levels change in order.
    fn settle(&self, inner: &mut Inner) {
        let level = inner.chip.interrupting(Instant::now());
        let mut pin = lock(&self.pin);
        if pin.level != level {
            pin.level = level;
            pin.drive();
        }
    }

    fn change<R>(&self, act: impl FnOnce(&mut dyn Chip) -> R) -> R {
        let mut inner = self.enter();
        let result = act(inner.chip.as_mut());
        self.settle(&mut inner);
        drop(inner);
        self.ring();
        result
    }

    fn read(&self, bar: u8, offset: u64, size: usize) -> u64 {
        let mut inner = self.enter();
        let value = inner.chip.read(bar, offset, size);
        self.settle(&mut inner);
        value
    }

    fn write(&self, bar: u8, offset: u64, size: usize, value: u64) {
        let mut inner = self.enter();
        let work = inner.chip.write(bar, offset, size, value);
        self.settle(&mut inner);
        let wanted = match work {
            Work::Nothing => false,
            Work::Transmit => inner.sent_all,
            Work::Receive => inner.starved,
            Work::Anything => true,
        };
        let ring = wanted || inner.asleep && inner.chip.wake_at().is_some();
        drop(inner);
        if ring {
            self.ring();
        }
    }

    fn ring(&self) {
        // A full counter has woken it already.
        let _full = self.doorbell.write(1);
    }
}

/// The registers of a card as the bus sees them.
#[derive(Clone, Debug)]
pub struct Window {
    shared: Arc<Shared>,
    bar: u8,
}

impl BusDevice for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let value = self.shared.read(self.bar, offset, data.len()).to_le_bytes();
        data.copy_from_slice(&value[..data.len()]);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut value = [0; 8];
        value[..data.len()].copy_from_slice(data);
        self.shared.write(self.bar, offset, data.len(), u64::from_le_bytes(value));
    }
}

/// How far a frame on its way from the driver is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// There is none.
    Idle,
    /// The link has not taken all of it yet.
    Held,
    /// The link has it, and the driver is yet to be told.
    Sent,
}

/// The card's thread.
#[derive(Debug)]
struct Mover {
    shared: Arc<Shared>,
    receiver: Receiver,
    sender: Sender,
    /// The frame that is being sent.
    frame: Frame,
    stage: Stage,
}

impl Mover {
    fn run(&mut self) {
        while !self.stopping() {
            let map = self.shared.ram.map();
            while (self.transmit(&map) | self.receive(&map)) && !self.stopping() {}
            drop(map);
            self.wait();
        }
    }

    fn stopping(&self) -> bool {
        self.shared.stopping.load(Ordering::Acquire)
    }

    /// Sends one frame; false when there is none, or it has to wait.
    fn transmit(&mut self, map: &GuestMap) -> bool {
        if self.stage == Stage::Idle {
            let mut inner = self.shared.enter_last();
            let taken = inner.master && inner.chip.take_frame(map, &mut self.frame);
            inner.sent_all = !taken;
            // What was wrong with a frame may have been told by an interrupt.
            self.shared.settle(&mut inner);
            if !taken {
                return false;
            }
            self.stage = Stage::Held;
        }
        if self.stage == Stage::Held {
            if !self.send() {
                return false;
            }
            self.stage = Stage::Sent;
        }
        let mut inner = self.shared.enter_last();
        if !inner.master {
            // The doorbell rings when it may write memory again.
            return false;
        }
        self.stage = Stage::Idle;
        inner.chip.frame_sent(map);
        self.shared.settle(&mut inner);
        true
    }

    fn send(&mut self) -> bool {
        if self.sender.owes() {
            return self.sender.flush();
        }
        if self.frame.header.fits(self.frame.bytes().len()) {
            return self.sender.send(&mut self.frame);
        }
        self.sender.nic.sent.fail_one();
        true
    }

    /// Hands over one frame; false when there is none, or no room for it.
    fn receive(&mut self, map: &GuestMap) -> bool {
        let mut inner = self.shared.enter_last();
        let room = inner.master && inner.chip.has_room(map);
        inner.starved = !room;
        drop(inner);
        if !room || !self.receiver.fetch() {
            return false;
        }
        let mut inner = self.shared.enter_last();
        // The driver may have forbidden it meanwhile.
        let delivery =
            if inner.master { inner.chip.deliver(map, self.receiver.frame().bytes()) } else { Delivery::NoRoom };
        if delivery == Delivery::NoRoom {
            inner.starved = true;
        }
        self.shared.settle(&mut inner);
        drop(inner);
        match delivery {
            Delivery::Taken => self.receiver.done(),
            Delivery::Refused => self.receiver.skip(),
            Delivery::TooLong => self.receiver.drop_frame(),
            Delivery::NoRoom => {}
        }
        delivery != Delivery::NoRoom
    }

    /// Sleeps until there is a reason not to.
    fn wait(&mut self) {
        let (timeout, readable) = self.fall_asleep();
        let none = (-1, 0);
        let source = if readable { self.receiver.source().unwrap_or(none) } else { none };
        let sink = if self.stage == Stage::Held { self.sender.nic.link.writable().unwrap_or(none) } else { none };
        let doorbell = self.shared.doorbell.as_raw_fd();
        if poll(&[(doorbell, libc::POLLIN), source, sink], timeout) {
            // Only this thread reads it.
            let _rings = self.shared.doorbell.read();
        }
        let mut inner = self.shared.enter_last();
        inner.asleep = false;
        self.shared.settle(&mut inner);
    }

    /// How long to sleep, and whether a frame that comes in is a reason not to.
    fn fall_asleep(&mut self) -> (Option<Duration>, bool) {
        let map = self.shared.ram.map();
        let mut inner = self.shared.enter_last();
        let pending = self.receiver.is_full();
        let room = inner.master && inner.chip.has_room(&map);
        // Who has a frame that did not fit waits for room, not for the next frame.
        let starved = !room || pending && inner.starved;
        inner.starved = starved;
        inner.asleep = true;
        let looks = (starved && inner.master && inner.chip.makes_room_silently()).then_some(LOOK_EVERY);
        let timer = inner.chip.wake_at().map(|at| at.saturating_duration_since(Instant::now()));
        let at_once = (pending && !starved).then_some(Duration::ZERO);
        let timeout = [looks, timer, at_once].into_iter().flatten().min();
        (timeout, !starved)
    }
}

/// Waits for one of the events, or the time; true when the first descriptor has its.
fn poll(entries: &[(RawFd, libc::c_short); 3], timeout: Option<Duration>) -> bool {
    // A negative descriptor is skipped.
    let mut entries = entries.map(|(fd, events)| libc::pollfd { fd, events, revents: 0 });
    let time = timeout
        .map(|time| libc::timespec { tv_sec: time.as_secs() as libc::time_t, tv_nsec: time.subsec_nanos().into() });
    let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: `entries` is an array of that many `pollfd`s and `time` null or a `timespec`; both live
    // through the call.
    let ready = unsafe { libc::ppoll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, time, std::ptr::null()) };
    ready > 0 && entries[0].revents != 0
}

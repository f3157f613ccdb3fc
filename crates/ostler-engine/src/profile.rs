//! Where the time of vCPUs goes, found out by looking at them again and again.
//!
//! A vCPU of which a profile is made says what it is doing in two words of memory ([`Published`]); a thread looks at
//! them about a thousand times a second and counts the time since its last look for what it sees. That costs the
//! guest a few stores where it changes from one thing to another, and one a block; nothing where no profile is made.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crate::vcpu::{VcpuError, VcpuHandle};

/// What a vCPU's thread is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Activity {
    /// Not running: paused, or between two runs.
    Paused = 0,
    Translated,
    Interpreter,
    /// Making code of guest code.
    Translation,
    /// Finding a page that the TLB does not know.
    TlbMiss,
    /// Waiting for a device's answer.
    Device,
    /// Asleep in HLT or MWAIT, or not started by the guest.
    Idle,
}

impl Activity {
    pub const ALL: [Self; 7] =
        [Self::Paused, Self::Translated, Self::Interpreter, Self::Translation, Self::TlbMiss, Self::Device, Self::Idle];

    pub fn name(self) -> &'static str {
        match self {
            Self::Paused => "paused",
            Self::Translated => "translated",
            Self::Interpreter => "interpreter",
            Self::Translation => "translation",
            Self::TlbMiss => "tlb_miss",
            Self::Device => "device",
            Self::Idle => "idle",
        }
    }

    /// Whether guest code waits for it to end, so that the block it is in is worth naming.
    fn has_place(self) -> bool {
        !matches!(self, Self::Paused | Self::Idle)
    }
}

/// What a vCPU says of itself. Its own thread writes it, with plain stores.
#[derive(Debug, Default)]
pub struct Published {
    activity: AtomicU32,
    /// The linear address of the block that runs.
    place: AtomicU64,
}

impl Published {
    /// Says what comes now; the answer is what was before.
    #[inline]
    pub fn begin(&self, activity: Activity) -> Activity {
        let before = self.activity();
        self.activity.store(activity as u32, Ordering::Relaxed);
        before
    }

    #[inline]
    pub fn set_place(&self, linear: u64) {
        self.place.store(linear, Ordering::Relaxed);
    }

    /// The word of the place, for translated code to store to.
    pub fn place_word(&self) -> *const AtomicU64 {
        &raw const self.place
    }

    pub fn activity(&self) -> Activity {
        Activity::ALL[self.activity.load(Ordering::Relaxed) as usize % Activity::ALL.len()]
    }

    pub fn place(&self) -> u64 {
        self.place.load(Ordering::Relaxed)
    }
}

/// Places told apart at most: a guest shall not make us remember without bound.
const MAX_PLACES: usize = 1 << 16;

/// Where the time of one vCPU went.
#[derive(Clone, Copy, Debug, Default)]
pub struct VcpuProfile {
    pub id: u32,
    /// By [`Activity`].
    pub ns: [u64; Activity::ALL.len()],
}

/// Where the time of several vCPUs went.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    pub vcpus: Vec<VcpuProfile>,
    /// Nanoseconds by the linear address of a block, of all vCPUs and address spaces together.
    pub places: HashMap<u64, u64>,
    /// Nanoseconds in blocks for which there was no room in `places`.
    pub elsewhere_ns: u64,
}

impl Profile {
    /// Counts `ns` for what `published` says.
    fn count(&mut self, index: usize, published: &Published, ns: u64) {
        let activity = published.activity();
        self.vcpus[index].ns[activity as usize] += ns;
        if !activity.has_place() {
            return;
        }
        let place = published.place();
        if self.places.len() < MAX_PLACES || self.places.contains_key(&place) {
            *self.places.entry(place).or_default() += ns;
        } else {
            self.elsewhere_ns += ns;
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    #[error("this accelerator does not say what its vCPUs do")]
    Unsupported,
    #[error("the host gives no thread for the profile")]
    Spawn(#[source] std::io::Error),
}

/// Looks at vCPUs until it is dropped.
#[derive(Debug)]
pub struct Profiler {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    watched: Vec<Arc<Published>>,
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug)]
struct State {
    profile: Profile,
    last: Instant,
    ends: bool,
}

/// Between two looks, on average.
const PERIOD: Duration = Duration::from_micros(1000);

impl Profiler {
    /// Has `vcpus`, none of which may be running, say what they do, and begins to look.
    pub fn start(vcpus: &[Arc<VcpuHandle>]) -> Result<Self, ProfileError> {
        let watched = vcpus.iter().map(|vcpu| vcpu.publish()?.ok_or(ProfileError::Unsupported));
        let watched = watched.collect::<Result<Vec<_>, _>>()?;
        let ids = vcpus.iter().map(|vcpu| VcpuProfile { id: vcpu.id(), ..VcpuProfile::default() });
        let profile = Profile { vcpus: ids.collect(), ..Profile::default() };
        let state = State { profile, last: Instant::now(), ends: false };
        let shared = Arc::new(Shared { watched, state: Mutex::new(state), ended: Condvar::new() });
        let looker = Arc::clone(&shared);
        let thread = Builder::new().name("profiler".into()).spawn(move || looker.look_until_the_end());
        Ok(Self { thread: Some(thread.map_err(ProfileError::Spawn)?), shared })
    }

    /// What was seen up to now.
    pub fn profile(&self) -> Profile {
        let mut state = self.shared.lock();
        if !state.ends {
            state.look(&self.shared.watched);
        }
        state.profile.clone()
    }

    /// Looks no more; the profile stays.
    pub fn stop(&self) {
        let mut state = self.shared.lock();
        if !state.ends {
            state.look(&self.shared.watched);
        }
        state.ends = true;
        self.shared.ended.notify_all();
    }
}

impl Drop for Profiler {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            // What it had to say is in the profile, whether it panicked or not.
            let _panicked = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn look_until_the_end(&self) {
        let mut periods = Periods(0x9e37_79b9);
        let mut state = self.lock();
        while !state.ends {
            let waited = self.ended.wait_timeout(state, periods.next());
            (state, _) = waited.unwrap_or_else(|poisoned| poisoned.into_inner());
            if !state.ends {
                state.look(&self.watched);
            }
        }
    }
}

impl State {
    fn look(&mut self, watched: &[Arc<Published>]) {
        let now = Instant::now();
        let ns = now.duration_since(self.last).as_nanos() as u64;
        self.last = now;
        for (index, published) in watched.iter().enumerate() {
            self.profile.count(index, published, ns);
        }
    }
}

/// Times between looks, from half of [`PERIOD`] to one and a half, so that a guest's timer does not keep step.
struct Periods(u32);

impl Periods {
    fn next(&mut self) -> Duration {
        // Marsaglia's xorshift.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        PERIOD / 2 + PERIOD * (self.0 >> 16) / (1 << 16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{HLT, toy_vcpu};

    fn profile() -> Profile {
        Profile { vcpus: vec![VcpuProfile::default()], ..Profile::default() }
    }

    #[test]
    fn time_counts_for_what_the_vcpu_does_and_for_its_place_unless_it_sleeps() {
        let (mut profile, published) = (profile(), Published::default());
        published.set_place(0x1000);
        assert_eq!(published.begin(Activity::Translated), Activity::Paused);
        profile.count(0, &published, 5);
        assert_eq!(published.begin(Activity::Idle), Activity::Translated);
        profile.count(0, &published, 7);
        assert_eq!(profile.vcpus[0].ns, [0, 5, 0, 0, 0, 0, 7]);
        assert_eq!(profile.places, HashMap::from([(0x1000, 5)]));
    }

    #[test]
    fn places_without_end_are_counted_together() {
        let (mut profile, published) = (profile(), Published::default());
        published.begin(Activity::Interpreter);
        for place in 0..MAX_PLACES as u64 + 3 {
            published.set_place(place);
            profile.count(0, &published, 2);
        }
        published.set_place(0);
        profile.count(0, &published, 2);
        assert_eq!((profile.places.len(), profile.elsewhere_ns, profile.places[&0]), (MAX_PLACES, 6, 4));
    }

    #[test]
    fn periods_are_a_thousandth_of_a_second_on_average_and_not_all_alike() {
        let mut periods = Periods(1);
        let all: Vec<_> = (0..1000).map(|_| periods.next()).collect();
        assert!(all.iter().all(|period| *period >= PERIOD / 2 && *period < PERIOD * 3 / 2));
        let mean = all.iter().sum::<Duration>() / 1000;
        assert!(mean > PERIOD * 9 / 10 && mean < PERIOD * 11 / 10, "{mean:?}");
    }

    #[test]
    fn vcpu_that_does_not_say_what_it_does_is_refused() {
        let vcpu = Arc::new(VcpuHandle::new(toy_vcpu(&[&HLT])));
        assert!(matches!(Profiler::start(&[vcpu]), Err(ProfileError::Unsupported)));
    }

    #[test]
    fn profile_adds_up_to_the_time_that_passed() {
        let (began, published) = (Instant::now(), Arc::new(Published::default()));
        let state = State { profile: profile(), last: began, ends: false };
        let shared = Arc::new(Shared { watched: vec![published], state: Mutex::new(state), ended: Condvar::new() });
        let looker = Arc::clone(&shared);
        let thread = std::thread::spawn(move || looker.look_until_the_end());
        let profiler = Profiler { shared, thread: Some(thread) };
        std::thread::sleep(Duration::from_millis(5));
        profiler.stop();
        let (counted, passed) = (profiler.profile().vcpus[0].ns[0], began.elapsed().as_nanos() as u64);
        assert!(counted >= 5_000_000 && counted <= passed, "{counted} of {passed}");
        assert_eq!(profiler.profile().vcpus[0].ns[0], counted, "it looks no more");
    }
}

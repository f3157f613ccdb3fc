//! The 8254 (Intel 231164) and the half of port 0x61 that belongs to it.
//!
//! Nothing counts: every read computes from the VM's clock. While the gate of a counter in mode 0,
//! 2, 3 or 4 is low, counting stands still, and `count_load_time_ns` holds the nanoseconds counted
//! so far instead of a point in time. A `count` of 0 stands for "no count written since the control
//! word". Not modelled: a count written to a running counter takes effect at once, also in the modes
//! where the chip waits for the end of the period; and lost ticks are not caught up.

use ostler_engine::AccelError;
use ostler_engine::regs::PitChannelState;

use crate::timer::MIN_PERIOD_NS;

/// The PC's timer clock, 14.31818 MHz / 12.
const FREQUENCY_HZ: u128 = 1_193_182;
const NS_PER_SECOND: u128 = 1_000_000_000;

/// How a counter's two bytes are accessed, as in the control word; `MSB_OF_WORD` is the second
/// half of a `WORD` access.
mod access {
    pub const LSB: u8 = 1;
    pub const MSB: u8 = 2;
    pub const WORD: u8 = 3;
    pub const MSB_OF_WORD: u8 = 4;
}

/// Port 0x61.
mod speaker {
    pub const GATE: u8 = 1 << 0;
    /// Gate, speaker data and the two NMI enables.
    pub const WRITABLE: u8 = 0x0F;
    pub const REFRESH: u8 = 1 << 4;
    pub const OUT: u8 = 1 << 5;
    /// The time between two DRAM refreshes, which toggle a bit.
    pub const REFRESH_NS: u64 = 15_085;
}

#[derive(Debug)]
pub struct Pit {
    channels: [PitChannelState; 3],
    speaker: u8,
    /// When counter 0's output rises next. Kept, so that a rise that is due cannot get lost.
    rise_ns: Option<u64>,
}

impl Pit {
    pub fn new() -> Self {
        let channel = |gate| PitChannelState {
            mode: 3,
            rw_mode: access::WORD,
            read_state: access::WORD,
            write_state: access::WORD,
            gate,
            ..PitChannelState::default()
        };
        Self { channels: [channel(1), channel(1), channel(0)], speaker: 0, rise_ns: None }
    }

    /// Reads port 0x40 + `offset`.
    pub fn read(&mut self, offset: u16, now_ns: u64) -> u8 {
        match self.channels.get_mut(usize::from(offset)) {
            Some(channel) => read_counter(channel, now_ns),
            // The control word cannot be read.
            None => 0,
        }
    }

    pub fn write(&mut self, offset: u16, value: u8, now_ns: u64) {
        match self.channels.get_mut(usize::from(offset)) {
            Some(channel) => write_counter(channel, value, now_ns),
            None => self.write_control(value, now_ns),
        }
        let reads_only = offset == 3 && (value >> 6 == 3 || value >> 4 & 3 == 0);
        let channel = if offset == 3 { u16::from(value >> 6) } else { offset };
        if channel == 0 && !reads_only {
            self.rise_ns = self.next_rise_ns(now_ns);
        }
    }

    pub fn read_speaker(&self, now_ns: u64) -> u8 {
        let refresh = if (now_ns / speaker::REFRESH_NS).is_multiple_of(2) { 0 } else { speaker::REFRESH };
        let out = if output(&self.channels[2], now_ns) { speaker::OUT } else { 0 };
        self.speaker | refresh | out
    }

    pub fn write_speaker(&mut self, value: u8, now_ns: u64) {
        self.speaker = value & speaker::WRITABLE;
        set_gate(&mut self.channels[2], value & speaker::GATE, now_ns);
    }

    /// When [`Pit::take_rise`] has to be called next.
    pub fn rise_ns(&self) -> Option<u64> {
        self.rise_ns
    }

    /// Whether the output of counter 0 has risen since the last call; several times count once.
    pub fn take_rise(&mut self, now_ns: u64) -> bool {
        if self.rise_ns.is_none_or(|rise_ns| rise_ns > now_ns) {
            return false;
        }
        self.rise_ns = self.next_rise_ns(now_ns);
        true
    }

    /// When the output of counter 0 rises next; not sooner than [`MIN_PERIOD_NS`] from now when it
    /// does so periodically at a shorter period.
    fn next_rise_ns(&self, now_ns: u64) -> Option<u64> {
        let channel = &self.channels[0];
        let count = u64::from(channel.count);
        let load_ns = channel.count_load_time_ns;
        if count == 0 || is_stopped(channel) {
            return None;
        }
        let ticks = match channel.mode {
            0 | 4 => Some(count).filter(|_| elapsed_ticks(channel, now_ns) < count)?,
            2 | 3 => {
                let fast = ns_from_ticks(count) < MIN_PERIOD_NS;
                let earliest_ns = if fast { now_ns.saturating_add(MIN_PERIOD_NS) } else { now_ns };
                (elapsed_ticks(channel, earliest_ns) / count + 1).saturating_mul(count)
            }
            // Counter 0 has no gate that could trigger the other modes.
            _ => return None,
        };
        Some((load_ns.max(0) as u64).saturating_add(ns_from_ticks(ticks)))
    }

    pub fn state(&self) -> ([PitChannelState; 3], u8) {
        (self.channels, self.speaker)
    }

    pub fn set_state(&mut self, channels: &[PitChannelState; 3], speaker: u8, now_ns: u64) {
        self.channels = *channels;
        self.rise_ns = self.next_rise_ns(now_ns);
        self.speaker = speaker & speaker::WRITABLE;
    }

    fn write_control(&mut self, value: u8, now_ns: u64) {
        let access = value >> 4 & 3;
        match (self.channels.get_mut(usize::from(value >> 6)), access) {
            (None, _) => self.read_back(value, now_ns),
            (Some(channel), 0) => latch_count(channel, now_ns),
            (Some(channel), _) => program(channel, access, value, now_ns),
        }
    }

    fn read_back(&mut self, value: u8, now_ns: u64) {
        for (index, channel) in self.channels.iter_mut().enumerate() {
            if value & 2 << index == 0 {
                continue;
            }
            if value & 0x20 == 0 {
                latch_count(channel, now_ns);
            }
            if value & 0x10 == 0 && channel.status_latched == 0 {
                channel.status = status(channel, now_ns);
                channel.status_latched = 1;
            }
        }
    }
}

/// Refuses a state no counter can be in.
pub fn check(channel: &PitChannelState) -> Result<(), AccelError> {
    let fields = [
        ("PIT count", channel.count, 0x1_0000),
        ("PIT mode", u32::from(channel.mode), 5),
        ("PIT rw_mode", u32::from(channel.rw_mode), 3),
        ("PIT read_state", u32::from(channel.read_state), 4),
        ("PIT write_state", u32::from(channel.write_state), 4),
        ("PIT count_latched", u32::from(channel.count_latched), 3),
        ("PIT bcd", u32::from(channel.bcd), 1),
        ("PIT gate", u32::from(channel.gate), 1),
    ];
    match fields.iter().find(|(_, value, limit)| value > limit) {
        Some(&(what, value, _)) => Err(AccelError::BadState { what, value: u64::from(value) }),
        None => Ok(()),
    }
}

fn ticks_from_ns(ns: u64) -> u64 {
    (u128::from(ns) * FREQUENCY_HZ / NS_PER_SECOND) as u64
}

/// The first nanosecond at which `ticks` have passed.
fn ns_from_ticks(ticks: u64) -> u64 {
    u64::try_from((u128::from(ticks) * NS_PER_SECOND).div_ceil(FREQUENCY_HZ)).unwrap_or(u64::MAX)
}

/// Whether a low gate keeps the counter from counting now.
fn is_stopped(channel: &PitChannelState) -> bool {
    channel.gate == 0 && !is_triggered(channel)
}

/// Modes 1 and 5: counting starts at a rising gate, not when the count is written.
fn is_triggered(channel: &PitChannelState) -> bool {
    matches!(channel.mode, 1 | 5)
}

fn elapsed_ns(channel: &PitChannelState, now_ns: u64) -> u64 {
    let load_ns = channel.count_load_time_ns;
    let elapsed = if is_stopped(channel) { load_ns } else { clamp(now_ns).saturating_sub(load_ns) };
    elapsed.max(0) as u64
}

fn elapsed_ticks(channel: &PitChannelState, now_ns: u64) -> u64 {
    ticks_from_ns(elapsed_ns(channel, now_ns))
}

fn clamp(ns: u64) -> i64 {
    i64::try_from(ns).unwrap_or(i64::MAX)
}

fn modulus(channel: &PitChannelState) -> u64 {
    if channel.bcd != 0 { 10_000 } else { 0x1_0000 }
}

/// What the counting element shows, encoded as the counter counts (binary or BCD).
fn counter(channel: &PitChannelState, now_ns: u64) -> u16 {
    let count = u64::from(channel.count);
    if count == 0 {
        return 0;
    }
    let ticks = elapsed_ticks(channel, now_ns);
    let modulus = modulus(channel);
    let value = match channel.mode {
        2 => count - ticks % count,
        // Counts down by two, twice per period.
        3 => count - ticks.wrapping_mul(2) % count,
        _ => count + modulus - ticks % modulus,
    };
    let value = (value % modulus) as u16;
    if channel.bcd != 0 { bcd_from_binary(value) } else { value }
}

fn output(channel: &PitChannelState, now_ns: u64) -> bool {
    let count = u64::from(channel.count);
    if count == 0 {
        return channel.mode != 0;
    }
    let ticks = elapsed_ticks(channel, now_ns);
    match channel.mode {
        0 | 1 => ticks >= count,
        2 => is_stopped(channel) || ticks % count != count - 1,
        3 => is_stopped(channel) || ticks % count < count.div_ceil(2),
        // A strobe: low for the one tick after the count ran out.
        _ => ticks != count,
    }
}

fn status(channel: &PitChannelState, now_ns: u64) -> u8 {
    let out = u8::from(output(channel, now_ns));
    let null_count = u8::from(channel.count == 0);
    out << 7 | null_count << 6 | channel.rw_mode << 4 | channel.mode << 1 | channel.bcd
}

fn latch_count(channel: &mut PitChannelState, now_ns: u64) {
    if channel.count_latched == 0 {
        channel.latched_count = counter(channel, now_ns);
        channel.count_latched = channel.rw_mode;
    }
}

fn program(channel: &mut PitChannelState, access: u8, value: u8, now_ns: u64) {
    channel.rw_mode = access;
    channel.read_state = access;
    channel.write_state = access;
    // Modes 6 and 7 are 2 and 3: the highest bit does not matter there.
    channel.mode = if value & 4 != 0 { value >> 1 & 3 } else { value >> 1 & 7 };
    channel.bcd = value & 1;
    channel.count = 0;
    channel.count_latched = 0;
    channel.status_latched = 0;
    // Long ago: a counter that waits for its trigger has its output high, as after running out.
    let waiting = ns_from_ticks(0x2_0000) as i64;
    channel.count_load_time_ns = if is_triggered(channel) { clamp(now_ns).saturating_sub(waiting) } else { 0 };
}

fn read_counter(channel: &mut PitChannelState, now_ns: u64) -> u8 {
    if channel.status_latched != 0 {
        channel.status_latched = 0;
        return channel.status;
    }
    if channel.count_latched != 0 {
        let [low, high] = channel.latched_count.to_le_bytes();
        let (byte, left) = match channel.count_latched {
            access::LSB => (low, 0),
            access::MSB => (high, 0),
            _ => (low, access::MSB),
        };
        channel.count_latched = left;
        return byte;
    }
    let [low, high] = counter(channel, now_ns).to_le_bytes();
    let (byte, next) = match channel.read_state {
        access::WORD => (low, access::MSB_OF_WORD),
        access::MSB_OF_WORD => (high, access::WORD),
        access::MSB => (high, access::MSB),
        _ => (low, access::LSB),
    };
    channel.read_state = next;
    byte
}

fn write_counter(channel: &mut PitChannelState, value: u8, now_ns: u64) {
    match channel.write_state {
        access::WORD => {
            channel.write_latch = value;
            channel.write_state = access::MSB_OF_WORD;
            if channel.mode == 0 {
                // The first byte stops the counting in mode 0.
                channel.count = 0;
            }
        }
        access::MSB_OF_WORD => {
            channel.write_state = access::WORD;
            load(channel, u16::from_le_bytes([channel.write_latch, value]), now_ns);
        }
        access::MSB => load(channel, u16::from(value) << 8, now_ns),
        _ => load(channel, u16::from(value), now_ns),
    }
}

fn load(channel: &mut PitChannelState, written: u16, now_ns: u64) {
    let count = if channel.bcd != 0 { binary_from_bcd(written) } else { u32::from(written) };
    channel.count = if count == 0 { modulus(channel) as u32 } else { count };
    if !is_triggered(channel) {
        channel.count_load_time_ns = if is_stopped(channel) { 0 } else { clamp(now_ns) };
    }
}

fn set_gate(channel: &mut PitChannelState, gate: u8, now_ns: u64) {
    if gate == channel.gate {
        return;
    }
    let counted = clamp(elapsed_ns(channel, now_ns));
    channel.gate = gate;
    let now = clamp(now_ns);
    channel.count_load_time_ns = match (channel.mode, gate) {
        (1 | 5, 0) => channel.count_load_time_ns,
        (_, 0) => counted,
        (0 | 4, _) => now.saturating_sub(counted),
        // A rising gate starts these modes anew.
        _ => now,
    };
}

fn binary_from_bcd(bcd: u16) -> u32 {
    (0..4).rev().fold(0, |value, digit| value * 10 + u32::from(bcd >> (digit * 4) & 0xF)) % 10_000
}

fn bcd_from_binary(value: u16) -> u16 {
    (value / 1000 % 10) << 12 | (value / 100 % 10) << 8 | (value / 10 % 10) << 4 | (value % 10)
}

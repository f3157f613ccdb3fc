//! The two cascaded 8259A of a PC (Intel 231468, with the ELCR of the PIIX/ICH).
//!
//! Inputs are levels; "edge" inputs latch their request until it is acknowledged, even when the
//! line falls before, as every emulation does: devices here pulse. The slave's output drives the
//! master's input 2 as a level. Not modelled: MCS-80/85 mode, the buffered-mode pins, LTIM (the
//! ELCR rules the trigger mode on a PC), and slave ids in ICW3 (the wiring is fixed).

use ostler_engine::AccelError;
use ostler_engine::regs::PicState;

const CASCADE: u8 = 2;
/// Which inputs may be level-triggered: not the timer, the keyboard, the cascade, RTC and FPU.
const ELCR_MASKS: [u8; 2] = [0xF8, 0xDE];
/// No request, or nothing in service.
const NOTHING: u8 = 8;

/// What the next write to the data port is, in `PicState::init_state`.
mod expects {
    pub const OCW1: u8 = 0;
    pub const ICW2: u8 = 1;
    pub const ICW3: u8 = 2;
    pub const ICW4: u8 = 3;
    /// ICW2 of a chip that was told it is the only one, so no ICW3 follows.
    pub const ICW2_SINGLE: u8 = 4;
}

/// Master and slave.
#[derive(Debug)]
pub struct PicPair {
    chips: [PicState; 2],
}

impl PicPair {
    /// All inputs are masked until somebody initializes the chips: before, they have no vectors.
    pub fn new() -> Self {
        Self { chips: ELCR_MASKS.map(|elcr_mask| PicState { elcr_mask, imr: 0xFF, ..PicState::default() }) }
    }

    /// The INTR output of the master.
    pub fn output(&self) -> bool {
        request(&self.chips[0], true).is_some()
    }

    /// Sets the level of input `irq` of 0..16; the cascade input has no line of its own.
    pub fn set_line(&mut self, irq: u8, level: bool) {
        if irq != CASCADE && irq < 16 {
            set_input(&mut self.chips[usize::from(irq >> 3)], irq & 7, level);
            self.update_cascade();
        }
    }

    /// INTA: accepts the request with the highest priority and returns its vector. Without a
    /// request, the answer is input 7's vector, as the chip gives it.
    pub fn acknowledge(&mut self) -> u8 {
        let [master, slave] = &mut self.chips;
        let vector = match request(master, true) {
            Some(CASCADE) => {
                accept(master, CASCADE);
                let irq = request(slave, false);
                irq.inspect(|&irq| accept(slave, irq));
                slave.irq_base | irq.unwrap_or(7)
            }
            Some(irq) => {
                accept(master, irq);
                master.irq_base | irq
            }
            None => master.irq_base | 7,
        };
        self.update_cascade();
        vector
    }

    /// Reads port 0x20 + `offset` of chip 0, or 0xA0 + `offset` of chip 1.
    pub fn read(&mut self, chip: usize, offset: u16) -> u8 {
        let pic = &mut self.chips[chip & 1];
        if pic.poll != 0 {
            pic.poll = 0;
            let irq = request(pic, chip & 1 == 0);
            irq.inspect(|&irq| accept(pic, irq));
            self.update_cascade();
            return irq.map_or(0, |irq| 0x80 | irq);
        }
        match (offset & 1, pic.read_reg_select) {
            (1, _) => pic.imr,
            (_, 0) => pic.irr,
            _ => pic.isr,
        }
    }

    pub fn write(&mut self, chip: usize, offset: u16, value: u8) {
        let pic = &mut self.chips[chip & 1];
        if offset & 1 != 0 {
            write_data(pic, value);
        } else if value & 0x10 != 0 {
            write_icw1(pic, value);
        } else if value & 0x08 != 0 {
            write_ocw3(pic, value);
        } else {
            write_ocw2(pic, value);
        }
        self.update_cascade();
    }

    pub fn read_elcr(&self, chip: usize) -> u8 {
        self.chips[chip & 1].elcr
    }

    pub fn write_elcr(&mut self, chip: usize, value: u8) {
        let pic = &mut self.chips[chip & 1];
        pic.elcr = value & pic.elcr_mask;
        // An input that becomes level-triggered requests exactly while its line is high.
        pic.irr = pic.irr & !pic.elcr | pic.last_irr & pic.elcr;
        self.update_cascade();
    }

    pub fn state(&self) -> [PicState; 2] {
        self.chips
    }

    pub fn set_state(&mut self, states: &[PicState; 2]) {
        self.chips = *states;
        for (pic, elcr_mask) in self.chips.iter_mut().zip(ELCR_MASKS) {
            pic.elcr_mask = elcr_mask;
            pic.elcr &= elcr_mask;
            pic.irq_base &= 0xF8;
        }
        self.update_cascade();
    }

    fn update_cascade(&mut self) {
        let [master, slave] = &mut self.chips;
        if request(slave, false).is_some() {
            master.irr |= 1 << CASCADE;
        } else {
            master.irr &= !(1 << CASCADE);
        }
    }
}

/// Refuses a state no 8259A can be in.
pub fn check(state: &PicState) -> Result<(), AccelError> {
    let bad = |what, value: u8| Err(AccelError::BadState { what, value: u64::from(value) });
    if state.init_state > expects::ICW2_SINGLE {
        return bad("PIC init_state", state.init_state);
    }
    if state.priority_add > 7 {
        return bad("PIC priority_add", state.priority_add);
    }
    Ok(())
}

/// The priority of the most urgent set bit of `lines`: 0 is the highest, [`NOTHING`] when none is set.
fn priority(pic: &PicState, lines: u8) -> u8 {
    lines.rotate_right(u32::from(pic.priority_add)).trailing_zeros() as u8
}

fn line_of(pic: &PicState, priority: u8) -> u8 {
    (priority + pic.priority_add) & 7
}

/// The input whose request the chip passes on, if any.
fn request(pic: &PicState, is_master: bool) -> Option<u8> {
    let requested = priority(pic, pic.irr & !pic.imr);
    let mut in_service = pic.isr;
    if pic.special_mask != 0 {
        in_service &= !pic.imr;
    }
    let busy = priority(pic, in_service);
    // The slave has sorted its requests already: a further one of it is the more urgent one.
    let nested = is_master && pic.special_fully_nested_mode != 0 && line_of(pic, requested) == CASCADE;
    (requested < busy || nested && requested == busy && requested != NOTHING).then(|| line_of(pic, requested))
}

fn set_input(pic: &mut PicState, line: u8, level: bool) {
    let bit = 1 << line;
    if level {
        if pic.last_irr & bit == 0 || pic.elcr & bit != 0 {
            pic.irr |= bit;
        }
        pic.last_irr |= bit;
    } else {
        pic.irr &= !(pic.elcr & bit);
        pic.last_irr &= !bit;
    }
}

fn accept(pic: &mut PicState, line: u8) {
    let bit = 1 << line;
    if pic.auto_eoi == 0 {
        pic.isr |= bit;
    } else if pic.rotate_on_auto_eoi != 0 {
        pic.priority_add = (line + 1) & 7;
    }
    pic.irr &= !bit | pic.elcr;
}

fn write_icw1(pic: &mut PicState, value: u8) {
    *pic = PicState {
        // The edge detectors start anew, so that a line must fall before it requests again.
        last_irr: pic.last_irr,
        irr: pic.irr & pic.elcr,
        irq_base: pic.irq_base,
        elcr: pic.elcr,
        elcr_mask: pic.elcr_mask,
        init4: value & 1,
        init_state: if value & 2 != 0 { expects::ICW2_SINGLE } else { expects::ICW2 },
        ..PicState::default()
    };
}

fn write_data(pic: &mut PicState, value: u8) {
    let after_icw3 = if pic.init4 != 0 { expects::ICW4 } else { expects::OCW1 };
    match pic.init_state {
        expects::ICW2 => {
            pic.irq_base = value & 0xF8;
            pic.init_state = expects::ICW3;
        }
        expects::ICW2_SINGLE => {
            pic.irq_base = value & 0xF8;
            pic.init_state = after_icw3;
        }
        expects::ICW3 => pic.init_state = after_icw3,
        expects::ICW4 => {
            pic.special_fully_nested_mode = value >> 4 & 1;
            pic.auto_eoi = value >> 1 & 1;
            pic.init_state = expects::OCW1;
        }
        _ => pic.imr = value,
    }
}

fn write_ocw2(pic: &mut PicState, value: u8) {
    let line = value & 7;
    match value >> 5 {
        command @ (0 | 4) => pic.rotate_on_auto_eoi = command >> 2,
        command @ (1 | 5) => non_specific_eoi(pic, command == 5),
        3 => pic.isr &= !(1 << line),
        6 => pic.priority_add = (line + 1) & 7,
        7 => {
            pic.isr &= !(1 << line);
            pic.priority_add = (line + 1) & 7;
        }
        _ => {}
    }
}

fn non_specific_eoi(pic: &mut PicState, rotate: bool) {
    // In special mask mode, a masked level is not the one that is being ended.
    let candidates = if pic.special_mask != 0 { pic.isr & !pic.imr } else { pic.isr };
    let ended = priority(pic, candidates);
    if ended == NOTHING {
        return;
    }
    let line = line_of(pic, ended);
    pic.isr &= !(1 << line);
    if rotate {
        pic.priority_add = (line + 1) & 7;
    }
}

fn write_ocw3(pic: &mut PicState, value: u8) {
    pic.poll = value >> 2 & 1;
    if value & 2 != 0 {
        pic.read_reg_select = value & 1;
    }
    if value & 0x40 != 0 {
        pic.special_mask = value >> 5 & 1;
    }
}

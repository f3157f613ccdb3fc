//! Emulated Ethernet controllers, for guests without virtio drivers.
//!
//! A [`Chip`] is registers and descriptor rings: state, and what an access or a frame does to it. A
//! [`Card`] puts it between a bus and a cable: vCPUs reach its registers through [`Window`]s, and one
//! thread moves frames between its rings and the link, by the same [`ostler_virtio::net`] parts that
//! serve virtio cards. All that a guest writes is hostile: rings are bounded by their registers, and
//! what points to no memory is as a bus without anybody on it.
//!
//! * [`e1000`]: Intel's 82540EM;
//! * [`rtl8139`]: Realtek's RTL8139C+ and the plain RTL8139.

mod card;
mod chip;
mod dma;
pub mod e1000;
mod eeprom;
mod packet;
pub mod rtl8139;

pub use card::{Card, Window};
pub use chip::{BadState, Chip, Delivery, Saved, Work};
pub use e1000::E1000;
pub use rtl8139::Rtl8139;

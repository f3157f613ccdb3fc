//! Message-signalled interrupts: rows of MSI-X tables, and the interrupt numbers that stand for messages.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::{read, retry_on_intr};

use crate::accel::{AccelError, Msi, Result, Vm};
use crate::irq::{FIRST_MESSAGE, Interrupt, IrqFd, LAST_MESSAGE, MsiRouteEntry, check_routes};

/// The interrupt numbers of one VM that stand for messages: those that its user chose, and those of routes that
/// follow eventfds.
#[derive(Debug)]
pub struct Messages {
    vm: Arc<dyn Vm>,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    chosen: Vec<MsiRouteEntry>,
    taken: BTreeMap<u32, Msi>,
}

impl Table {
    fn entries(&self) -> Vec<MsiRouteEntry> {
        let taken = self.taken.iter().map(|(gsi, msi)| MsiRouteEntry { gsi: *gsi, msi: *msi });
        self.chosen.iter().copied().chain(taken).collect()
    }

    /// Numbers are taken from the last one down: those who choose begin at the first.
    fn free(&self) -> Option<u32> {
        let is_free = |gsi: &u32| !self.taken.contains_key(gsi) && self.chosen.iter().all(|entry| entry.gsi != *gsi);
        (FIRST_MESSAGE..LAST_MESSAGE).rev().find(is_free)
    }
}

impl Messages {
    pub fn new(vm: Arc<dyn Vm>) -> Arc<Self> {
        Arc::new(Self { vm, table: Mutex::default() })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the messages whose numbers the VM's user chose.
    pub fn choose(&self, entries: &[MsiRouteEntry]) -> Result<()> {
        check_routes(entries)?;
        let mut table = self.table();
        if let Some(clash) = entries.iter().find(|entry| table.taken.contains_key(&entry.gsi)) {
            return Err(AccelError::BadState { what: "the number of a message", value: clash.gsi.into() });
        }
        let before = std::mem::replace(&mut table.chosen, entries.to_vec());
        self.tell(&table).inspect_err(|_| table.chosen = before)
    }

    fn take(&self, msi: Msi) -> Result<u32> {
        let mut table = self.table();
        let gsi = table.free().ok_or_else(|| AccelError::Unavailable("every number of a message is in use".into()))?;
        table.taken.insert(gsi, msi);
        match self.tell(&table) {
            Ok(()) => Ok(gsi),
            Err(error) => {
                table.taken.remove(&gsi);
                Err(error)
            }
        }
    }

    fn change(&self, gsi: u32, msi: Msi) -> Result<()> {
        let mut table = self.table();
        let before = table.taken.insert(gsi, msi);
        if before == Some(msi) {
            return Ok(());
        }
        self.tell(&table).inspect_err(|_| {
            // One that is refused would have all others refused.
            if let Some(before) = before {
                table.taken.insert(gsi, before);
            }
        })
    }

    fn release(&self, gsi: u32) {
        let mut table = self.table();
        table.taken.remove(&gsi);
        // What is left was taken before: there is nothing new to refuse.
        let _told = self.tell(&table);
    }

    fn tell(&self, table: &Table) -> Result<()> {
        self.vm.set_msi_routes(&table.entries())
    }
}

/// One message-signalled interrupt: what a row of an MSI-X table says, and its pending bit.
#[derive(Debug)]
pub struct MsiRoute {
    messages: Arc<Messages>,
    /// One lock makes a new address, its data and the mask visible together.
    row: Mutex<Row>,
}

#[derive(Debug)]
struct Row {
    msi: Msi,
    masked: bool,
    pending: bool,
    followed: Option<Followed>,
}

/// Eventfds that send the message by themselves, unless it is masked.
#[derive(Debug)]
struct Followed {
    gsi: u32,
    events: Vec<Arc<OwnedFd>>,
}

impl Row {
    /// While it is masked, nobody else empties the eventfds: what was written to them is pending.
    fn collect(&mut self) {
        let written = self.followed.iter().flat_map(|followed| &followed.events).filter(|event| was_written(event));
        // Each of them is emptied.
        self.pending |= written.count() != 0;
    }
}

fn was_written(event: &OwnedFd) -> bool {
    retry_on_intr(|| read(event, &mut [0; 8])).is_ok()
}

impl MsiRoute {
    /// A route that is masked, as MSI-X entries are after reset (PCI 3.0, 6.8.2.9).
    pub fn new(messages: Arc<Messages>) -> Self {
        let row = Row { msi: Msi::default(), masked: true, pending: false, followed: None };
        Self { messages, row: Mutex::new(row) }
    }

    fn vm(&self) -> &dyn Vm {
        &*self.messages.vm
    }

    fn row(&self) -> MutexGuard<'_, Row> {
        self.row.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn msi(&self) -> Msi {
        self.row().msi
    }

    /// Replaces the message.
    pub fn update(&self, msi: Msi) {
        let mut row = self.row();
        row.msi = msi;
        if let (Some(followed), false) = (&row.followed, row.masked) {
            self.vm().unbind_irqfd(followed.gsi);
            self.bind_all(followed, msi);
        }
    }

    pub fn is_masked(&self) -> bool {
        self.row().masked
    }

    /// Masks or unmasks; an interrupt that is pending fires when the mask goes.
    pub fn set_masked(&self, masked: bool) {
        let mut row = self.row();
        let was_masked = std::mem::replace(&mut row.masked, masked);
        match &row.followed {
            Some(followed) if masked && !was_masked => {
                self.vm().unbind_irqfd(followed.gsi);
            }
            Some(followed) if was_masked && !masked => self.bind_all(followed, row.msi),
            _ => {}
        }
        if !masked && std::mem::take(&mut row.pending) {
            let msi = row.msi;
            drop(row);
            self.vm().signal_msi(msi);
        }
    }

    /// Whether an interrupt waits for the mask to go.
    pub fn is_pending(&self) -> bool {
        let mut row = self.row();
        if row.masked {
            row.collect();
        }
        row.pending
    }

    /// Sets the pending bit as a saved state has it; fires nothing.
    pub fn set_pending(&self, pending: bool) {
        self.row().pending = pending;
    }

    /// Sends the message, or remembers to when the mask goes.
    pub fn signal(&self) {
        let mut row = self.row();
        if row.masked {
            row.pending = true;
            return;
        }
        // Who masks the row, to send its messages elsewhere, waits for this one: afterwards it would go to a vector that
        // is nobody's. A message to no processor is lost, as it is on the real bus.
        let _delivered = self.vm().signal_msi(row.msi);
    }

    /// Has the eventfds send `msi`. An address that the accelerator refuses leads nowhere: the messages are lost, as they are
    /// on the real bus.
    fn bind_all(&self, followed: &Followed, msi: Msi) {
        if self.messages.change(followed.gsi, msi).is_err() {
            return;
        }
        for event in &followed.events {
            // It was bound before, so that only want of memory can be in the way.
            let _bound = self.bind(followed.gsi, event);
        }
    }

    fn bind(&self, gsi: u32, event: &OwnedFd) -> Result<()> {
        let what = "duplicating an eventfd";
        let event = event.try_clone().map_err(|source| AccelError::Host { what, source })?;
        self.vm().bind_irqfd(IrqFd { gsi, event, resample: None })
    }

    fn try_follow(&self, row: &mut Row, event: &Arc<OwnedFd>) -> Result<()> {
        let gsi = match &row.followed {
            Some(followed) => followed.gsi,
            None => self.messages.take(row.msi)?,
        };
        if !row.masked
            && let Err(error) = self.bind(gsi, event)
        {
            if row.followed.is_none() {
                self.messages.release(gsi);
            }
            return Err(error);
        }
        row.followed.get_or_insert(Followed { gsi, events: Vec::new() }).events.push(Arc::clone(event));
        Ok(())
    }
}

impl Interrupt for MsiRoute {
    fn trigger(&self) {
        self.signal();
    }

    fn follow(&self, event: &Arc<OwnedFd>) -> bool {
        self.try_follow(&mut self.row(), event).is_ok()
    }

    fn unfollow(&self, event: &Arc<OwnedFd>) {
        let mut row = self.row();
        let (masked, msi) = (row.masked, row.msi);
        let Some(followed) = &mut row.followed else { return };
        followed.events.retain(|other| !Arc::ptr_eq(other, event));
        if !masked {
            self.vm().unbind_irqfd(followed.gsi);
            self.bind_all(followed, msi);
        }
        if followed.events.is_empty() {
            self.messages.release(followed.gsi);
            row.followed = None;
        }
        drop(row);
        if was_written(event) {
            self.signal();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::time::{Duration, Instant};

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::io::write;

    use super::*;
    use crate::testing::{ToyVm, toy_vm};

    const MESSAGE: Msi = Msi { address: 0xfee0_0000, data: 0x41 };
    const OTHER: Msi = Msi { address: 0xfee0_1000, data: 0x42 };

    fn route(vm: &Arc<ToyVm>) -> MsiRoute {
        MsiRoute::new(Messages::new(vm.clone()))
    }

    #[test]
    fn mask_waits_for_the_message_that_is_under_way() {
        let vm = toy_vm();
        let route = route(&vm);
        route.set_masked(false);
        std::thread::scope(|scope| {
            let bus = vm.messages.lock().expect("the messages");
            scope.spawn(|| route.signal());
            let late = Instant::now() + Duration::from_secs(10);
            let mut held = 0;
            while held < 20 && Instant::now() < late {
                held = if route.row.try_lock().is_err() { held + 1 } else { 0 };
                std::thread::sleep(Duration::from_millis(1));
            }
            drop(bus);
            assert_eq!(held, 20, "the row could be masked while its message was under way");
        });
    }

    fn event() -> Arc<OwnedFd> {
        Arc::new(eventfd(0, EventfdFlags::NONBLOCK).expect("an eventfd"))
    }

    fn ring(event: &Arc<OwnedFd>) {
        write(event.as_fd(), &1u64.to_ne_bytes()).expect("room in a counter");
    }

    #[test]
    fn route_unmasked_sends_its_message() {
        let vm = toy_vm();
        let route = route(&vm);
        route.update(MESSAGE);
        route.set_masked(false);
        route.trigger();
        assert_eq!(vm.messages(), [MESSAGE]);
        assert!(!route.is_pending());
    }

    #[test]
    fn route_masked_keeps_one_interrupt_until_it_is_unmasked() {
        let vm = toy_vm();
        let route = route(&vm);
        route.signal();
        route.signal();
        assert!(route.is_pending() && vm.messages().is_empty());
        route.update(MESSAGE);
        route.set_masked(false);
        assert_eq!(vm.messages(), [MESSAGE]);
        assert!(!route.is_pending());
    }

    #[test]
    fn route_that_follows_is_bound_while_it_is_not_masked() {
        let vm = toy_vm();
        let (route, event) = (route(&vm), event());
        route.update(MESSAGE);
        assert!(route.follow(&event));
        let gsi = LAST_MESSAGE - 1;
        assert_eq!(vm.routes(), [MsiRouteEntry { gsi, msi: MESSAGE }]);
        assert!(vm.irqfds().is_empty(), "it is masked");
        route.set_masked(false);
        assert_eq!(vm.irqfds(), [gsi]);
        route.update(OTHER);
        assert_eq!(vm.routes(), [MsiRouteEntry { gsi, msi: OTHER }]);
        route.set_masked(true);
        assert!(vm.irqfds().is_empty());
        route.set_masked(false);
        route.unfollow(&event);
        assert!(vm.irqfds().is_empty() && vm.routes().is_empty());
        assert!(vm.messages().is_empty());
    }

    #[test]
    fn message_that_is_refused_is_lost_and_takes_no_other_with_it() {
        let vm = toy_vm();
        let messages = Messages::new(vm.clone());
        let (refused, well) = (MsiRoute::new(Arc::clone(&messages)), MsiRoute::new(messages));
        let events = [event(), event()];
        for (route, event) in [&refused, &well].into_iter().zip(&events) {
            route.update(MESSAGE);
            route.set_masked(false);
            assert!(route.follow(event));
        }
        refused.update(Msi { address: 1 << 32 | MESSAGE.address, ..MESSAGE });
        assert_eq!(vm.irqfds(), [LAST_MESSAGE - 2], "its eventfd sends nothing to where it was before");
        well.update(OTHER);
        assert!(vm.routes().contains(&MsiRouteEntry { gsi: LAST_MESSAGE - 2, msi: OTHER }));
        refused.update(OTHER);
        assert_eq!(vm.irqfds().len(), 2);
    }

    #[test]
    fn eventfd_written_while_the_route_is_masked_is_pending_until_the_mask_goes() {
        let vm = toy_vm();
        let (route, event) = (route(&vm), event());
        assert!(route.follow(&event) && !route.is_pending());
        ring(&event);
        assert!(route.is_pending());
        assert!(!was_written(&event), "the pending bit has it now");
        route.update(MESSAGE);
        route.set_masked(false);
        assert_eq!(vm.messages(), [MESSAGE]);
    }

    #[test]
    fn eventfd_let_go_of_leaves_what_was_written_to_it() {
        let vm = toy_vm();
        let (route, one, two) = (route(&vm), event(), event());
        assert!(route.follow(&one) && route.follow(&two));
        ring(&one);
        route.unfollow(&one);
        assert!(route.is_pending());
        route.set_masked(false);
        assert_eq!(vm.irqfds(), [LAST_MESSAGE - 1], "the other is still followed");
        route.unfollow(&two);
        assert!(vm.irqfds().is_empty());
    }

    #[test]
    fn numbers_that_were_chosen_are_not_taken_and_the_other_way_round() {
        let vm = toy_vm();
        let messages = Messages::new(vm.clone());
        let chosen = MsiRouteEntry { gsi: LAST_MESSAGE - 1, msi: OTHER };
        messages.choose(&[chosen]).expect("nobody has it");
        let (route, event) = (MsiRoute::new(Arc::clone(&messages)), event());
        assert!(route.follow(&event));
        let taken = MsiRouteEntry { gsi: LAST_MESSAGE - 2, msi: Msi::default() };
        assert_eq!(vm.routes(), [chosen, taken]);
        assert!(messages.choose(&[taken]).is_err());
        messages.choose(&[]).expect("none");
        assert_eq!(vm.routes(), [taken]);
    }
}

use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;
use crate::testing::Scratch;

fn add(bus: &Bus, space: Space, base: u64, size: u64, name: &str) -> Arc<Scratch> {
    let device = Arc::new(Scratch::new(size));
    bus.add(space, base, size, name, device.clone()).expect("a free range");
    device
}

#[test]
fn access_inside_a_range_reaches_its_owner_at_the_offset() {
    let bus = Bus::new();
    let device = add(&bus, Space::Pio, 0x3f8, 8, "serial");
    assert!(bus.io_write(0x3fa, &[1, 2]));
    assert_eq!(device.accesses(), [(2, 2, true)]);
    let mut data = [0; 2];
    assert!(bus.io_read(0x3fa, &mut data));
    assert_eq!(data, [1, 2]);
}

#[test]
fn spaces_are_apart() {
    let bus = Bus::new();
    let device = add(&bus, Space::Mmio, 0x3f8, 8, "mmio");
    assert!(bus.io_write(0x3f8, &[1]));
    assert!(device.accesses().is_empty());
}

#[test]
fn access_nobody_owns_reads_ones_on_an_open_bus_and_is_refused_on_a_closed_one() {
    let bus = Bus::new();
    let mut data = [0; 4];
    assert!(bus.mmio_read(0x1000, &mut data) && bus.mmio_write(0x1000, &data));
    assert_eq!(data, [0xff; 4]);
    bus.set_open_bus(false);
    assert!(!bus.mmio_read(0x1000, &mut data) && !bus.mmio_write(0x1000, &data));
}

#[test]
fn access_over_the_edge_of_a_range_is_split_into_bytes() {
    let bus = Bus::new();
    let low = add(&bus, Space::Pio, 0x70, 2, "low");
    let high = add(&bus, Space::Pio, 0x72, 1, "high");
    assert!(bus.io_write(0x71, &[1, 2, 3, 4]));
    assert_eq!((low.accesses(), high.accesses()), (vec![(1, 1, true)], vec![(0, 1, true)]));
    let mut data = [0; 4];
    assert!(bus.io_read(0x71, &mut data));
    assert_eq!(data, [1, 2, 0xff, 0xff]);
}

#[test]
fn access_of_an_odd_size_is_split_into_bytes() {
    let bus = Bus::new();
    let device = add(&bus, Space::Mmio, 0, 8, "device");
    assert!(bus.mmio_write(4, &[1, 2, 3]));
    assert_eq!(device.accesses(), [(4, 1, true), (5, 1, true), (6, 1, true)]);
}

#[test]
fn overlap_is_refused_and_names_both() {
    let bus = Bus::new();
    add(&bus, Space::Pio, 0x60, 5, "keyboard");
    let error = bus.add(Space::Pio, 0x64, 1, "mouse", Arc::new(Scratch::new(1))).expect_err("an overlap");
    assert_eq!(error.to_string(), "mouse: port range 0x64..=0x64 overlaps keyboard's 0x60..=0x64");
    add(&bus, Space::Pio, 0x65, 1, "beside");
}

#[test]
fn range_empty_or_past_the_end_is_refused() {
    let bus = Bus::new();
    for (space, base, size) in
        [(Space::Pio, 0, 0), (Space::Pio, 0xffff, 2), (Space::Mmio, u64::MAX, 2), (Space::Mmio, 1 << 52, 1)]
    {
        let refused = bus.add(space, base, size, "x", Arc::new(Scratch::new(1)));
        assert!(matches!(refused, Err(BusError::BadRange { .. })), "{space} {base:#x}");
    }
}

#[test]
fn removed_range_is_nobodys() {
    let bus = Bus::new();
    add(&bus, Space::Mmio, 0x1000, 0x1000, "bar");
    bus.remove(Space::Mmio, 0x1000).expect("removed");
    assert_eq!(bus.remove(Space::Mmio, 0x1000), Err(BusError::NoRange { space: Space::Mmio, base: 0x1000 }));
    bus.set_open_bus(false);
    assert!(!bus.mmio_write(0x1000, &[0]));
    assert!(bus.list(Space::Mmio).is_empty());
}

#[test]
fn access_of_a_vcpu_counts_for_the_owner_also_after_it_moved() {
    let (bus, counters) = (Bus::new(), DeviceCounters::default());
    add(&bus, Space::Pio, 0x10, 4, "bar");
    assert!(bus.io_read_counted(0x12, &mut [0; 2], &counters));
    bus.remove(Space::Pio, 0x10).expect("removed");
    add(&bus, Space::Pio, 0x20, 4, "other");
    add(&bus, Space::Mmio, 0x1000, 4, "bar");
    assert!(bus.mmio_write_counted(0x1000, &[0; 4], &counters));
    assert!(bus.io_write_counted(0x22, &[0; 4], &counters), "two bytes of it have an owner");
    assert!(bus.io_read_counted(0x99, &mut [0], &counters));
    assert!(bus.io_read(0x20, &mut [0]), "of no vCPU");
    let named: Vec<_> =
        (0..).zip(bus.device_names()).map(|(n, name)| (name.to_string(), counters.accesses(n))).collect();
    assert_eq!(named, [("nobody".into(), 1), ("bar".into(), 2), ("other".into(), 2)]);
    bus.set_open_bus(false);
    assert!(!bus.io_read_counted(0x99, &mut [0], &counters));
    assert_eq!(counters.accesses(NOBODY), 1);
}

#[test]
fn doorbell_counts_writes() {
    let eventfd = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
    let ours = eventfd.try_clone().expect("a duplicate");
    let bus = Bus::new();
    bus.add(Space::Mmio, 0, 4, "doorbell", Arc::new(Doorbell(ours))).expect("a free range");
    assert!(bus.mmio_write(0, &[7, 7]) && bus.mmio_write(2, &[7]));
    assert_eq!(eventfd.read().expect("a count"), 2);
    let mut data = [9; 4];
    assert!(bus.mmio_read(0, &mut data));
    assert_eq!(data, [0; 4]);
}

#[test]
fn table_changes_while_others_look_up() {
    let bus = Arc::new(Bus::new());
    add(&bus, Space::Pio, 0, 16, "fixed");
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let bus = Arc::clone(&bus);
            std::thread::spawn(move || (0..10_000).all(|_| bus.io_read(3, &mut [0; 1])))
        })
        .collect();
    for _ in 0..500 {
        add(&bus, Space::Pio, 0x100, 4, "moving");
        bus.remove(Space::Pio, 0x100).expect("removed");
    }
    assert!(readers.into_iter().all(|reader| reader.join().expect("a reader ends")));
}

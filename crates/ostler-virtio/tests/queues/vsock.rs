//! vsock: the guest's packets against real unix sockets.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ostler_virtio::vsock::{
    BUFFER_BYTES, Door, HEADER_BYTES, HOST_CID, Header, Hub, MAX_CONNECTIONS, NO_RECEIVE, NO_SEND, ReceiveService,
    STREAM, TransmitService, op,
};

use crate::driver::{DATA, Driver, WRITE};

const CID: u64 = 3;
const GUEST_PORT: u32 = 1000;
const PORT: u32 = 52;

/// A hub and the folder its sockets are in, which goes with it.
struct Fixture {
    hub: Arc<Hub>,
    folder: PathBuf,
}

impl Fixture {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("ostler-vsock-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join("v");
        let listener = UnixListener::bind(&path).expect("a listener");
        Self { hub: Arc::new(Hub::new(CID, listener, path).expect("a hub")), folder }
    }

    fn listen(&self) -> UnixListener {
        UnixListener::bind(self.folder.join(format!("v_{PORT}"))).expect("a listener")
    }

    fn call(&self) -> UnixStream {
        let stream = UnixStream::connect(self.folder.join("v")).expect("the hub listens");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a time-out");
        stream
    }

    fn send(&self, op: u16, data: &[u8]) {
        self.hub.receive(&Header { len: data.len() as u32, ..packet(op) }, data);
    }

    /// The next packet for the guest.
    fn next(&self) -> Option<(Header, Vec<u8>)> {
        let mut data = vec![0; 4096];
        let (header, len) = self.hub.next_packet(&mut data)?;
        data.truncate(len);
        Some((header, data))
    }

    /// A connection that the guest began: what the host has of it.
    fn established(&self) -> UnixStream {
        let listener = self.listen();
        self.send(op::REQUEST, b"");
        let (stream, _) = listener.accept().expect("the guest calls");
        assert_eq!(self.next().map(|(header, _)| header.op), Some(op::RESPONSE));
        stream
    }

    fn next_op(&self) -> Option<u16> {
        self.next().map(|(header, _)| header.op)
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.folder);
    }
}

fn packet(op: u16) -> Header {
    Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: GUEST_PORT,
        dst_port: PORT,
        kind: STREAM,
        op,
        buf_alloc: 8192,
        ..Header::default()
    }
}

#[test]
fn header_survives_the_wire() {
    let header = Header { fwd_cnt: 0x0102_0304, flags: 3, len: 9, ..packet(op::RW) };
    assert_eq!(Header::parse(&header.bytes()), header);
}

#[test]
fn guest_reaches_the_socket_of_a_port_and_both_talk() {
    let fixture = Fixture::new();
    let mut host = fixture.established();
    fixture.send(op::RW, b"from the guest");
    let mut bytes = [0; 14];
    host.read_exact(&mut bytes).expect("it came");
    assert_eq!(&bytes, b"from the guest");
    host.write_all(b"from the host").expect("room");
    let (header, data) = fixture.next().expect("a packet");
    assert_eq!((header.op, header.src_port, header.dst_port), (op::RW, PORT, GUEST_PORT));
    assert_eq!((header.fwd_cnt, header.buf_alloc, data), (14, BUFFER_BYTES, b"from the host".to_vec()));
    assert_eq!(fixture.next(), None);
}

#[test]
fn guest_calling_where_nobody_listens_is_reset() {
    let fixture = Fixture::new();
    fixture.send(op::REQUEST, b"");
    let (header, _) = fixture.next().expect("an answer");
    assert_eq!((header.op, header.src_port, header.dst_port), (op::RST, PORT, GUEST_PORT));
    assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID));
    assert_eq!(fixture.hub.connections(), 0);
}

#[test]
fn host_calls_the_guest_by_naming_a_port() {
    let fixture = Fixture::new();
    let mut host = fixture.call();
    host.write_all(b"CONN").expect("room");
    assert_eq!(fixture.next(), None, "half a line");
    host.write_all(b"ECT 1000\nearly").expect("room");
    let (request, _) = fixture.next().expect("a request");
    assert_eq!((request.op, request.dst_port, request.dst_cid), (op::REQUEST, GUEST_PORT, CID));
    assert_eq!(fixture.next(), None, "nothing before the guest has answered");
    fixture.hub.receive(&Header { dst_port: request.src_port, ..packet(op::RESPONSE) }, b"");
    let expected = format!("OK {}\n", request.src_port);
    let mut line = vec![0; expected.len()];
    host.read_exact(&mut line).expect("an answer");
    assert_eq!(line, expected.as_bytes());
    assert_eq!(fixture.next().map(|(_, data)| data), Some(b"early".to_vec()));
}

#[test]
fn host_that_calls_in_vain_or_talks_nonsense_is_hung_up_on() {
    let fixture = Fixture::new();
    let mut refused = fixture.call();
    refused.write_all(b"CONNECT 7\n").expect("room");
    let (request, _) = fixture.next().expect("a request");
    fixture.hub.receive(&Header { src_port: 7, dst_port: request.src_port, ..packet(op::RST) }, b"");
    assert_eq!(refused.read(&mut [0; 8]).expect("the end"), 0);
    for nonsense in ["CONNECT\n", "CONNECT 99999999999\n", "HELO 1\n", &"C".repeat(40)] {
        let mut caller = fixture.call();
        caller.write_all(nonsense.as_bytes()).expect("room");
        assert_eq!(fixture.next(), None);
        // With bytes of its own unread, a unix socket is reset instead of ended.
        let end = caller.read(&mut [0; 8]);
        assert!(matches!(end, Ok(0)) || end.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    }
}

#[test]
fn data_for_the_guest_stops_at_its_credit_and_goes_on_with_more() {
    let fixture = Fixture::new();
    let mut host = fixture.established();
    host.write_all(&[7; 10_000]).expect("room");
    let taken: usize = std::iter::from_fn(|| fixture.next()).map(|(_, data)| data.len()).sum();
    assert_eq!(taken, 8192);
    fixture.hub.receive(&Header { fwd_cnt: 8192, ..packet(op::CREDIT_UPDATE) }, b"");
    let taken: usize = std::iter::from_fn(|| fixture.next()).map(|(_, data)| data.len()).sum();
    assert_eq!(taken, 10_000 - 8192);
}

#[test]
fn data_of_the_guest_waits_for_a_slow_host_and_credit_follows() {
    let fixture = Fixture::new();
    let mut host = fixture.established();
    let mut sent = 0;
    let mut forwarded = 0;
    while forwarded as usize + BUFFER_BYTES as usize > sent && sent < 4 << 20 {
        fixture.send(op::RW, &[1; 4096]);
        sent += 4096;
        while let Some((header, _)) = fixture.next() {
            forwarded = header.fwd_cnt;
        }
    }
    assert!(sent > BUFFER_BYTES as usize, "the socket itself has room, too");
    host.set_nonblocking(true).expect("possible");
    let mut received = 0;
    let mut piece = [0; 65536];
    while received < sent {
        match host.read(&mut piece) {
            Ok(len) => received += len,
            Err(_) => while fixture.next().is_some() {},
        }
    }
    assert_eq!(received, sent);
    fixture.send(op::CREDIT_REQUEST, b"");
    let (header, _) = fixture.next().expect("an answer");
    assert_eq!((header.op, header.fwd_cnt as usize), (op::CREDIT_UPDATE, sent));
}

#[test]
fn guest_that_sends_more_than_its_credit_is_reset() {
    let fixture = Fixture::new();
    let _host = fixture.established();
    for _ in 0..64 {
        fixture.send(op::RW, &[1; 65536]);
    }
    let ops: Vec<u16> = std::iter::from_fn(|| fixture.next_op()).collect();
    assert!(ops.contains(&op::RST), "{ops:?}");
    assert_eq!(fixture.hub.connections(), 0);
}

#[test]
fn host_that_closes_shuts_the_guest_down_and_the_guest_resets() {
    let fixture = Fixture::new();
    drop(fixture.established());
    let (header, _) = fixture.next().expect("a shutdown");
    assert_eq!((header.op, header.flags), (op::SHUTDOWN, NO_SEND | NO_RECEIVE));
    assert_eq!(fixture.next(), None, "told once");
    fixture.send(op::RST, b"");
    assert_eq!((fixture.next(), fixture.hub.connections()), (None, 0));
}

#[test]
fn host_that_sends_no_more_still_receives() {
    let fixture = Fixture::new();
    let mut host = fixture.established();
    host.write_all(b"last").expect("room");
    host.shutdown(Shutdown::Write).expect("possible");
    assert_eq!(fixture.next().map(|(_, data)| data), Some(b"last".to_vec()));
    let (header, _) = fixture.next().expect("a shutdown");
    assert_eq!((header.op, header.flags), (op::SHUTDOWN, NO_SEND));
    fixture.send(op::RW, b"answer");
    let mut bytes = [0; 6];
    host.read_exact(&mut bytes).expect("it came");
    fixture.hub.receive(&Header { flags: NO_SEND, ..packet(op::SHUTDOWN) }, b"");
    assert_eq!(fixture.next_op(), Some(op::RST), "both are done");
    assert_eq!(host.read(&mut bytes).expect("the end"), 0);
}

#[test]
fn guest_that_closes_has_its_data_delivered_first() {
    let fixture = Fixture::new();
    let mut host = fixture.established();
    let mut sent = 0;
    while sent < BUFFER_BYTES as usize {
        fixture.send(op::RW, &[1; 32768]);
        sent += 32768;
    }
    fixture.hub.receive(&Header { flags: NO_SEND | NO_RECEIVE, ..packet(op::SHUTDOWN) }, b"");
    let mut received = 0;
    let mut piece = [0; 4096];
    let mut ops = Vec::new();
    host.set_nonblocking(true).expect("possible");
    loop {
        ops.extend(std::iter::from_fn(|| fixture.next_op()));
        match host.read(&mut piece) {
            Ok(0) => break,
            Ok(len) => received += len,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    assert_eq!((received, ops.last()), (sent, Some(&op::RST)));
}

#[test]
fn packets_that_belong_to_nothing_are_refused() {
    let fixture = Fixture::new();
    fixture.send(op::RW, b"x");
    assert_eq!(fixture.next_op(), Some(op::RST));
    fixture.send(op::RST, b"");
    assert_eq!(fixture.next(), None, "a reset is not answered");
    fixture.hub.receive(&Header { src_cid: 9, ..packet(op::REQUEST) }, b"");
    assert_eq!(fixture.next(), None, "nobody else's packets");
    fixture.hub.receive(&Header { dst_cid: 9, ..packet(op::REQUEST) }, b"");
    assert_eq!(fixture.next_op(), Some(op::RST));
    fixture.hub.receive(&Header { kind: 2, ..packet(op::REQUEST) }, b"");
    assert_eq!(fixture.next().map(|(header, _)| (header.op, header.kind)), Some((op::RST, 2)));
    let _host = fixture.established();
    fixture.send(99, b"");
    assert_eq!((fixture.next_op(), fixture.hub.connections()), (Some(op::RST), 0));
}

#[test]
fn reset_of_the_device_hangs_up_everywhere() {
    let fixture = Fixture::new();
    let mut host = fixture.established();
    fixture.hub.reset();
    assert_eq!(host.read(&mut [0; 8]).expect("the end"), 0);
    assert_eq!((fixture.hub.connections(), fixture.next()), (0, None));
}

#[test]
fn connections_past_the_limit_are_refused() {
    let fixture = Fixture::new();
    let listener = fixture.listen();
    let mut streams = Vec::new();
    for port in 0..=MAX_CONNECTIONS as u32 {
        fixture.hub.receive(&Header { src_port: port, ..packet(op::REQUEST) }, b"");
        let (answer, _) = fixture.next().expect("an answer");
        if answer.op == op::RESPONSE {
            streams.push(listener.accept().expect("a call"));
        }
    }
    assert_eq!(streams.len(), MAX_CONNECTIONS);
}

#[test]
fn queues_carry_packets_and_refuse_what_is_none() {
    let fixture = Fixture::new();
    let listener = fixture.listen();
    let mut receive = Driver::new();
    let _receiver = receive.start(ReceiveService::new(Arc::clone(&fixture.hub)));
    receive.lay(0, &[(DATA, HEADER_BYTES as u32, WRITE), (DATA + 0x1000, 4096, WRITE)]);
    receive.offer(0);
    receive.ring();
    let mut transmit = Driver::new();
    let _transmitter = transmit.start(TransmitService::new(Arc::clone(&fixture.hub)));
    transmit.put(DATA, &packet(op::REQUEST).bytes());
    transmit.lay(0, &[(DATA, HEADER_BYTES as u32, 0)]);
    transmit.round_trip(0);
    let (mut host, _) = listener.accept().expect("a call");
    receive.bell.wait(1);
    assert_eq!(receive.used(0), (0, HEADER_BYTES as u32));
    host.write_all(b"hello").expect("room");
    receive.offer(0);
    receive.ring();
    receive.bell.wait(2);
    assert_eq!((receive.used(1).1, receive.get(DATA + 0x1000, 5)), (HEADER_BYTES as u32 + 5, b"hello".to_vec()));
    let too_long = Header { len: 100, ..packet(op::RW) };
    transmit.put(DATA, &too_long.bytes());
    transmit.offer(0);
    transmit.ring();
    transmit.broken.wait(1);
    receive.lay(0, &[(DATA, HEADER_BYTES as u32, WRITE)]);
    receive.offer(0);
    receive.ring();
    receive.broken.wait(1);
}

#[test]
fn caller_of_a_guest_without_a_driver_is_hung_up_on_and_one_with_it_is_served() {
    let fixture = Fixture::new();
    let _door = Door::new(Arc::clone(&fixture.hub)).expect("a thread");
    let refused = |mut stream: UnixStream| {
        // The other end may be gone already.
        let _pipe = stream.write_all(b"CONNECT 7\n");
        match stream.read(&mut [0; 8]) {
            Ok(0) => true,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
            Ok(_) => false,
        }
    };
    assert!(refused(fixture.call()));
    let service = ReceiveService::new(Arc::clone(&fixture.hub));
    let mut stream = fixture.call();
    stream.write_all(b"CONNECT 7\n").expect("the hub listens");
    assert_eq!(fixture.next_op(), Some(op::REQUEST));
    drop(service);
    assert!(refused(fixture.call()));
}

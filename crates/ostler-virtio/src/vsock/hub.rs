//! All connections of one device, between the guest's packets and the host's sockets.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::connection::{BUFFER_BYTES, Connection, State};
use super::door::Served;
use super::packet::{HOST_CID, Header, NO_RECEIVE, NO_SEND, STREAM, op};
use super::unix::{self, Caller};

/// Connections and callers at one time; who comes later is refused.
pub const MAX_CONNECTIONS: usize = 1024;
/// Packets without data that may wait for the guest. A guest that takes none while it provokes more
/// loses some.
const MAX_WAITING: usize = 4096;
/// The first port of connections that the host begins.
const FIRST_HOST_PORT: u32 = 1 << 30;
/// Names of the events that are no stream's.
const LISTENER: u64 = 0;
const CONTROL: u64 = 1;
const FIRST_STREAM: u64 = 2;
const EVENTS_AT_ONCE: usize = 64;

/// The host's port and the guest's.
type Key = (u32, u32);

#[derive(Debug)]
pub struct Hub {
    cid: u64,
    path: PathBuf,
    listener: UnixListener,
    epoll: Epoll,
    /// Readable when a packet for the guest was added by the other queue.
    control_ready: EventFd,
    pub(super) served: Served,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    connections: HashMap<Key, Connection>,
    keys: HashMap<u64, Key>,
    /// Callers that have not said yet which port they want.
    callers: HashMap<u64, Caller>,
    control: VecDeque<Header>,
    readable: VecDeque<Key>,
    streams: u64,
    host_ports: u32,
}

impl Hub {
    /// A hub for the guest `cid`. Programs of the host call at `listener`; what the guest calls is
    /// the socket at `path`, `_` and the port.
    pub fn new(cid: u64, listener: UnixListener, path: PathBuf) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let (epoll, control_ready) = (Epoll::new()?, EventFd::new(EFD_NONBLOCK)?);
        for (fd, name) in [(listener.as_raw_fd(), LISTENER), (control_ready.as_raw_fd(), CONTROL)] {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, name))?;
        }
        let served = Served::new()?;
        Ok(Self { cid, path, listener, epoll, control_ready, served, table: Mutex::default() })
    }

    /// Readable when there may be a packet for the guest.
    pub fn source(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Connections there are.
    pub fn connections(&self) -> usize {
        self.table().connections.len()
    }

    /// Closes everything: the guest knows of no connection any more.
    pub fn reset(&self) {
        let mut table = self.table();
        let ports = table.host_ports;
        *table = Table { host_ports: ports, streams: table.streams, ..Table::default() };
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    // -- to the guest ---------------------------------------------------------------------------

    /// The next packet for the guest, its data in the front of `data`.
    pub fn next_packet(&self, data: &mut [u8]) -> Option<(Header, usize)> {
        let mut table = self.table();
        if table.control.is_empty() && table.readable.is_empty() {
            self.poll(&mut table);
        }
        if let Some(header) = table.control.pop_front() {
            return Some((header, 0));
        }
        while let Some(key) = table.readable.pop_front() {
            if let Some(packet) = self.read(&mut table, key, data) {
                return Some(packet);
            }
        }
        table.control.pop_front().map(|header| (header, 0))
    }

    fn read(&self, table: &mut Table, key: Key, data: &mut [u8]) -> Option<(Header, usize)> {
        let connection = table.connections.get_mut(&key)?;
        if connection.state != State::Established || !connection.reads || connection.credit() == 0 {
            return None;
        }
        match connection.receive(data) {
            Ok(0) => self.host_ended(table, key),
            Ok(len) => {
                self.follow(connection);
                let header = self.header(key, Some(connection), op::RW);
                return Some((Header { len: len as u32, ..header }, len));
            }
            Err(error) if is_passing(&error) => {}
            Err(_gone) => self.drop_with_reset(table, key),
        }
        None
    }

    /// The host sends no more; where it does not receive either, the connection is at its end.
    fn host_ended(&self, table: &mut Table, key: Key) {
        let Some(connection) = table.connections.get_mut(&key) else { return };
        connection.reads = false;
        let flags = if unix::is_hung_up(&connection.stream) { NO_SEND | NO_RECEIVE } else { NO_SEND };
        self.follow(connection);
        let header = Header { flags, ..self.header(key, Some(connection), op::SHUTDOWN) };
        self.tell(table, header);
    }

    /// Looks at what happened on the host's side.
    fn poll(&self, table: &mut Table) {
        let mut events = [EpollEvent::default(); EVENTS_AT_ONCE];
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        for event in &events[..count] {
            match event.data() {
                LISTENER => self.accept(table),
                CONTROL => {
                    // Only emptied: the packets themselves are looked at anyway.
                    let _count = self.control_ready.read();
                }
                token => self.on_stream(table, token, event.event_set()),
            }
        }
    }

    fn on_stream(&self, table: &mut Table, token: u64, events: EventSet) {
        if table.callers.contains_key(&token) {
            self.hear_caller(table, token);
            return;
        }
        let Some(&key) = table.keys.get(&token) else { return };
        let Some(connection) = table.connections.get_mut(&key) else { return };
        if !connection.is_flushed() && connection.flush().is_err() {
            self.drop_with_reset(table, key);
            return;
        }
        self.after_flush(table, key);
        if events.intersects(EventSet::IN | EventSet::HANG_UP | EventSet::ERROR) {
            table.readable.push_back(key);
        }
    }

    fn after_flush(&self, table: &mut Table, key: Key) {
        let Some(connection) = table.connections.get_mut(&key) else { return };
        if let (State::Closing { reset }, true) = (connection.state, connection.is_flushed()) {
            self.remove(table, key);
            if reset {
                self.tell(table, self.header(key, None, op::RST));
            }
            return;
        }
        self.follow(connection);
        if connection.owes_credit() {
            let header = self.header(key, Some(connection), op::CREDIT_UPDATE);
            self.tell(table, header);
        }
    }

    // -- callers of the host --------------------------------------------------------------------

    fn accept(&self, table: &mut Table) {
        while let Ok((stream, _)) = self.listener.accept() {
            let room = table.connections.len() + table.callers.len() < MAX_CONNECTIONS;
            if !room || stream.set_nonblocking(true).is_err() {
                continue;
            }
            let token = table.new_token();
            let event = EpollEvent::new(EventSet::IN, token);
            if self.epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), event).is_ok() {
                table.callers.insert(token, Caller::new(stream));
                // Most have said it already.
                self.hear_caller(table, token);
            }
        }
    }

    /// A caller has said `CONNECT <port>`, or something else.
    fn hear_caller(&self, table: &mut Table, token: u64) {
        let Some(caller) = table.callers.get_mut(&token) else { return };
        let port = match caller.hear() {
            Ok(None) => return,
            Ok(Some(port)) => port,
            Err(_nonsense) => {
                table.callers.remove(&token);
                return;
            }
        };
        let Some(Caller { stream, .. }) = table.callers.remove(&token) else { return };
        let key = (table.new_host_port(port), port);
        let mut connection = Connection::new(stream, token, State::Requested);
        connection.interest = Some(EventSet::IN);
        self.follow(&mut connection);
        let header = self.header(key, Some(&mut connection), op::REQUEST);
        table.insert(key, connection);
        self.tell(table, header);
    }

    // -- from the guest -------------------------------------------------------------------------

    /// Takes a packet of the guest's.
    pub fn receive(&self, header: &Header, data: &[u8]) {
        if header.src_cid != self.cid {
            return;
        }
        let mut table = self.table();
        let key = (header.dst_port, header.src_port);
        if header.dst_cid != HOST_CID || header.kind != STREAM {
            self.refuse(&mut table, header);
        } else if header.op == op::REQUEST {
            self.request(&mut table, key, header);
        } else if let Some(connection) = table.connections.get_mut(&key) {
            connection.hear_credit(header.buf_alloc, header.fwd_cnt);
            self.act(&mut table, key, header, data);
            if let Some(connection) = table.connections.get_mut(&key) {
                self.follow(connection);
            }
        } else if header.op != op::RST {
            self.refuse(&mut table, header);
        }
        if !table.control.is_empty() {
            // The counter cannot be full: the other queue empties it.
            let _full = self.control_ready.write(1);
        }
    }

    fn refuse(&self, table: &mut Table, header: &Header) {
        let answer = Header {
            src_cid: header.dst_cid,
            dst_cid: header.src_cid,
            src_port: header.dst_port,
            dst_port: header.src_port,
            kind: header.kind,
            op: op::RST,
            ..Header::default()
        };
        self.tell(table, answer);
    }

    /// The guest calls the socket of a port.
    fn request(&self, table: &mut Table, key: Key, header: &Header) {
        self.remove(table, key);
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{}", header.dst_port));
        let room = table.connections.len() + table.callers.len() < MAX_CONNECTIONS;
        let Some(stream) = room.then(|| unix::connect(&path).ok()).flatten() else {
            self.refuse(table, header);
            return;
        };
        let mut connection = Connection::new(stream, table.new_token(), State::Established);
        connection.hear_credit(header.buf_alloc, header.fwd_cnt);
        self.follow(&mut connection);
        let answer = self.header(key, Some(&mut connection), op::RESPONSE);
        table.insert(key, connection);
        self.tell(table, answer);
    }

    fn act(&self, table: &mut Table, key: Key, header: &Header, data: &[u8]) {
        let Some(connection) = table.connections.get_mut(&key) else { return };
        match header.op {
            op::RESPONSE if connection.state == State::Requested => {
                connection.state = State::Established;
                if unix::answer(&connection.stream, key.0).is_err() {
                    self.drop_with_reset(table, key);
                }
            }
            op::RW if connection.state == State::Established && !connection.writes_end => {
                if connection.send(data).is_err() {
                    self.drop_with_reset(table, key);
                } else {
                    self.after_flush(table, key);
                }
            }
            op::CREDIT_UPDATE => {}
            op::CREDIT_REQUEST => {
                let answer = self.header(key, Some(connection), op::CREDIT_UPDATE);
                self.tell(table, answer);
            }
            op::SHUTDOWN => self.shut_down(table, key, header.flags),
            op::RST => {
                connection.state = State::Closing { reset: false };
                self.after_flush(table, key);
            }
            _ => self.drop_with_reset(table, key),
        }
    }

    fn shut_down(&self, table: &mut Table, key: Key, flags: u32) {
        let Some(connection) = table.connections.get_mut(&key) else { return };
        connection.reads &= flags & NO_RECEIVE == 0;
        connection.writes_end |= flags & NO_SEND != 0;
        if connection.writes_end && !connection.reads {
            connection.state = State::Closing { reset: true };
        }
        if connection.flush().is_err() {
            self.drop_with_reset(table, key);
        } else {
            self.after_flush(table, key);
        }
    }

    // -- both -----------------------------------------------------------------------------------

    /// A packet of the connection `key` without data, with what the guest should know of credit.
    fn header(&self, key: Key, connection: Option<&mut Connection>, op: u16) -> Header {
        let mut header = Header {
            src_cid: HOST_CID,
            dst_cid: self.cid,
            src_port: key.0,
            dst_port: key.1,
            kind: STREAM,
            op,
            ..Header::default()
        };
        if let Some(connection) = connection {
            connection.forwarded_told = connection.forwarded;
            (header.buf_alloc, header.fwd_cnt) = (BUFFER_BYTES, connection.forwarded);
        }
        header
    }

    fn tell(&self, table: &mut Table, header: Header) {
        if table.control.len() < MAX_WAITING {
            table.control.push_back(header);
        }
    }

    fn drop_with_reset(&self, table: &mut Table, key: Key) {
        self.remove(table, key);
        self.tell(table, self.header(key, None, op::RST));
    }

    fn remove(&self, table: &mut Table, key: Key) {
        if let Some(connection) = table.connections.remove(&key) {
            table.keys.remove(&connection.token);
        }
    }

    /// Asks for exactly the events that the connection has use for. One without any must not be
    /// watched at all: hanging up cannot be left out.
    fn follow(&self, connection: &mut Connection) {
        let wanted = connection.wanted();
        let operation = match (connection.interest, wanted) {
            (None, Some(_)) => ControlOperation::Add,
            (Some(_), None) => ControlOperation::Delete,
            (Some(old), Some(new)) if old != new => ControlOperation::Modify,
            _ => return,
        };
        let event = EpollEvent::new(wanted.unwrap_or(EventSet::empty()), connection.token);
        if self.epoll.ctl(operation, connection.stream.as_raw_fd(), event).is_ok() {
            connection.interest = wanted;
        }
    }
}

impl Table {
    fn new_token(&mut self) -> u64 {
        self.streams += 1;
        FIRST_STREAM + self.streams
    }

    /// A port of the host's that no connection to the guest's `port` has.
    fn new_host_port(&mut self, port: u32) -> u32 {
        loop {
            self.host_ports = (self.host_ports + 1) % FIRST_HOST_PORT;
            let host_port = FIRST_HOST_PORT + self.host_ports;
            if !self.connections.contains_key(&(host_port, port)) {
                return host_port;
            }
        }
    }

    fn insert(&mut self, key: Key, connection: Connection) {
        self.keys.insert(connection.token, key);
        self.connections.insert(key, connection);
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}

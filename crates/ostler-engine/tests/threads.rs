//! Pausing, resuming and stopping vCPU threads, from outside and from within.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use ostler_engine::bus::{Bus, BusDevice, Space};
use ostler_engine::testing::{HLT, OUT_IMM8, SPIN, TRIPLE_FAULT, ToyAccelerator, ToyVm, toy_vcpu, toy_vm};
use ostler_engine::thread::State;
use ostler_engine::{Accelerator, Exit, IoHandler, NobodyAnswers, ThreadError, Threads, VcpuHandle, Vm, VmClock};
use ostler_memory::{GuestRam, SlotConfig};

/// Long enough to be a failure.
const PATIENCE: Duration = Duration::from_secs(20);

struct Machine {
    vm: Arc<ToyVm>,
    vcpus: Vec<Arc<VcpuHandle>>,
    threads: Arc<Threads>,
    exits: Receiver<(u32, Exit)>,
}

impl Machine {
    fn start(programs: &[&[&[u8]]], io: Arc<dyn IoHandler + Send>) -> Self {
        let vcpus: Vec<_> = programs.iter().map(|code| Arc::new(VcpuHandle::new(toy_vcpu(code)))).collect();
        Self::of(vcpus, io)
    }

    fn of(vcpus: Vec<Arc<VcpuHandle>>, io: Arc<dyn IoHandler + Send>) -> Self {
        let vm = toy_vm();
        let (sender, exits) = channel();
        let on_exit = Box::new(move |id, exit| {
            let _nobody_listens = sender.send((id, exit));
        });
        let clock = Arc::new(VmClock::new(vm.clone()));
        let threads = Threads::start(vcpus.clone(), io, clock, on_exit, false).expect("threads");
        Self { vm, vcpus, threads: Arc::new(threads), exits }
    }

    fn next_exit(&self) -> (u32, Exit) {
        self.exits.recv_timeout(PATIENCE).expect("an exit")
    }

    fn rip(&self) -> u64 {
        self.vcpus[0].with(|vcpu| vcpu.regs()).expect("a paused vCPU").rip
    }

    fn wait_until(&self, condition: impl Fn(&Self) -> bool) {
        let deadline = std::time::Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(std::time::Instant::now() < deadline, "{:?}", self.threads.states());
            std::thread::yield_now();
        }
    }
}

fn spinning() -> Machine {
    Machine::start(&[&[&SPIN]], Arc::new(NobodyAnswers))
}

/// 64 processors over one memory.
fn crowd() -> Vec<Arc<VcpuHandle>> {
    let memory = Arc::new(GuestRam::new());
    memory.set_slot(SlotConfig { size: 0x1000, ..Default::default() }).expect("one page");
    memory.write(0, &SPIN).expect("code");
    let vm = ToyAccelerator.create_vm(memory).expect("a VM");
    (0..64).map(|id| Arc::new(VcpuHandle::new(vm.create_vcpu(id).expect("a vCPU")))).collect()
}

#[test]
fn pause_returns_when_the_vcpu_can_be_looked_at_and_resume_lets_it_run() {
    let machine = spinning();
    machine.wait_until(|machine| machine.threads.states() == [State::Running]);
    machine.wait_until(|machine| machine.vcpus[0].with(|vcpu| vcpu.regs()).is_err());
    machine.threads.pause();
    assert_eq!(machine.threads.states(), [State::Paused]);
    assert_eq!(machine.rip(), 0);
    assert!(!machine.threads.is_running());
    machine.threads.resume();
    assert!(machine.threads.is_running());
    machine.wait_until(|machine| machine.threads.states() == [State::Running]);
}

#[test]
fn clock_stands_while_paused() {
    let machine = spinning();
    machine.threads.pause();
    machine.vm.set_clock_ns(5);
    machine.threads.resume();
    assert_eq!(machine.vm.clock_ns(), 0);
}

#[test]
fn kick_by_others_does_not_disturb_a_thread() {
    let machine = spinning();
    machine.vcpus[0].kick();
    machine.threads.pause();
    assert!(machine.exits.try_recv().is_err());
}

#[test]
fn exit_nobody_answers_pauses_every_vcpu_and_is_reported_and_resume_goes_on_after_it() {
    let programs: [&[&[u8]]; 2] = [&[&OUT_IMM8, &HLT], &[&SPIN]];
    let machine = Machine::start(&programs, Arc::new(NobodyAnswers));
    assert_eq!(machine.next_exit(), (0, Exit::IoOut { port: 0x10, data: vec![0] }));
    machine.wait_until(|machine| machine.threads.states() == [State::Paused, State::Paused]);
    assert_eq!(machine.rip(), 2);
    machine.threads.resume();
    assert_eq!(machine.next_exit(), (0, Exit::Hlt));
}

#[test]
fn triple_fault_can_be_followed_by_a_reset() {
    let machine = Machine::start(&[&[&TRIPLE_FAULT, &HLT]], Arc::new(NobodyAnswers));
    assert_eq!(machine.next_exit(), (0, Exit::Shutdown));
    machine.threads.pause();
    let reset = |vcpu: &mut dyn ostler_engine::Vcpu| {
        let regs = vcpu.regs()?;
        vcpu.set_regs(&ostler_engine::regs::Regs { rip: 2, ..regs })
    };
    machine.vcpus[0].with(reset).expect("a paused vCPU");
    machine.threads.resume();
    assert_eq!(machine.next_exit(), (0, Exit::Hlt));
}

#[test]
fn error_of_the_accelerator_is_reported_as_an_internal_error() {
    let machine = Machine::start(&[&[&[0xeb, 0x80]]], Arc::new(NobodyAnswers));
    let (_, exit) = machine.next_exit();
    assert!(matches!(exit, Exit::InternalError(text) if text.starts_with("no memory at")));
}

#[test]
fn vcpu_of_a_thread_is_not_run_elsewhere_until_the_threads_stop() {
    let machine = spinning();
    machine.threads.pause();
    assert!(machine.vcpus[0].run(&NobodyAnswers).is_err());
    let clock = Arc::new(VmClock::new(toy_vm()));
    let again = Threads::start(machine.vcpus.clone(), Arc::new(NobodyAnswers), clock, Box::new(|_, _| {}), false);
    assert!(matches!(again, Err(ThreadError::Owned(0))));
    machine.threads.stop();
    assert_eq!(machine.threads.states(), [State::Finished]);
    machine.vcpus[0].kick();
    assert_eq!(machine.vcpus[0].run(&NobodyAnswers).expect("runs"), Exit::Interrupted);
}

#[test]
fn stop_is_final_and_may_be_repeated() {
    let machine = spinning();
    machine.threads.stop();
    machine.threads.stop();
    machine.threads.resume();
    machine.threads.pause();
    assert!(!machine.threads.is_running());
}

/// A device whose write acts on the threads of its own VM.
struct Switch {
    threads: OnceLock<std::sync::Weak<Threads>>,
    act: fn(&Threads),
    writes: AtomicU64,
}

impl std::fmt::Debug for Switch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Switch")
    }
}

impl BusDevice for Switch {
    fn read(&self, _offset: u64, _data: &mut [u8]) {}
    fn write(&self, _offset: u64, _data: &[u8]) {
        (self.act)(&self.threads.wait().upgrade().expect("threads that live"));
        self.writes.fetch_add(1, Ordering::SeqCst);
    }
}

fn with_switch(act: fn(&Threads)) -> (Machine, Arc<Switch>) {
    let switch = Arc::new(Switch { threads: OnceLock::new(), act, writes: AtomicU64::new(0) });
    let bus = Bus::new();
    bus.add(Space::Pio, 0x10, 1, "switch", switch.clone()).expect("a free range");
    let programs: [&[&[u8]]; 2] = [&[&OUT_IMM8, &SPIN], &[&SPIN]];
    let machine = Machine::start(&programs, Arc::new(bus));
    switch.threads.set(Arc::downgrade(&machine.threads)).expect("set once");
    (machine, switch)
}

#[test]
fn device_may_pause_its_own_vm() {
    let (machine, switch) = with_switch(Threads::pause);
    machine.wait_until(|machine| machine.threads.states() == [State::Paused; 2] && machine.rip() == 2);
    assert_eq!(switch.writes.load(Ordering::SeqCst), 1);
    machine.threads.resume();
    machine.wait_until(|machine| machine.threads.states() == [State::Running; 2]);
}

#[test]
fn device_may_stop_its_own_vm() {
    let (machine, _switch) = with_switch(Threads::stop);
    machine.wait_until(|machine| machine.threads.states() == [State::Finished; 2]);
    machine.threads.stop();
}

#[test]
fn pause_resume_and_stop_race_with_sixty_four_threads() {
    let machine = Machine::of(crowd(), Arc::new(NobodyAnswers));
    std::thread::scope(|scope| {
        for caller in 0..4 {
            let (threads, vcpus) = (&machine.threads, &machine.vcpus);
            scope.spawn(move || {
                for round in 0..50 {
                    match (caller + round) % 3 {
                        0 => threads.pause(),
                        1 => threads.resume(),
                        _ => vcpus.iter().for_each(|vcpu| vcpu.kick()),
                    }
                }
            });
        }
    });
    machine.threads.pause();
    assert_eq!(machine.threads.states(), [State::Paused; 64]);
    machine.threads.resume();
    std::thread::scope(|scope| {
        scope.spawn(|| machine.threads.pause());
        scope.spawn(|| machine.threads.stop());
        scope.spawn(|| machine.threads.stop());
    });
    assert_eq!(machine.threads.states(), [State::Finished; 64]);
}

#[test]
fn threads_are_named_after_their_vcpu() {
    let names = Arc::new(Mutex::new(Vec::new()));
    let (seen, vm) = (Arc::clone(&names), toy_vm());
    let on_exit = Box::new(move |_, _| {
        seen.lock().expect("names").push(std::thread::current().name().map(String::from));
    });
    let vcpus = vec![Arc::new(VcpuHandle::new(toy_vcpu(&[&HLT])))];
    let clock = Arc::new(VmClock::new(vm));
    let threads = Threads::start(vcpus, Arc::new(NobodyAnswers), clock, on_exit, false).expect("threads");
    while names.lock().expect("names").is_empty() {
        std::thread::yield_now();
    }
    threads.stop();
    assert_eq!(*names.lock().expect("names"), [Some("vcpu0".to_string())]);
}

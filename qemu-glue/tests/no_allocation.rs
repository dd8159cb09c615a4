//! The path of an epoch allocates nothing once it is warm.

mod support;

use romulus_checkpoint::Extent;
use romulus_checkpoint::guest::Guest;
use romulus_counting_allocator::{CountingAllocator, of_thread};
use romulus_qemu::{GuestOptions, QemuGuest};
use romulus_transport::Memory;
use support::Vm;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

#[test]
fn an_epoch_allocates_nothing() {
    let vm = Vm::start(false, &[]);
    let mut guest = QemuGuest::attach(GuestOptions::new(&vm.qmp)).expect("attach");
    guest.start_tracking().expect("tracking");
    let state = Memory::anonymous(4 << 20);
    let mut dirty: Vec<Extent> = Vec::with_capacity(1 << 16);
    let mut epoch = |guest: &mut QemuGuest| {
        guest.pause().expect("pause");
        let length = guest.save_state(&state).expect("state");
        dirty.clear();
        guest.collect(&mut dirty).expect("dirty pages");
        guest.resume().expect("resume");
        assert!(length > 0 && guest.poll_event().is_none());
    };
    // Buffers grow to the largest epoch seen, so the first epochs allocate and a rare later one.
    let mut quiet = 0;
    for _ in 0..2000 {
        let before = of_thread().times;
        epoch(&mut guest);
        quiet = if of_thread().times == before { quiet + 1 } else { 0 };
        if quiet == 100 {
            break;
        }
    }
    assert_eq!(quiet, 100, "epochs in a row without an allocation");
    assert_eq!(guest.methods().0, "devices", "the way that epochs are saved");
}

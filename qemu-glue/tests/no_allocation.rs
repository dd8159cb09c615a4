//! The path of an epoch allocates nothing once it is warm.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use romulus_checkpoint::Extent;
use romulus_checkpoint::guest::Guest;
use romulus_qemu::{GuestOptions, QemuGuest};
use romulus_transport::Memory;
use support::Vm;

/// Counts the allocations of each thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is handed on to the system's allocator; counting touches a constant
// thread-local that needs no allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

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
        let before = ALLOCATIONS.with(Cell::get);
        epoch(&mut guest);
        quiet = if ALLOCATIONS.with(Cell::get) == before { quiet + 1 } else { 0 };
        if quiet == 100 {
            break;
        }
    }
    assert_eq!(quiet, 100, "epochs in a row without an allocation");
    assert_eq!(guest.methods().0, "devices", "the way that epochs are saved");
}

//! The arena: where a compiled program lies, so that it can be copied into other instances.
//!
//! While a value is made for it, whatever is allocated comes from the arena. Its bytes are then
//! an image of the value: copied to the same place in another fresh instance they are that value
//! again, because all such instances begin with the same memory. The image refers to itself, to
//! the guest's static data, and to nothing else; so nothing that counts references may be shared
//! between the value and the rest of the guest.
//!
//! A value in the arena is never dropped: it ends with its instance.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, UnsafeCell};
use std::mem::MaybeUninit;

/// The largest image that is kept; what does not fit is compiled again for each execution. It
/// costs addresses, and memory only where it is used.
const ARENA_BYTES: usize = 1024 * 1024;

/// The alignment of every place in the arena.
const ALIGN: usize = 16;
/// Sizes of places: four to each power of two, so that a place that became free fits again.
const SIZES: usize = 4 * usize::BITS as usize;

#[repr(C, align(4096))]
struct Arena {
    bytes: UnsafeCell<[MaybeUninit<u8>; ARENA_BYTES]>,
    used: Cell<usize>,
    taking: Cell<Taking>,
    /// The places of each size that became free; each begins with the address of the next.
    free: [Cell<*mut u8>; SIZES],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Taking {
    /// Everybody allocates as ever.
    Nothing,
    /// Everything comes from the arena.
    Everything,
    /// An image is to come: the next allocation is the whole of it.
    Image,
}

// SAFETY: an instance has one thread.
unsafe impl Sync for Arena {}

static ARENA: Arena = Arena {
    bytes: UnsafeCell::new([MaybeUninit::uninit(); ARENA_BYTES]),
    used: Cell::new(0),
    taking: Cell::new(Taking::Nothing),
    free: [const { Cell::new(std::ptr::null_mut()) }; SIZES],
};

/// The size of a place for `bytes`, and which of the sizes that is.
fn place_size(bytes: usize) -> (usize, usize) {
    let bytes = bytes.max(ALIGN);
    let size = bytes.next_multiple_of(((1 << bytes.ilog2()) / 4).max(ALIGN));
    let doublings = size.ilog2();
    let quarter = (size >> (doublings - 2)) & 3;
    (size, 4 * doublings as usize + quarter)
}

impl Arena {
    fn start(&self) -> *mut u8 {
        self.bytes.get().cast()
    }

    fn holds(&self, place: *mut u8) -> bool {
        (place as usize).wrapping_sub(self.start() as usize) < ARENA_BYTES
    }

    /// A place for `layout`; none when nothing comes from here, or it does not fit.
    fn take(&self, layout: Layout) -> Option<*mut u8> {
        match self.taking.get() {
            Taking::Nothing => None,
            Taking::Image => {
                self.taking.set(Taking::Nothing);
                (layout.size() <= ARENA_BYTES).then(|| self.start())
            }
            Taking::Everything => {
                let (size, of_size) = place_size(layout.size());
                let free = self.free[of_size].get();
                if !free.is_null() {
                    // SAFETY: `give_back` wrote the next one there.
                    self.free[of_size].set(unsafe { free.cast::<*mut u8>().read() });
                    return Some(free);
                }
                let from = self.used.get();
                // Past the end once, it stays there: what is allocated elsewhere is not in the
                // image.
                self.used.set(from.saturating_add(size));
                let fits = layout.align() <= ALIGN && self.used.get() <= ARENA_BYTES;
                if !fits {
                    self.used.set(ARENA_BYTES + 1);
                }
                fits.then(|| self.start().wrapping_add(from))
            }
        }
    }

    /// Let a place that `take` gave for `layout` be taken again.
    fn give_back(&self, place: *mut u8, layout: Layout) {
        if self.taking.get() == Taking::Everything {
            let (_, of_size) = place_size(layout.size());
            // SAFETY: nobody uses the place any more, and it is large enough for an address.
            unsafe { place.cast::<*mut u8>().write(self.free[of_size].get()) };
            self.free[of_size].set(place);
        }
    }
}

/// The system's allocator with the arena before it.
struct Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

// SAFETY: what the arena gives is aligned, as large as asked for, and given once; the rest is
// the system's.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match ARENA.take(layout) {
            Some(place) => place,
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        if ARENA.holds(place) {
            ARENA.give_back(place, layout);
        } else {
            unsafe { System.dealloc(place, layout) }
        }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !ARENA.holds(place) && ARENA.taking.get() == Taking::Nothing {
            return unsafe { System.realloc(place, layout, size) };
        }
        let larger = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        unsafe {
            let moved = self.alloc(larger);
            if !moved.is_null() {
                moved.copy_from_nonoverlapping(place, layout.size().min(size));
                self.dealloc(place, layout);
            }
            moved
        }
    }
}

/// Make a value in the arena and take its image; none when there is no value, or it is too large.
pub fn image_of<T>(make: impl FnOnce() -> Option<T>) -> Option<Vec<u8>> {
    let (root, _) = place_size(size_of::<T>());
    ARENA.used.set(root);
    ARENA.taking.set(Taking::Everything);
    let made = make();
    ARENA.taking.set(Taking::Nothing);
    let made = made?;
    let used = ARENA.used.get();
    if used > ARENA_BYTES {
        return None;
    }
    // SAFETY: the first place was left free for the value; the memory of an instance begins as
    // zeros, so that all these bytes are initialised.
    unsafe {
        ARENA.start().cast::<T>().write(made);
        let image = std::slice::from_raw_parts(ARENA.start(), used);
        Some(image.to_vec())
    }
}

/// The value whose image `fetch` brings: what [`image_of`] answered in another instance of this
/// very component, for the same `T`. `fetch` must allocate once, for the image.
pub fn restore<T>(fetch: impl FnOnce() -> Vec<u8>) -> &'static T {
    ARENA.taking.set(Taking::Image);
    let image = fetch();
    assert!(
        std::ptr::eq(image.as_ptr(), ARENA.start()),
        "the image is not where it belongs"
    );
    std::mem::forget(image);
    // SAFETY: the host gives the image to instances of the component that it is from only, and
    // what lies at its place was a `T` there.
    unsafe { &*ARENA.start().cast::<T>() }
}

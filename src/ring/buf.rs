//! Buffers that the kernel fills and frames point into.
//!
//! ```text
//!   Pool ──take()──▶ Filling ═══ kernel writes ═══▶ Filling::cut(n) ──▶ Chunk, split_to, clone
//!     ▲                the unfilled tail                                the filled part, shared
//!     └──────────────── the last one dropped gives the memory back ◀──────┘
//! ```
//!
//! A buffer is filled once, front to back: the tail belongs to the one `Filling`, every byte before it is only read.
//! That is why the kernel may write the tail while chunks of the front are still on their way out. Bytes of a TLS link
//! stay the `Filling`'s until they are opened, where they lie.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::rc::Rc;

use super::pages::Pages;
use crate::mux::Payload;

/// Sizes of pooled buffers: small ones for a stream's reads, large ones for links and big streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    Small,
    Large,
}

impl Size {
    const fn bytes(self) -> usize {
        match self {
            // One page, several small requests.
            Self::Small => 4 << 10,
            // One BULK frame.
            Self::Large => 64 << 10,
        }
    }

    /// The smallest that holds `len`.
    pub fn for_bytes(len: usize) -> Option<Self> {
        [Self::Small, Self::Large].into_iter().find(|size| len <= size.bytes())
    }

    /// How many free buffers are kept rather than given back to the kernel, used or not: 256 KiB and 1 MiB a worker.
    const fn keep(self) -> usize {
        match self {
            Self::Small => 64,
            Self::Large => 16,
        }
    }
}

struct Free {
    pages: [Pages; 2],
    /// Bytes of buffers that are in use.
    used: usize,
}

impl Default for Free {
    fn default() -> Self {
        Self { pages: [Size::Small, Size::Large].map(|size| Pages::new(size.bytes(), size.keep())), used: 0 }
    }
}

/// One worker's buffers. Cloning gives another handle.
#[derive(Clone, Default)]
pub struct Pool(Rc<RefCell<Free>>);

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} bytes used)", self.used())
    }
}

impl Pool {
    pub fn take(&self, size: Size) -> Filling {
        let mut free = self.0.borrow_mut();
        free.used += size.bytes();
        let start = free.pages[size as usize].take();
        Filling {
            memory: Rc::new(Memory { start, len: size.bytes(), home: Some((self.clone(), size)) }),
            filled: 0,
            raw: 0,
        }
    }

    /// Now and then: what a burst needed goes back to the kernel.
    pub fn rest(&self) {
        self.0.borrow_mut().pages.iter_mut().for_each(Pages::rest);
    }

    /// So many small buffers as are in use now, a large one counted as many.
    pub fn buffers(&self) -> usize {
        self.used() / Size::Small.bytes()
    }

    /// Bytes of buffers that are in use now.
    pub fn used(&self) -> usize {
        self.0.borrow().used
    }
}

/// Where bytes live. Only `Filling` writes, and only behind every `Chunk`.
struct Memory {
    start: NonNull<u8>,
    len: usize,
    home: Option<(Pool, Size)>,
}

impl Memory {
    fn of_its_own(bytes: Box<[u8]>) -> Self {
        let len = bytes.len();
        let start = NonNull::new(Box::into_raw(bytes).cast::<u8>()).expect("a box is never null");
        Self { start, len, home: None }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some((pool, size)) = self.home.take() {
            let mut free = pool.0.borrow_mut();
            free.used -= size.bytes();
            return free.pages[size as usize].give(self.start);
        }
        let raw = std::ptr::slice_from_raw_parts_mut(self.start.as_ptr(), self.len);
        // SAFETY: `start` and `len` are the box that `of_its_own` took apart, and the last handle is going.
        drop(unsafe { Box::from_raw(raw) });
    }
}

/// A buffer that is being filled: what is behind its chunks is ours alone.
///
/// ```text
///   0 ........ filled ........ filled + raw ........ len
///     chunks           received,               for the kernel
///                      sealed still
/// ```
pub struct Filling {
    memory: Rc<Memory>,
    filled: usize,
    /// Bytes that were received and can't be chunks yet.
    raw: usize,
}

impl fmt::Debug for Filling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Filling({} and {} of {})", self.filled, self.raw, self.memory.len)
    }
}

impl Filling {
    /// A buffer outside the pool, for a record that no pooled one can hold.
    pub fn of_its_own(len: usize) -> Self {
        Self { memory: Rc::new(Memory::of_its_own(vec![0; len].into_boxed_slice())), filled: 0, raw: 0 }
    }

    /// Room left.
    pub fn spare(&self) -> usize {
        self.memory.len - self.filled - self.raw
    }

    pub fn is_small(&self) -> bool {
        self.memory.len <= Size::Small.bytes()
    }

    /// Where the kernel may write `spare` bytes.
    pub(super) fn tail(&self) -> *mut u8 {
        // SAFETY: `filled + raw <= len`, so the result is inside the allocation or one past it.
        unsafe { self.memory.start.as_ptr().add(self.filled + self.raw) }
    }

    /// The first `len` bytes behind all that was filled, to be written here. They are a chunk once they are `cut`.
    pub fn tail_mut(&mut self, len: usize) -> &mut [u8] {
        assert!(self.raw == 0 && len <= self.spare(), "no more than is free");
        // SAFETY: `filled..filled + len` lies in the allocation, whose pages were zeroed or written; chunks end before it,
        // no operation has this `Filling`, and this is the only handle that reaches it.
        unsafe { std::slice::from_raw_parts_mut(self.memory.start.as_ptr().add(self.filled), len) }
    }

    /// The kernel has written `count` bytes at the tail: they are a chunk now.
    pub fn cut(&mut self, count: usize) -> Chunk {
        assert!(self.raw == 0, "bytes that are still sealed are in front of them");
        self.received(count);
        self.cut_opened(count, 0..count)
    }

    /// The kernel has written `count` bytes at the tail, which are still sealed.
    pub fn received(&mut self, count: usize) {
        assert!(count <= self.spare(), "the kernel writes no more than it was given");
        self.raw += count;
    }

    /// How much was received and is no chunk yet.
    pub fn sealed(&self) -> usize {
        self.raw
    }

    /// What was received and is no chunk yet: to be opened in place.
    pub fn raw(&mut self) -> &mut [u8] {
        // SAFETY: `filled..filled + raw` lies in the allocation and was written; chunks end before it, the kernel writes
        // behind it, and this is the only handle that reaches it.
        unsafe { std::slice::from_raw_parts_mut(self.memory.start.as_ptr().add(self.filled), self.raw) }
    }

    /// The first `used` bytes of `raw` are done with, and `plain` of them are a chunk now.
    pub fn cut_opened(&mut self, used: usize, plain: Range<usize>) -> Chunk {
        assert!(plain.start <= plain.end && plain.end <= used && used <= self.raw, "no more than was received");
        let (start, end) = (self.filled + plain.start, self.filled + plain.end);
        self.filled += used;
        self.raw -= used;
        Chunk { memory: Rc::clone(&self.memory), start, end }
    }

    /// Goes on in `other`, a fresh buffer: what is still sealed moves there.
    pub fn go_on_in(mut self, mut other: Self) -> Self {
        let sealed = self.raw();
        assert!(other.filled + other.raw == 0 && sealed.len() <= other.memory.len, "a record fits a fresh buffer");
        other.raw = sealed.len();
        other.raw().copy_from_slice(sealed);
        other
    }
}

/// Some bytes of a buffer, shared by reference.
pub struct Chunk {
    memory: Rc<Memory>,
    start: usize,
    end: usize,
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chunk({} bytes)", self.len())
    }
}

impl Chunk {
    /// Drops the first `count` bytes.
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.len(), "no more than there is");
        self.start += count;
    }
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `start..end` lies in the allocation; it was written before `cut` made this chunk, and nobody writes
        // there again: `Filling` writes only behind `filled`, which is not before `end`.
        unsafe { std::slice::from_raw_parts(self.memory.start.as_ptr().add(self.start), self.len()) }
    }
}

impl Payload for Chunk {
    /// Of a small remainder that keeps a buffer at least eight times its size.
    fn compacted(&self) -> Option<Self> {
        (self.memory.len / 8 > self.len()).then(|| Self::from_vec(self.as_ref().to_vec()))
    }

    fn len(&self) -> usize {
        self.end - self.start
    }

    fn split_to(&mut self, count: usize) -> Self {
        assert!(count <= self.len(), "no more than there is");
        let head = Self { memory: Rc::clone(&self.memory), start: self.start, end: self.start + count };
        self.start += count;
        head
    }

    fn from_vec(bytes: Vec<u8>) -> Self {
        let end = bytes.len();
        Self { memory: Rc::new(Memory::of_its_own(bytes.into_boxed_slice())), start: 0, end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_chunk_gives_the_buffer_back() {
        let pool = Pool::default();
        let mut filling = pool.take(Size::Small);
        let mut chunk = filling.cut(10);
        let head = chunk.split_to(4);
        assert_eq!((head.len(), chunk.len(), pool.used()), (4, 6, 4096));
        drop((filling, chunk));
        assert_eq!(pool.used(), 4096);
        drop(head);
        assert_eq!(pool.used(), 0);
        drop(pool.take(Size::Small));
    }

    #[test]
    fn the_tail_may_be_written_while_the_front_is_read() {
        let pool = Pool::default();
        let mut filling = pool.take(Size::Small);
        // SAFETY: the test is the kernel here.
        unsafe { filling.tail().copy_from(b"front".as_ptr(), 5) };
        let front = filling.cut(5);
        // SAFETY: as above.
        unsafe { filling.tail().copy_from(b"tail".as_ptr(), 4) };
        let tail = filling.cut(4);
        assert_eq!((front.as_ref(), tail.as_ref()), (&b"front"[..], &b"tail"[..]));
        assert_eq!(front.compacted().expect("it keeps a page").as_ref(), b"front");
    }

    #[test]
    fn sealed_bytes_are_opened_in_place_and_move_to_the_next_buffer_when_they_are_no_whole_record() {
        let pool = Pool::default();
        let mut filling = pool.take(Size::Small);
        // SAFETY: the test is the kernel here.
        unsafe { filling.tail().copy_from(b"5headplain3he".as_ptr(), 13) };
        filling.received(13);
        filling.raw()[5..10].copy_from_slice(b"PLAIN");
        let plain = filling.cut_opened(10, 5..10);
        assert_eq!((plain.as_ref(), &*filling.raw()), (&b"PLAIN"[..], &b"3he"[..]));
        let mut next = filling.go_on_in(pool.take(Size::Small));
        assert_eq!(next.raw(), b"3he");
        assert_eq!(next.spare(), 4096 - 3);
        assert_eq!(plain.as_ref(), b"PLAIN");
    }
}

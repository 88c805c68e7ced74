//! Memory by the page, apart from the allocator's: what a burst needed goes back to the kernel when it is over.
//!
//! ```text
//!   kernel ──a region at a time──▶ cold ──take()──▶ in use ──give()──▶ warm ──take()──▶ ...
//!                                   ▲                                   │
//!                                   └──────── rest(): pages given back ─┘
//! ```
//!
//! The allocator puts buffers between small things that live on, and what is freed between those stays with the process:
//! a burst of thousands of reads cost 50 KiB a connection for ever. Cells of one size, with nothing else between them,
//! leave no such holes.

use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use nix::unistd::{SysconfVar, sysconf};

use crate::limits::REGION_BYTES;

/// Cells of one size, which divides a region. Of one thread.
pub(super) struct Pages {
    cell: usize,
    /// The kernel's: 64 KiB on some Arm machines.
    page: usize,
    /// Cells that may stay warm for ever.
    keep: usize,
    regions: Vec<NonNull<u8>>,
    /// Free, with their pages; the last one was used last.
    warm: Vec<NonNull<u8>>,
    /// Free, without pages: all zero.
    cold: Vec<NonNull<u8>>,
    /// So many were warm all the time since the last `rest`.
    unused: usize,
}

impl Pages {
    pub(super) fn new(cell: usize, keep: usize) -> Self {
        let page = page();
        let fits = cell.is_multiple_of(page) || page.is_multiple_of(cell);
        assert!(
            fits && REGION_BYTES.is_multiple_of(cell.max(page)),
            "cells fill pages, or pages cells, and both a region"
        );
        Self { cell, page, keep, regions: Vec::new(), warm: Vec::new(), cold: Vec::new(), unused: 0 }
    }

    /// A cell: all zero, or as its last user left it. It stays where it is for as long as this lives.
    pub(super) fn take(&mut self) -> NonNull<u8> {
        if let Some(cell) = self.warm.pop() {
            self.unused = self.unused.min(self.warm.len());
            return cell;
        }
        if self.cold.is_empty() {
            self.map_region();
        }
        self.cold.pop().expect("a region has cells")
    }

    /// The cell came from `take`, and nobody uses it any more.
    pub(super) fn give(&mut self, cell: NonNull<u8>) {
        self.warm.push(cell);
    }

    fn map_region(&mut self) {
        let len = NonZeroUsize::new(REGION_BYTES).expect("not zero");
        let (prot, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE);
        // SAFETY: a new mapping, where the kernel wants it.
        let region = unsafe { mmap_anonymous(None, len, prot, flags) }.expect("memory for buffers").cast::<u8>();
        // A huge page would come and go as a whole. EINVAL: this kernel has none.
        // SAFETY: the mapping just made; the advice changes nothing in it.
        let _ = unsafe { madvise(region.cast(), REGION_BYTES, MmapAdvise::MADV_NOHUGEPAGE) };
        self.regions.push(region);
        // SAFETY: offsets within the region.
        self.cold.extend((0..REGION_BYTES / self.cell).rev().map(|n| unsafe { region.add(n * self.cell) }));
    }

    /// Gives back the pages of what nobody has needed since the last call.
    pub(super) fn rest(&mut self) {
        let excess = self.unused.min(self.warm.len().saturating_sub(self.keep));
        self.unused = self.warm.len() - excess;
        if excess == 0 {
            return;
        }
        let mut free: Vec<_> = self.warm.drain(..excess).collect();
        free.sort_unstable();
        for run in free.chunk_by(|a, b| a.addr().get() + self.cell == b.addr().get()) {
            // A page goes only as a whole.
            let (start, end) = (run[0].addr().get(), run[run.len() - 1].addr().get() + self.cell);
            let (from, to) = (start.next_multiple_of(self.page), end / self.page * self.page);
            let whole = |cell: &NonNull<u8>| (from..to).contains(&cell.addr().get());
            if let Some(first) = run.iter().copied().find(whole) {
                // SAFETY: pages of our own cells, which nobody uses.
                let done = unsafe { madvise(first.cast(), to - from, MmapAdvise::MADV_DONTNEED) };
                // EAGAIN, ENOMEM: they stay where they are, which harms nobody.
                if done.is_ok() {
                    self.cold.extend(run.iter().rev().copied().filter(whole));
                    self.warm.extend(run.iter().copied().filter(|cell| !whole(cell)));
                    continue;
                }
            }
            self.warm.extend(run);
        }
        self.warm.shrink_to(2 * self.keep);
    }

    /// Free cells that have their pages, and all free ones.
    #[cfg(test)]
    fn free(&self) -> (usize, usize) {
        (self.warm.len(), self.warm.len() + self.cold.len())
    }
}

fn page() -> usize {
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    page.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(4 << 10)
}

impl Drop for Pages {
    fn drop(&mut self) {
        for region in self.regions.drain(..) {
            // SAFETY: mapped by `map_region` with this length; who holds a cell holds this too.
            let _ = unsafe { munmap(region.cast(), REGION_BYTES) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the page of this cell is there: mincore(2).
    fn is_there(cell: NonNull<u8>) -> bool {
        let (size, mut told) = (page(), 0u8);
        let page = cell.addr().get() / size * size;
        // SAFETY: one page of a mapping of ours, and room for its one byte.
        let asked = unsafe { libc::mincore(page as *mut libc::c_void, size, &raw mut told) };
        assert_eq!(asked, 0);
        told & 1 == 1
    }

    fn touch(cell: NonNull<u8>) {
        // SAFETY: the test has taken the cell.
        unsafe { cell.write(7) }
    }

    #[test]
    fn what_a_burst_needed_goes_back_after_two_rests_and_the_rest_stays_warm() {
        let mut pages = Pages::new(page(), 8);
        let cells: Vec<_> = (0..1000).map(|_| pages.take()).collect();
        cells.iter().copied().for_each(touch);
        assert!(cells.iter().all(|cell| is_there(*cell)));
        cells.iter().for_each(|cell| pages.give(*cell));
        pages.rest();
        assert_eq!(pages.free().0, 1000, "they were in use a moment ago");
        pages.rest();
        assert_eq!(pages.free(), (8, pages.regions.len() * REGION_BYTES / page()));
        assert_eq!(cells.iter().filter(|cell| is_there(**cell)).count(), 8);
        assert_eq!(pages.take(), cells[999], "the one that was used last");
    }

    #[test]
    fn small_cells_go_back_when_the_whole_page_is_free() {
        let mut pages = Pages::new(page() / 2, 0);
        let cells: Vec<_> = (0..8).map(|_| pages.take()).collect();
        cells.iter().copied().for_each(touch);
        // The second half of the first page, two whole pages, and the first half of the last one.
        cells[1..7].iter().for_each(|cell| pages.give(*cell));
        pages.rest();
        pages.rest();
        let there: Vec<bool> = cells.iter().map(|cell| is_there(*cell)).collect();
        assert_eq!(there, [true, true, false, false, false, false, true, true]);
        assert_eq!(pages.free().0, 2);
        // SAFETY: nobody has given the first one back.
        assert_eq!(unsafe { cells[0].read() }, 7);
    }

    #[test]
    fn what_is_in_use_again_and_again_keeps_its_pages() {
        let mut pages = Pages::new(page(), 0);
        for _ in 0..4 {
            let cells: Vec<_> = (0..100).map(|_| pages.take()).collect();
            cells.iter().for_each(|cell| pages.give(*cell));
            pages.rest();
            assert_eq!(pages.free().0, 100);
        }
    }
}

//! Memory for numbers, on a cache line: zeroed by the system, or what a run before left.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::Range;
use std::sync::Mutex;

/// Vectors of a full cache line are read from one, not from two: torch's tensors lie so as well.
const LINE: usize = 64;
/// From so many bytes on, huge pages make up for what they could waste.
const HUGE: usize = 4 << 20;
/// Blocks of these sizes are kept for the next run: asking the system for their pages would cost as
/// much as a step does. Smaller ones it has at hand.
const KEPT: Range<usize> = 1 << 16..HUGE;
/// Bytes that are kept at most.
const ROOM: usize = 32 << 20;

static FREE: Mutex<Vec<Memory>> = Mutex::new(Vec::new());

/// Memory that nobody else can move or free. Whatever it holds, its bytes have been written.
pub struct Block {
    memory: Option<Memory>,
    bytes: usize,
}

struct Memory {
    raw: *mut u8,
    layout: Layout,
}

// SAFETY: it owns its memory, and does not read or write it; who uses the address answers for that.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Block {
    /// So many bytes; None where there is no room for them.
    pub fn new(bytes: usize) -> Option<Self> {
        // The system gives zeros without touching them only where no alignment is asked for.
        let layout = Layout::from_size_align(bytes.checked_add(LINE)?, 8).ok()?;
        let memory = kept(layout).or_else(|| Memory::zeros(layout))?;
        Some(Block { memory: Some(memory), bytes })
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where it begins: on a line.
    pub fn address(&self) -> *mut u8 {
        let Some(memory) = &self.memory else { unreachable!("taken by `drop` alone") };
        let ahead = (memory.raw as usize).next_multiple_of(LINE) - memory.raw as usize;
        // SAFETY: less than a line ahead, which the allocation has in excess.
        unsafe { memory.raw.add(ahead) }
    }
}

/// Memory of this size that an earlier run has left. Whoever cannot have the list at once goes without:
/// a forked child would wait for ever for a lock that another thread held.
fn kept(layout: Layout) -> Option<Memory> {
    let mut free = FREE.try_lock().ok()?;
    let at = free.iter().position(|memory| memory.layout == layout)?;
    Some(free.swap_remove(at))
}

impl Drop for Block {
    fn drop(&mut self) {
        let Some(memory) = self.memory.take() else { return };
        if !KEPT.contains(&memory.layout.size()) {
            return;
        }
        if let Ok(mut free) = FREE.try_lock() {
            free.push(memory);
            let mut held: usize = free.iter().map(|memory| memory.layout.size()).sum();
            while held > ROOM {
                held -= free.remove(0).layout.size(); // the oldest
            }
        }
    }
}

impl Memory {
    fn zeros(layout: Layout) -> Option<Self> {
        // SAFETY: at least a line long.
        let raw = unsafe { alloc_zeroed(layout) };
        if raw.is_null() {
            return None;
        }
        let memory = Memory { raw, layout };
        #[cfg(target_os = "linux")]
        if layout.size() >= HUGE {
            let page = 4096;
            let at = (raw as usize).next_multiple_of(page);
            let end = (raw as usize + layout.size()) / page * page;
            // SAFETY: whole pages of ours. Advice: whether it is taken changes no number.
            unsafe { libc::madvise(at as *mut libc::c_void, end - at, libc::MADV_HUGEPAGE) };
        }
        Some(memory)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and freed once.
        unsafe { dealloc(self.raw, self.layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_on_a_line_and_writable_to_its_end() {
        for bytes in [0, 1, 63, 4096, HUGE + 17] {
            let block = Block::new(bytes).unwrap();
            assert!((block.address() as usize).is_multiple_of(LINE) && block.bytes() == bytes);
            // SAFETY: as many bytes, that nobody else has.
            let content = unsafe { std::slice::from_raw_parts_mut(block.address(), bytes) };
            assert!(content.iter().all(|&byte| byte == 0));
            content.fill(1);
        }
        assert!(Block::new(usize::MAX - 8).is_none());
    }

    #[test]
    fn what_is_kept_is_bounded_and_given_once() {
        let bytes = 1 << 20;
        let blocks: Vec<Block> = (0..50).map(|_| Block::new(bytes).unwrap()).collect();
        drop(blocks);
        let held: usize = FREE.lock().unwrap().iter().map(|memory| memory.layout.size()).sum();
        assert!(held > ROOM - 2 * bytes && held <= ROOM);
        let blocks: Vec<Block> = (0..50).map(|_| Block::new(bytes).unwrap()).collect();
        let mut at: Vec<usize> = blocks.iter().map(|block| block.address() as usize).collect();
        at.sort_unstable();
        assert!(at.windows(2).all(|pair| pair[1] - pair[0] >= bytes));
    }
}

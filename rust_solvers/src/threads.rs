//! Passes shared between threads: torch's own where they can be had, else rayon's.
//!
//! A pass over the state follows a call of the field at once, when torch's threads still spin on
//! their cores, waiting for work. A second pool would have to fight them for these cores (measured
//! at 2e5 elements on two cores: slower than one thread). So the pass is handed to the pool that
//! torch itself uses, libgomp's, by the entry point that compilers call for `omp parallel`; and it is
//! cut as torch cuts its own, so that each core finds in its cache what it has just written.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::OnceLock;

use rayon::prelude::*;

/// From so many elements on a pass is shared out: torch's own limit.
const SHARED: usize = 1 << 15;
/// The same where the threads are rayon's, which have to be woken.
const SHARED_AMONG_SLEEPERS: usize = 1 << 20;

/// Call `work(from, piece)` on pieces of `out`, `from` being the index of a piece's first item, on
/// as many threads as torch may use. Pieces but the last are whole multiples of `unit` items; an item
/// costs about as much as `weight` elements of a pass.
pub fn share<U, F>(out: &mut [U], unit: usize, weight: usize, work: F)
where
    U: Send,
    F: Fn(usize, &mut [U]) + Sync,
{
    share_among(usize::MAX, out, unit, weight, work);
}

/// The same on at most `limit` threads.
pub fn share_among<U, F>(limit: usize, out: &mut [U], unit: usize, weight: usize, work: F)
where
    U: Send,
    F: Fn(usize, &mut [U]) + Sync,
{
    let size = out.len() * weight;
    let limit = limit.min(out.len().div_ceil(unit));
    if size < SHARED || limit < 2 || forked() {
        return work(0, out);
    }
    if let Some(pool) = pool() {
        return pool.share(out, unit, limit.min(size / SHARED), &work);
    }
    if size < SHARED_AMONG_SLEEPERS {
        return work(0, out);
    }
    let length = piece(out.len(), unit, rayon::current_num_threads().min(limit));
    out.par_chunks_mut(length).enumerate().for_each(|(i, piece)| work(i * length, piece));
}

/// The length of a piece where `items` are shared among `threads`: at least a `unit`.
fn piece(items: usize, unit: usize, threads: usize) -> usize {
    items.div_ceil(unit).div_ceil(threads.max(1)).max(1) * unit
}

/// The process whose threads these are.
static OWNER: OnceLock<u32> = OnceLock::new();

/// Take the threads for this process, before any of its children asks for them.
pub fn own() {
    OWNER.get_or_init(std::process::id);
}

/// Whether this is a forked child of the owner: threads do not survive a fork, and waiting for them
/// would not end.
fn forked() -> bool {
    *OWNER.get_or_init(std::process::id) != std::process::id()
}

/// The thread pool of torch: four functions of GNU's OpenMP, in the library that torch has loaded.
struct Pool {
    parallel: unsafe extern "C" fn(extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint),
    max_threads: unsafe extern "C" fn() -> c_int,
    thread: unsafe extern "C" fn() -> c_int,
    threads: unsafe extern "C" fn() -> c_int,
}

/// What each thread of a team is handed.
struct Job<'a, U, F> {
    work: &'a F,
    pool: &'a Pool,
    out: *mut U,
    len: usize,
    unit: usize,
}

impl Pool {
    fn share<U, F>(&self, out: &mut [U], unit: usize, most: usize, work: &F)
    where
        U: Send,
        F: Fn(usize, &mut [U]) + Sync,
    {
        // SAFETY: takes nothing, gives the limit that `torch.set_num_threads` has set.
        let threads = usize::try_from(unsafe { (self.max_threads)() }).unwrap_or(1).min(most);
        if threads < 2 {
            return work(0, out);
        }
        let len = out.len();
        let mut job = Job { work, pool: self, out: out.as_mut_ptr(), len, unit };
        let data = (&raw mut job).cast::<c_void>();
        // SAFETY: the call returns when every thread of the team has, so that `job` and `out` outlive
        // them. They share `work`, which is Sync, and each writes to a piece of `out` of its own,
        // whose items are Send. `threads` was a C int.
        unsafe { (self.parallel)(run::<U, F>, data, threads as c_uint, 0) }
    }
}

/// The part of one thread. A panic ends the process here, as it cannot cross the C function.
extern "C" fn run<U: Send, F: Fn(usize, &mut [U]) + Sync>(data: *mut c_void) {
    // SAFETY: `data` is the job of the `share` that waits for this call; nobody writes to it.
    let job = unsafe { &*data.cast::<Job<'_, U, F>>() };
    // SAFETY: both take nothing and tell of the team that this call runs in.
    let (i, threads) = unsafe { ((job.pool.thread)() as usize, (job.pool.threads)() as usize) };
    let length = piece(job.len, job.unit, threads);
    let from = (i * length).min(job.len);
    let length = length.min(job.len - from);
    if length > 0 {
        // SAFETY: `from + length <= len` items of `out`; pieces of different threads do not overlap,
        // as every thread of a team has another `i` below `threads`.
        (job.work)(from, unsafe { std::slice::from_raw_parts_mut(job.out.add(from), length) });
    }
}

/// Torch's pool, looked for once; None where torch was built with another one.
fn pool() -> Option<&'static Pool> {
    static POOL: OnceLock<Option<Pool>> = OnceLock::new();
    POOL.get_or_init(find).as_ref()
}

#[cfg(unix)]
fn find() -> Option<Pool> {
    let look = |name: &std::ffi::CStr| {
        // SAFETY: a null-terminated name; the answer is null or the address of what is so called.
        let at = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
        (!at.is_null()).then_some(at)
    };
    type Count = unsafe extern "C" fn() -> c_int;
    type Parallel = unsafe extern "C" fn(extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);
    let counter = |name: &std::ffi::CStr| {
        // SAFETY: the three names looked for below are functions `int (void)`.
        look(name).map(|at| unsafe { std::mem::transmute::<*mut c_void, Count>(at) })
    };
    let parallel = look(c"GOMP_parallel")?;
    Some(Pool {
        // SAFETY: GNU's OpenMP has it as void GOMP_parallel(void (*)(void *), void *, unsigned,
        // unsigned).
        parallel: unsafe { std::mem::transmute::<*mut c_void, Parallel>(parallel) },
        max_threads: counter(c"omp_get_max_threads")?,
        thread: counter(c"omp_get_thread_num")?,
        threads: counter(c"omp_get_num_threads")?,
    })
}

#[cfg(not(unix))]
fn find() -> Option<Pool> {
    None
}

/// Nanoseconds that this thread has run for: what a measurement counts where others share the machine.
#[cfg(test)]
pub fn nanoseconds_run() -> f64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to a structure of ours.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) };
    now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_in_one_piece() {
        for len in [0, 1, SHARED - 1, SHARED + 1, SHARED_AMONG_SLEEPERS + 5] {
            for unit in [1, 7, 2048] {
                for threads in 1..9 {
                    let length = piece(len, unit, threads);
                    assert!(length.is_multiple_of(unit) && length * threads >= len);
                }
                let mut items = vec![0usize; len];
                share(&mut items, unit, 1, |from, piece| {
                    assert!(from.is_multiple_of(unit));
                    piece.iter_mut().enumerate().for_each(|(i, item)| *item += from + i + 1);
                });
                assert!(items.iter().enumerate().all(|(i, &item)| item == i + 1));
            }
        }
    }
}

//! The command's capability sets, capabilities(7).

use farside_supervisor_contract::Capabilities;

const VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

#[expect(clippy::cast_possible_truncation, reason = "the two halves of a mask")]
fn halves(v: u64) -> [u32; 2] {
    [v as u32, (v >> 32) as u32]
}

/// Before the user changes: the bounding set shrinks, and the capabilities survive the change.
///
/// # Safety
/// Changes the calling process; meant for a forked child. Makes system calls only.
pub(crate) unsafe fn prepare(wanted: &Capabilities) -> bool {
    // SAFETY: prctl with numbers.
    unsafe {
        for cap in 0..64 {
            if wanted.bounding & (1 << cap) != 0 {
                continue;
            }
            // EINVAL: the kernel has no such capability, nor any higher one.
            if libc::prctl(libc::PR_CAPBSET_READ, cap, 0, 0, 0) == 1
                && libc::prctl(libc::PR_CAPBSET_DROP, cap, 0, 0, 0) == -1
            {
                return false;
            }
        }
        libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) == 0
    }
}

/// After the user has changed: exactly the wanted sets, as far as this process has them.
///
/// # Safety
/// As `prepare`.
pub(crate) unsafe fn apply(wanted: &Capabilities) -> bool {
    let header = Header { version: VERSION_3, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: capget and capset with the structures of linux/capability.h; prctl with numbers.
    unsafe {
        if libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) == -1 {
            return false;
        }
        let (permitted, inheritable) = (halves(wanted.permitted), halves(wanted.inheritable));
        for (half, (inheritable, permitted)) in data.iter_mut().zip(inheritable.into_iter().zip(permitted)) {
            half.inheritable = inheritable & half.permitted;
            half.permitted &= permitted;
            half.effective = half.permitted;
        }
        if libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) == -1 {
            return false;
        }
        let [low, high] = data.map(|half| u64::from(half.inheritable & half.permitted));
        let raised = wanted.ambient & (low | high << 32);
        for cap in 0..64 {
            if raised & (1 << cap) != 0
                && libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, cap, 0, 0) == -1
            {
                return false;
            }
        }
        libc::prctl(libc::PR_SET_KEEPCAPS, 0, 0, 0, 0) == 0
    }
}

//! A variable of a program's environment that holds its own pid, which nobody knows before the fork; behind it nothing may
//! be allocated.

/// `NAME=PID`, whose number is written when there is one.
pub(super) struct OwnPid {
    /// Touched by these pointers alone.
    _text: Vec<u8>,
    start: *const u8,
    digits: *mut u8,
}

/// Of the highest pid there can be, 2^22.
const PID_DIGITS: usize = 7;

impl OwnPid {
    pub(super) fn new(name: &str) -> Self {
        let mut text = [name.as_bytes(), b"=", &[0; PID_DIGITS + 1]].concat();
        let start = text.as_mut_ptr();
        // SAFETY: within the text.
        let digits = unsafe { start.add(name.len() + 1) };
        Self { _text: text, start, digits }
    }

    pub(super) fn variable(&self) -> *const libc::c_char {
        self.start.cast()
    }

    /// # Safety
    /// Nobody reads the text meanwhile.
    pub(super) unsafe fn write(&self, pid: u32) {
        let count = pid.checked_ilog10().map_or(1, |tens| tens as usize + 1);
        let mut rest = pid;
        for at in (0..count.min(PID_DIGITS)).rev() {
            // SAFETY: there is room for so many digits and a NUL.
            unsafe { self.digits.add(at).write(b'0' + (rest % 10) as u8) };
            rest /= 10;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_what_a_person_would_write() {
        for pid in [0, 7, 10, 4_194_304, 9_999_999] {
            let variable = OwnPid::new("X");
            // SAFETY: nobody reads it meanwhile; it is NUL-terminated and lives on.
            let text = unsafe {
                variable.write(pid);
                std::ffi::CStr::from_ptr(variable.variable())
            };
            assert_eq!(text.to_str().unwrap(), format!("X={pid}"));
        }
    }
}

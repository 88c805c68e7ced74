//! A pid in decimal digits, for a variable of the command's environment.

/// Digits of the highest pid there can be, 2^22.
pub const PID_DIGITS: usize = 7;

/// Writes `pid` to the head of `out`. The rest of `out` stays as it is. A pid of more digits loses its first ones.
#[inline]
pub fn write_pid(pid: u32, out: &mut [u8; PID_DIGITS]) {
    let count = pid.checked_ilog10().map_or(1, |tens| tens as usize + 1);
    let mut rest = pid;
    for digit in out.iter_mut().take(count).rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_what_a_person_would_write() {
        for pid in [0, 7, 10, 4_194_304, 9_999_999] {
            let mut out = [0; PID_DIGITS];
            write_pid(pid, &mut out);
            let text: Vec<u8> = out.into_iter().take_while(|b| *b != 0).collect();
            assert_eq!(String::from_utf8(text).unwrap(), pid.to_string());
        }
    }
}

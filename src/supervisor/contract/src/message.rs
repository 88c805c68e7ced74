//! Reports and orders: records of three numbers.
//!
//! ```text
//!   0      4     8     12
//!   ├ kind ┼ a   ┼ b   ┤
//!   Report   1 Started pid, without its priority   2 Failed step, errno   3 Ended wait status, left   4 Empty
//!   Order    1 Signal number                       2 KillAll              3 Release
//! ```

use crate::Malformed;

pub const RECORD_LEN: usize = 12;

/// Where a start can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Step {
    Fork = 1,
    Fds,
    Identity,
    Capabilities,
    Exec,
    Directory,
    /// The supervisor cannot read its plan.
    Plan,
}

impl Step {
    #[inline]
    fn from_number(n: i32) -> Result<Self, Malformed> {
        Ok(match n {
            1 => Self::Fork,
            2 => Self::Fds,
            3 => Self::Identity,
            4 => Self::Capabilities,
            5 => Self::Exec,
            6 => Self::Directory,
            7 => Self::Plan,
            _ => return Err(Malformed),
        })
    }
}

/// What a supervisor reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// `no_priority`: the command may not have its caller's priority.
    Started {
        pid: i32,
        no_priority: bool,
    },
    Failed {
        step: Step,
        errno: i32,
    },
    /// The command itself has ended, with this wait status; others of its processes may be `left`.
    Ended {
        wait_status: i32,
        left: bool,
    },
    /// No process of the command is left.
    Empty,
}

impl Report {
    #[inline]
    pub fn encode(self) -> [u8; RECORD_LEN] {
        match self {
            Self::Started { pid, no_priority } => pack(1, pid, i32::from(no_priority)),
            Self::Failed { step, errno } => pack(2, step as i32, errno),
            Self::Ended { wait_status, left } => pack(3, wait_status, i32::from(left)),
            Self::Empty => pack(4, 0, 0),
        }
    }

    #[inline]
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        Ok(match unpack(bytes)? {
            (1, pid, no_priority) => Self::Started { pid, no_priority: flag(no_priority)? },
            (2, step, errno) => Self::Failed { step: Step::from_number(step)?, errno },
            (3, wait_status, left) => Self::Ended { wait_status, left: flag(left)? },
            (4, 0, 0) => Self::Empty,
            _ => return Err(Malformed),
        })
    }
}

/// What a supervisor is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// A signal for the command; when it has ended, for what it left behind.
    Signal(i32),
    /// SIGKILL for every process of the command.
    KillAll,
    /// What is left may live on without a supervisor.
    Release,
}

impl Order {
    #[inline]
    pub fn encode(self) -> [u8; RECORD_LEN] {
        match self {
            Self::Signal(signal) => pack(1, signal, 0),
            Self::KillAll => pack(2, 0, 0),
            Self::Release => pack(3, 0, 0),
        }
    }

    #[inline]
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        Ok(match unpack(bytes)? {
            (1, signal, 0) => Self::Signal(signal),
            (2, 0, 0) => Self::KillAll,
            (3, 0, 0) => Self::Release,
            _ => return Err(Malformed),
        })
    }
}

#[inline]
fn flag(number: i32) -> Result<bool, Malformed> {
    match number {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Malformed),
    }
}

#[inline]
fn pack(kind: i32, a: i32, b: i32) -> [u8; RECORD_LEN] {
    let [k0, k1, k2, k3] = kind.to_ne_bytes();
    let [a0, a1, a2, a3] = a.to_ne_bytes();
    let [b0, b1, b2, b3] = b.to_ne_bytes();
    [k0, k1, k2, k3, a0, a1, a2, a3, b0, b1, b2, b3]
}

#[inline]
fn unpack(bytes: &[u8]) -> Result<(i32, i32, i32), Malformed> {
    let Ok([k0, k1, k2, k3, a0, a1, a2, a3, b0, b1, b2, b3]) = <[u8; RECORD_LEN]>::try_from(bytes) else {
        return Err(Malformed);
    };
    let word = i32::from_ne_bytes;
    Ok((word([k0, k1, k2, k3]), word([a0, a1, a2, a3]), word([b0, b1, b2, b3])))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: [Step; 7] =
        [Step::Fork, Step::Fds, Step::Identity, Step::Capabilities, Step::Exec, Step::Directory, Step::Plan];

    #[test]
    fn reports_and_orders_survive_the_way_there_and_back() {
        let failed = STEPS.map(|step| Report::Failed { step, errno: 13 });
        let started = [false, true].map(|no_priority| Report::Started { pid: 4_194_304, no_priority });
        let ended = [false, true].map(|left| Report::Ended { wait_status: -1, left });
        for report in failed.into_iter().chain(started).chain(ended).chain([Report::Empty]) {
            assert_eq!(Report::decode(&report.encode()), Ok(report));
        }
        for order in [Order::Signal(64), Order::KillAll, Order::Release] {
            assert_eq!(Order::decode(&order.encode()), Ok(order));
        }
    }

    #[test]
    fn other_records_and_other_lengths_are_malformed() {
        for (kind, a, b) in [(0, 0, 0), (5, 0, 0), (1, 1, 2), (2, 0, 1), (2, 8, 1), (3, 0, -1), (4, 1, 0), (-1, 0, 0)] {
            assert_eq!(Report::decode(&pack(kind, a, b)), Err(Malformed), "{kind} {a} {b}");
        }
        for (kind, a, b) in [(0, 0, 0), (4, 0, 0), (1, 9, 1), (2, 1, 0), (3, 0, 1)] {
            assert_eq!(Order::decode(&pack(kind, a, b)), Err(Malformed), "{kind} {a} {b}");
        }
        let whole = Order::KillAll.encode();
        assert_eq!(Order::decode(&whole[1..]), Err(Malformed));
        assert_eq!(Order::decode(&[&whole[..], &[0]].concat()), Err(Malformed));
        assert_eq!(Report::decode(b""), Err(Malformed));
    }
}

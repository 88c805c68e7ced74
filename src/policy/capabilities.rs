//! Capabilities by their names, and the mask that a rule leaves of what a command would have had near.

use std::fmt;

/// By number, linux/capability.h; what a newer kernel adds has no name here, and is none that a list can give.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a rule leaves: each of the caller's four sets is narrowed to it, and so is no set ever widened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CapabilityMask(pub u64);

impl CapabilityMask {
    pub const CALLER: Self = Self(u64::MAX);
    pub const NONE: Self = Self(0);

    /// # Errors
    /// A name that is none.
    pub fn of_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        names.into_iter().try_fold(Self::NONE, |mask, name| Ok(Self(mask.0 | 1 << number(name)?)))
    }
}

fn number(name: &str) -> Result<usize, String> {
    let bare = name.strip_prefix("CAP_");
    let found = bare.and_then(|bare| NAMES.iter().position(|known| *known == bare));
    found.ok_or_else(|| format!("{name:?} is no capability; capabilities(7) lists them, as CAP_DAC_OVERRIDE"))
}

impl fmt::Display for CapabilityMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::CALLER => f.write_str("the caller's"),
            Self::NONE => f.write_str("none"),
            Self(mask) => {
                let named = NAMES.iter().enumerate().filter(|(number, _)| mask >> number & 1 == 1);
                let names: Vec<String> = named.map(|(_, name)| format!("CAP_{name}")).collect();
                f.write_str(&names.join(" "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_kernels_numbers() {
        assert_eq!(CapabilityMask::of_names(["CAP_CHOWN", "CAP_DAC_OVERRIDE"]), Ok(CapabilityMask(3)));
        assert_eq!(CapabilityMask::of_names(["CAP_SYS_ADMIN"]), Ok(CapabilityMask(1 << 21)));
        assert_eq!(CapabilityMask::of_names(["CAP_CHECKPOINT_RESTORE"]), Ok(CapabilityMask(1 << 40)));
        assert_eq!(CapabilityMask(3).to_string(), "CAP_CHOWN CAP_DAC_OVERRIDE");
        assert!(CapabilityMask::of_names(["CHOWN"]).is_err());
        assert!(CapabilityMask::of_names(["CAP_ALL"]).unwrap_err().contains("CAP_ALL"));
    }
}

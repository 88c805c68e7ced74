//! This machine's users and groups, as its name service has them.

use std::ffi::CString;

use nix::unistd::{Gid, Uid, User, getgrouplist};

use crate::policy::Accounts;

/// May wait for a directory service: not for a worker.
#[derive(Debug, Clone, Copy)]
pub struct SystemAccounts;

impl Accounts for SystemAccounts {
    fn uid_of(&self, name: &str) -> Option<u32> {
        User::from_name(name).ok().flatten().map(|user| user.uid.as_raw())
    }

    fn is_member(&self, uid: u32, gid: u32) -> bool {
        let Ok(Some(user)) = User::from_uid(Uid::from_raw(uid)) else { return false };
        let Ok(name) = CString::new(user.name) else { return false };
        user.gid.as_raw() == gid || getgrouplist(&name, user.gid).is_ok_and(|all| all.contains(&Gid::from_raw(gid)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_in_its_group_and_nobody_is_not() {
        assert_eq!(SystemAccounts.uid_of("root"), Some(0));
        assert_eq!(SystemAccounts.uid_of("no such user"), None);
        assert!(SystemAccounts.is_member(0, 0));
        assert!(!SystemAccounts.is_member(65534, 0) && !SystemAccounts.is_member(4_000_000, 4_000_000));
    }
}

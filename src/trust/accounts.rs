//! This machine's users and groups, as its name service has them.

use std::ffi::CString;

use nix::unistd::{Gid, Uid, User, getgrouplist};

use crate::errno::Errno;
use crate::policy::Accounts;

/// May wait for a directory service: not for a worker.
#[derive(Debug, Clone, Copy)]
pub struct SystemAccounts;

/// getpwnam_r(3) returns 0 and no entry where the name service has answered that there is none. Any error is no answer:
/// with glibc also ENOENT, which is what a missing /etc/passwd or the missing socket of a directory service gives.
impl Accounts for SystemAccounts {
    fn uid_of(&self, name: &str) -> Result<Option<u32>, Errno> {
        Ok(User::from_name(name)?.map(|user| user.uid.as_raw()))
    }

    fn is_member(&self, uid: u32, gid: u32) -> Result<bool, Errno> {
        let Some(user) = User::from_uid(Uid::from_raw(uid))? else { return Ok(false) };
        let name = CString::new(user.name).map_err(|_| Errno::EINVAL)?;
        Ok(user.gid.as_raw() == gid || getgrouplist(&name, user.gid)?.contains(&Gid::from_raw(gid)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_in_its_group_and_nobody_is_not() {
        assert_eq!(SystemAccounts.uid_of("root"), Ok(Some(0)));
        assert_eq!(SystemAccounts.uid_of("no such user"), Ok(None));
        assert_eq!(SystemAccounts.is_member(0, 0), Ok(true));
        assert_eq!(SystemAccounts.is_member(65534, 0), Ok(false));
        assert_eq!(SystemAccounts.is_member(4_000_000, 4_000_000), Ok(false));
    }
}

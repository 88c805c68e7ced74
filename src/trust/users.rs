//! Which users of this machine may reach the other one.

use nix::unistd::{Group, User};

/// The group whose members may, where there is such a group.
const GROUP: &str = "farside";

/// Root always may.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Users {
    uids: Vec<u32>,
    group: Option<u32>,
}

impl Users {
    /// From names or numbers.
    ///
    /// # Errors
    /// One line: a name that nobody has here.
    pub fn new(names: &[String]) -> Result<Self, String> {
        let uid = |name: &String| match name.parse() {
            Ok(uid) => Ok(uid),
            Err(_) => match User::from_name(name) {
                Ok(Some(user)) => Ok(user.uid.as_raw()),
                Ok(None) => Err(format!("there is no user {name:?} here")),
                Err(e) => Err(format!("user {name:?}: {}", e.desc())),
            },
        };
        let uids = names.iter().map(uid).collect::<Result<_, _>>()?;
        // Without an answer nobody may by the group: that refuses some who may, and lets nobody in.
        let group = Group::from_name(GROUP).unwrap_or_else(|e| {
            tracing::warn!(
                "no member of the group {GROUP} may reach the other machine: its look-up failed: {}",
                e.desc()
            );
            None
        });
        Ok(Self { uids, group: group.map(|g| g.gid.as_raw()) })
    }

    pub fn with(mut self, uids: &[u32]) -> Self {
        self.uids.extend_from_slice(uids);
        self
    }

    /// The other groups are asked for only if they matter.
    pub fn may<G: AsRef<[u32]>>(&self, uid: u32, gid: u32, groups: impl FnOnce() -> G) -> bool {
        uid == 0 || self.uids.contains(&uid) || self.group.is_some_and(|g| gid == g || groups().as_ref().contains(&g))
    }

    /// Whether anybody may but root.
    pub fn are_more_than_root(&self) -> bool {
        !self.uids.is_empty() || self.group.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_those_named_and_the_group_may() {
        let users = Users { uids: vec![7], group: Some(9) };
        for (uid, gid, groups, may) in
            [(0, 0, &[][..], true), (7, 7, &[], true), (8, 9, &[], true), (8, 8, &[1, 9], true), (8, 8, &[1], false)]
        {
            assert_eq!(users.may(uid, gid, || groups), may, "{uid} {gid} {groups:?}");
        }
        assert!(!Users::default().may(7, 9, || [9]));
        assert!(Users::new(&["0".into(), "root".into()]).is_ok());
        assert!(Users::new(&["nobody-has-this".into()]).unwrap_err().contains("nobody-has-this"));
    }
}

//! Options of the unix-socket service that every program with it has, and what node.toml adds to them.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::config::{self, Uds};
use crate::sys::unix::SocketKind;
use crate::trust::Users;
use crate::udsproxyd::near::{Export, Options};
use crate::udsproxyd::policy::{Policy, Rule};

#[derive(Debug, Clone, clap::Args)]
pub(super) struct UdsArgs {
    /// Where local programs (libudsproxy.so) ask
    #[arg(long, value_name = "PATH", default_value = farside_contract::SOCKET_PATH)]
    pub(super) socket: PathBuf,
    /// A user who may ask besides root, the group `farside` and [local] users of node.toml; may be given more than once
    #[arg(long = "uid", value_name = "UID")]
    uids: Vec<u32>,
    /// Which names may cross, first match wins: allow:/PATH, deny:/PATH, allow:@NAME; may be given more than once, and
    /// comes before `rules` of [uds] in node.toml. Without a matching rule everything may but this machine's own
    /// services (D-Bus, journal, nscd, udev, X11). What is denied is denied both ways: to programs here, who then have
    /// the local answer, and to the other machine's, who get EACCES; no rule opens this machine's own services to it
    #[arg(long = "rule", value_name = "RULE")]
    rules: Vec<Rule>,
    /// A socket of the other machine that local programs find at LOCAL, without libudsproxy.so:
    /// [stream:|seqpacket:|dgram:]LOCAL=FAR, FAR an absolute path or @NAME; may be given more than once, besides
    /// [[uds.export]] in node.toml. LOCAL is root's alone (0600) [default kind: stream]
    #[arg(long = "export", value_name = "LOCAL=FAR")]
    exports: Vec<Export>,
}

impl UdsArgs {
    /// # Errors
    /// One line that names the entry of node.toml that is wrong.
    pub(super) fn options(&self, file: &Uds, users: Users) -> Result<Options, String> {
        let mut rules = self.rules.clone();
        for text in &file.rules {
            rules.push(text.parse().map_err(|e| format!("[uds] rules, {text:?}: {e}"))?);
        }
        let mut exports = self.exports.clone();
        for entry in &file.exports {
            let said = |e| format!("[[uds.export]] local = {:?}: {e}", entry.local.display());
            exports.push(export(entry).map_err(said)?);
        }
        Export::check(&exports)?;
        let policy = Policy { rules, ..Policy::open() };
        Ok(Options { socket: self.socket.clone(), users: users.with(&self.uids), policy, exports })
    }
}

fn export(entry: &config::SocketExport) -> Result<Export, String> {
    let kind = match entry.kind {
        config::Kind::Stream => SocketKind::Stream,
        config::Kind::Seqpacket => SocketKind::SeqPacket,
        config::Kind::Dgram => SocketKind::Datagram,
    };
    let mode = match &entry.mode {
        None => Export::MODE,
        Some(text) => u32::from_str_radix(text, 8).map_err(|_| format!("mode {text:?} is not like \"0660\""))?,
    };
    let owner = (entry.uid.unwrap_or(0), entry.gid.unwrap_or(0));
    Export::new(entry.local.as_os_str().as_bytes(), entry.far.as_bytes(), kind, mode, owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Cli {
        #[command(flatten)]
        uds: UdsArgs,
    }

    fn options(words: &[&str], file: &str) -> Result<Options, String> {
        let cli: Cli = clap::Parser::try_parse_from([&["x"], words].concat()).map_err(|e| e.to_string())?;
        cli.uds.options(&config::NodeConfig::parse(file)?.uds, Users::default())
    }

    #[test]
    fn what_was_typed_comes_before_what_the_file_says() {
        let file = "[uds]\nrules = ['deny:/b']\n[[uds.export]]\nlocal='/l'\nfar='@f'\nkind='dgram'\n";
        let got = options(&["--rule", "allow:/b/c", "--export", "seqpacket:/a=/b"], file).unwrap();
        assert!(got.policy.allows(b"/b/c/d") && !got.policy.allows(b"/b/d"));
        let shown: Vec<String> = got.exports.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["seqpacket:/a=/b", "dgram:/l=@f"]);
    }

    #[test]
    fn a_wrong_entry_is_refused_by_name() {
        for (words, file, part) in [
            (&["--export", "/a"][..], "", "LOCAL=FAR"),
            (&["--export", "a=/b"], "", "absolute"),
            (&["--export", "/a=b"], "", "absolute"),
            (&["--export", "/a=/b", "--export", "/a=/c"], "", "twice"),
            (&[], "[uds]\nrules = ['permit:/b']", "permit:/b"),
            (&[], "[[uds.export]]\nlocal='/l'\nfar='/f'\nmode='rw'", "0660"),
            (&[], "[[uds.export]]\nlocal='/l'\nfar='/f'\nkind='dgram'\nmode='0666'", "0600"),
            (&[], "[uds]\nrule = []", "rule"),
        ] {
            let said = options(words, file).unwrap_err();
            assert!(said.contains(part), "{said}");
        }
    }
}

//! /etc/farside/node.toml, and which addresses unencrypted links may have where they exist at all.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Another place for `/etc/farside`, for tests and for more than one node on a machine.
pub const CONFIG_DIR_ENV: &str = "FARSIDE_CONFIG_DIR";
/// Asks builds with the feature `plaintext` for unencrypted links; no other build knows it.
pub const PLAINTEXT_ENV: &str = "FARSIDE_INSECURE_PLAINTEXT";

/// Where a node serves when nothing says otherwise: the port of every example, help text and template.
/// tests/ports.rs compares them.
pub const DEFAULT_LISTEN: &str = "0.0.0.0:7776";

pub fn config_dir() -> PathBuf {
    std::env::var_os(CONFIG_DIR_ENV).map_or_else(|| PathBuf::from("/etc/farside"), PathBuf::from)
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Where this node serves its peer, `ADDR:PORT`.
    pub listen: Option<String>,
    /// The other machine's node, `ADDR:PORT`.
    pub peer: Option<String>,
    /// The directories that the peer may mount.
    #[serde(default, rename = "export")]
    pub exports: Vec<Export>,
    /// What an fd that the peer passes may stand for on this machine, besides pipes, sockets, exported files and the
    /// devices that everybody may open.
    #[serde(default)]
    pub pass: Pass,
    /// The unix-socket service.
    #[serde(default)]
    pub uds: Uds,
    /// Programs of this machine.
    #[serde(default)]
    pub local: Local,
    #[serde(default)]
    pub log: Log,
    #[serde(default)]
    pub session: Session,
    /// What `farside dpu up` builds; only on the DPU.
    pub offload: Option<Offload>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Session {
    /// Seconds for which a session without a link waits for a new one. Programs stall meanwhile and lose no data. With 0, a
    /// session ends with its link.
    #[serde(default = "grace")]
    pub grace: u64,
}

impl Default for Session {
    fn default() -> Self {
        Self { grace: grace() }
    }
}

/// Long enough to reboot a switch or to replace a cable.
const GRACE_S: u64 = 60;

fn grace() -> u64 {
    GRACE_S
}

#[derive(Debug, Clone, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// A file that gets a line for each operation that a daemon of this machine has allowed or refused. Without it allowed
    /// ones are said by `--log debug` alone.
    pub audit: Option<PathBuf>,
}

#[derive(Debug, Clone, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Local {
    /// Users, by name or number, who may reach the other machine by rexec and libudsproxy.so, besides root and the group
    /// `farside`.
    #[serde(default)]
    pub users: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Uds {
    /// Which names of the other machine programs here may reach, first match wins: `allow:/PATH`, `deny:@NAME`.
    #[serde(default)]
    pub rules: Vec<String>,
    /// Sockets of the other machine that are found at a path here.
    #[serde(default, rename = "export")]
    pub exports: Vec<SocketExport>,
}

#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct SocketExport {
    pub local: PathBuf,
    /// An absolute path, or `@` and an abstract name.
    pub far: String,
    #[serde(default)]
    pub kind: Kind,
    /// In octal; `0600` unless said otherwise.
    pub mode: Option<String>,
    /// Owner and group; root's unless said otherwise.
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    #[default]
    Stream,
    Seqpacket,
    Dgram,
}

#[derive(Debug, Clone, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Pass {
    #[serde(default)]
    pub devices: Vec<PassedDevice>,
    /// Queues of tun and tap interfaces: an interface of the same name is opened here, and made if it is not there.
    #[serde(default)]
    pub taps: bool,
    /// The bridge that such a tap interface is put on; implies `taps`.
    pub bridge: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum PassedDevice {
    Kvm,
    VhostNet,
    Vfio,
}

#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Export {
    pub path: PathBuf,
    #[serde(default)]
    pub access: Access,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    Ro,
    #[default]
    Rw,
}

#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Offload {
    /// The directory that libvirtd runs in, `/another_rootfs` in the guide.
    pub rootfs: PathBuf,
    /// The host's directories, mounted at the same paths inside the rootfs.
    pub mounts: Vec<PathBuf>,
    /// The host's emulators, each replaced in the rootfs by a wrapper that runs it through rexec.
    pub emulators: Vec<PathBuf>,
    /// An empty /dev/kvm on a DPU that has none, so that libvirtd accepts domains of type 'kvm'; the host's QEMU opens
    /// the real one.
    #[serde(default)]
    pub kvm_placeholder: bool,
}

/// A configuration that cannot be used: the file, and what to change.
#[derive(Debug)]
pub struct ConfigError(pub String);

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

impl NodeConfig {
    /// Reads `node.toml` below `dir`; a missing file is an empty configuration.
    pub fn load(dir: &Path) -> Result<Self, ConfigError> {
        let path = dir.join("node.toml");
        if matches!(path.try_exists(), Ok(false)) { Ok(Self::default()) } else { Self::load_file(&path) }
    }

    /// Reads that very file, which must be there.
    pub fn load_file(path: &Path) -> Result<Self, ConfigError> {
        let said = |e: String| ConfigError(format!("{}: {e}", path.display()));
        Self::parse(&std::fs::read_to_string(path).map_err(|e| said(e.to_string()))?).map_err(said)
    }

    pub fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|e| e.to_string())
    }
}

/// Whether an unencrypted link may have this address at either end, in builds that know such links: loopback and the lab's 192.168.10.0/24 only.
pub fn plaintext_allows(addr: SocketAddr) -> bool {
    match addr.ip().to_canonical() {
        IpAddr::V4(ip) => ip.is_loopback() || ip.octets()[..3] == [192, 168, 10],
        IpAddr::V6(ip) => ip.is_loopback(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plaintext_is_for_loopback_and_the_lab_alone() {
        for (addr, allowed) in [
            ("127.0.0.1:1", true),
            ("[::1]:1", true),
            ("192.168.10.11:1", true),
            ("[::ffff:192.168.10.11]:1", true),
            ("192.168.11.1:1", false),
            ("10.0.0.1:1", false),
            ("0.0.0.0:1", false),
            ("[fe80::1]:1", false),
        ] {
            assert_eq!(plaintext_allows(addr.parse().unwrap()), allowed, "{addr}");
        }
    }

    #[test]
    fn an_unknown_word_in_node_toml_is_refused_by_name() {
        let said = NodeConfig::parse("listne = 'x'").unwrap_err();
        assert!(said.contains("listne"), "{said}");
    }

    #[test]
    fn exports_are_writable_unless_said_otherwise() {
        let config = NodeConfig::parse("[[export]]\npath='/a'\n[[export]]\npath='/b'\naccess='ro'").unwrap();
        assert_eq!(config.exports[0].access, Access::Rw);
        assert_eq!(config.exports[1].access, Access::Ro);
    }
}

//! `mount.qtfs SRC DST [-sfnv] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]`, as mount(8) calls it.
//!
//! Returns when programs can use the mount, and leaves a process behind that serves it until it is unmounted.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use nix::mount::MsFlags;

use super::{access, daemon};
use crate::config::{NodeConfig, config_dir};
use crate::qtfs::near::{self, MountSpec, SocketCarrier};
use crate::sys::daemon::{Detached, detach};

/// mount(8): incorrect invocation or permissions.
const USAGE: u8 = 1;
/// mount(8): mount failure.
const FAILURE: u8 = 32;

/// Mounts a directory of the other machine. Usually called by `mount -t qtfs SRC DST`.
#[derive(Debug, Parser)]
#[command(name = "mount.qtfs", version, about, after_help = OPTIONS_HELP)]
struct Args {
    /// The host's directory: exported there, or below one that is
    source: PathBuf,
    /// Where it appears here
    target: PathBuf,
    /// Ignore options that are not known
    #[arg(short)]
    sloppy: bool,
    /// Check the options and mount nothing
    #[arg(short)]
    fake: bool,
    /// No entry in /etc/mtab; there is none anyway
    #[arg(short)]
    no_mtab: bool,
    /// Say what is done
    #[arg(short)]
    verbose: bool,
    /// Mount in another mount namespace; mount(8) has entered it already
    #[arg(short = 'N')]
    namespace: Option<OsString>,
    /// The file system type; mount(8) may pass it
    #[arg(short = 't')]
    kind: Option<OsString>,
    /// Options, separated by commas
    #[arg(short)]
    options: Vec<String>,
}

const OPTIONS_HELP: &str = "\
Options of -o:
  host=ADDR:PORT      the host's node; otherwise `peer` of /etc/farside/node.toml
  ro, rw              read-only, or read-write where the export allows it (default)
  suid, dev           honour set-user-id bits and device files of the host (default: nosuid, nodev)
  noexec, noatime, nodiratime, relatime, strictatime, sync, dirsync
                      as for any mount";

/// What `-o` said.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Options {
    host: Option<String>,
    read_only: bool,
    flags: MsFlags,
}

impl Options {
    fn parse(typed: &[String], sloppy: bool) -> Result<Self, String> {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let mut options = Self { host: None, read_only: false, flags };
        for option in typed.iter().flat_map(|o| o.split(',')).filter(|o| !o.is_empty()) {
            options.take(option, sloppy)?;
        }
        Ok(options)
    }

    fn take(&mut self, option: &str, sloppy: bool) -> Result<(), String> {
        if let Some(host) = option.strip_prefix("host=") {
            self.host = Some(host.into());
            return Ok(());
        }
        match option {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "proc" => {
                return Err("-o proc: not in this release; the rootfs has the DPU's own /proc".into());
            }
            "remount" => return Err("-o remount: not in this release; umount and mount again".into()),
            // Words for mount(8), fstab and systemd.
            "defaults" | "_netdev" | "nofail" | "noauto" | "auto" | "user" | "nouser" | "users" | "owner" | "group"
            | "async" | "loud" => {}
            _ if option.starts_with("x-") || option.starts_with("X-") || option.starts_with("comment=") => {}
            _ => match flag(option) {
                Some((flag, on)) => self.flags.set(flag, on),
                None if sloppy => {}
                None => return Err(format!("-o {option}: not an option of mount.qtfs; see mount.qtfs --help")),
            },
        }
        Ok(())
    }
}

/// Options that are mount flags, and whether they set or clear theirs.
fn flag(option: &str) -> Option<(MsFlags, bool)> {
    Some(match option {
        "suid" => (MsFlags::MS_NOSUID, false),
        "nosuid" => (MsFlags::MS_NOSUID, true),
        "dev" => (MsFlags::MS_NODEV, false),
        "nodev" => (MsFlags::MS_NODEV, true),
        "exec" => (MsFlags::MS_NOEXEC, false),
        "noexec" => (MsFlags::MS_NOEXEC, true),
        "atime" => (MsFlags::MS_NOATIME, false),
        "noatime" => (MsFlags::MS_NOATIME, true),
        "diratime" => (MsFlags::MS_NODIRATIME, false),
        "nodiratime" => (MsFlags::MS_NODIRATIME, true),
        "relatime" => (MsFlags::MS_RELATIME, true),
        "norelatime" => (MsFlags::MS_RELATIME, false),
        "strictatime" => (MsFlags::MS_STRICTATIME, true),
        "nostrictatime" => (MsFlags::MS_STRICTATIME, false),
        "sync" => (MsFlags::MS_SYNCHRONOUS, true),
        "dirsync" => (MsFlags::MS_DIRSYNC, true),
        "silent" => (MsFlags::MS_SILENT, true),
        _ => return None,
    })
}

/// `main` of `mount.qtfs`. `carrier` takes connections to the host's sockets; it is made in the process that stays.
pub fn run(carrier: impl FnOnce(&str) -> Option<Arc<dyn SocketCarrier>>) -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(e) => {
            let _ = e.print();
            return if e.use_stderr() { USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    match settle(&args) {
        Ok(_) if args.fake => ExitCode::SUCCESS,
        Ok(spec) => mount(spec, args.verbose, carrier),
        Err(e) => {
            eprintln!("mount.qtfs: {e}");
            USAGE.into()
        }
    }
}

/// From what was typed to what is meant.
fn settle(args: &Args) -> Result<MountSpec, String> {
    let options = Options::parse(&args.options, args.sloppy)?;
    if !args.source.is_absolute() {
        return Err(format!("{}: the host's directory must be an absolute path", args.source.display()));
    }
    let target = args.target.canonicalize().map_err(|e| format!("{}: {e}", args.target.display()))?;
    let host = match options.host {
        Some(host) => host,
        None => NodeConfig::load(&config_dir()).map_err(|e| e.to_string())?.peer.ok_or_else(|| {
            let file = config_dir().join("node.toml");
            format!("which host? Say -o host=ADDR:PORT, or peer = \"ADDR:PORT\" in {}", file.display())
        })?,
    };
    daemon::keep_memory_to_itself();
    let access = access::of_program()?;
    Ok(MountSpec {
        source: args.source.clone(),
        target,
        host,
        access,
        read_only: options.read_only,
        flags: options.flags,
    })
}

fn mount(mut spec: MountSpec, verbose: bool, carrier: impl FnOnce(&str) -> Option<Arc<dyn SocketCarrier>>) -> ExitCode {
    let starting = match detach() {
        Ok(Detached::Child(starting)) => starting,
        Ok(Detached::Parent(None)) => {
            if verbose {
                println!("{} mounted on {}", spec.source.display(), spec.target.display());
            }
            return ExitCode::SUCCESS;
        }
        Ok(Detached::Parent(Some(why))) => {
            eprintln!("mount.qtfs: {why}");
            return FAILURE.into();
        }
        Err(e) => {
            eprintln!("mount.qtfs: fork: {}", e.desc());
            return FAILURE.into();
        }
    };
    log_to_syslog();
    // A key is not in the memory of a forked process: this one reads it again.
    match access::of_program() {
        Ok(access) => spec.access = access,
        Err(e) => {
            starting.failed(&e);
            return FAILURE.into();
        }
    }
    // Nothing of the directory that mount(8) was called in stays busy.
    let _ = std::env::set_current_dir("/");
    let carrier = carrier(&spec.host);
    match near::mount(spec, carrier) {
        Ok(mounting) => {
            if let Err(e) = starting.up() {
                tracing::warn!("/dev/null: {e}");
            }
            mounting.run();
            ExitCode::SUCCESS
        }
        Err(e) => {
            starting.failed(&e.to_string());
            FAILURE.into()
        }
    }
}

/// The process that stays has no terminal: its lines go where a daemon's go.
fn log_to_syslog() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("FARSIDE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .without_time()
        .with_writer(|| Syslog)
        .try_init();
}

struct Syslog;

impl Write for Syslog {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        // Facility daemon, level notice; the line has its own level. No /dev/log: no log.
        let mut message = format!("<29>mount.qtfs[{}]: ", std::process::id()).into_bytes();
        message.extend_from_slice(line.trim_ascii_end());
        let _ = UnixDatagram::unbound().and_then(|s| {
            s.set_nonblocking(true)?;
            s.send_to(&message, "/dev/log")
        });
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(typed: &str) -> Result<Options, String> {
        Options::parse(&[typed.to_string()], false)
    }

    #[test]
    fn the_last_word_wins_and_flags_are_flags() {
        let got = parse("rw,host=h:1,ro,noexec,suid,_netdev,x-systemd.automount").unwrap();
        assert_eq!(got.host.as_deref(), Some("h:1"));
        assert!(got.read_only);
        assert_eq!(got.flags, MsFlags::MS_NODEV | MsFlags::MS_NOEXEC);
    }

    #[test]
    fn an_unknown_option_is_refused_by_name_unless_sloppy() {
        assert!(parse("rw,frob").unwrap_err().contains("frob"));
        assert!(Options::parse(&["frob".into()], true).is_ok());
    }

    #[test]
    fn proc_says_that_it_is_not_here_yet() {
        assert!(parse("proc").unwrap_err().contains("not in this release"));
        assert!(Options::parse(&["proc".into()], true).is_err());
    }

    #[test]
    fn the_command_line_of_mount_8_is_understood() {
        let args = Args::try_parse_from(["mount.qtfs", "/a", "/b", "-n", "-v", "-o", "rw,host=x:1"]).unwrap();
        assert_eq!(args.options, ["rw,host=x:1"]);
        assert!(args.verbose && args.no_mtab && !args.fake);
    }
}

//! The emulators of the rootfs: a script each, that runs the host's emulator of the same path through rexec.
//!
//!   libvirtd ──exec──▶ /usr/bin/qemu-system-x86_64 (this script) ──exec──▶ /usr/bin/rexec ──▶ the host's QEMU
//!
//! The text depends on the path alone; the host's address is read when it runs, from the files that `farside dpu up`
//! writes to /run/rexec. So the script is written once, and its ctime, by which libvirtd judges whether its cache of the
//! emulator's capabilities is still true, stays as it is from one `up` to the next.
//!
//! No real emulator may stay executable beside it: a guest started there would pass for one on the host.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Where a rootfs keeps programs; `real_emulators` looks here.
pub const PROGRAM_DIRS: [&str; 6] =
    ["usr/bin", "usr/sbin", "usr/libexec", "usr/local/bin", "usr/local/sbin", "usr/local/libexec"];

/// The second line of every wrapper, by which it is told from a program.
const MARK: &str = "# A farside wrapper";

/// Whether a program of that name is QEMU's system emulator, whatever the distribution calls it.
pub fn is_emulator(name: &OsStr) -> bool {
    name == "qemu-kvm" || name.as_bytes().starts_with(b"qemu-system-")
}

/// The script that stands for the host's emulator `path`.
pub fn text(path: &Path) -> Vec<u8> {
    let mut script = format!(
        "#!/bin/sh\n\
         {MARK}: runs the host's program of this path through rexec, every argument as it came.\n\
         # `farside dpu up` writes the address; the script itself never changes, so libvirtd's capability cache stays true.\n\
         {{ read -r host </run/rexec/hostaddr && read -r port </run/rexec/rexecport; }} 2>/dev/null || {{\n\
         \x20   echo \"$0: the offload is not up here: farside dpu up\" >&2\n\
         \x20   exit 126\n\
         }}\n\
         # libvirtd hands its shim on to its children; the host has no use for it.\n\
         unset LD_PRELOAD FARSIDE_UDS_ONLY\n\
         export CMD_NET_ADDR=\"tcp://$host:$port\"\n\
         exec /usr/bin/rexec "
    )
    .into_bytes();
    script.extend(quoted(path.as_os_str()));
    script.extend(b" \"$@\"\n");
    script
}

/// One word of sh, whatever is in it.
fn quoted(word: &OsStr) -> Vec<u8> {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"/._-+".contains(b);
    if word.as_bytes().iter().all(plain) {
        return word.as_bytes().to_vec();
    }
    let mut out = vec![b'\''];
    for &byte in word.as_bytes() {
        if byte == b'\'' { out.extend(b"'\\''") } else { out.push(byte) }
    }
    out.push(b'\'');
    out
}

/// The programs of a rootfs that are an emulator and not a wrapper.
pub fn real_emulators(rootfs: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for dir in PROGRAM_DIRS {
        let Ok(entries) = std::fs::read_dir(rootfs.join(dir)) else { continue };
        for entry in entries.flatten().filter(|e| is_emulator(&e.file_name())) {
            let is_file = entry.file_type().is_ok_and(|t| t.is_file());
            if is_file && !is_wrapper(&entry.path()) {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

fn is_wrapper(path: &Path) -> bool {
    use std::io::Read;
    let mut head = [0; 64];
    let read = std::fs::File::open(path).and_then(|mut f| f.read(&mut head)).unwrap_or(0);
    head[..read].starts_with(format!("#!/bin/sh\n{MARK}").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    /// Runs the wrapper with its fixed paths led into a scratch directory, where rexec prints what it got.
    fn run_wrapper(arguments: &[&str], up: bool) -> (String, String) {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("farside-wrapper-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let rexec = dir.join("rexec");
        std::fs::write(&rexec, "#!/bin/sh\nprintf '%s\\n' \"$CMD_NET_ADDR\" \"<$LD_PRELOAD>\"; printf '[%s]' \"$@\"\n")
            .unwrap();
        std::fs::set_permissions(&rexec, std::fs::Permissions::from_mode(0o755)).unwrap();
        if up {
            std::fs::write(dir.join("hostaddr"), "192.168.10.10\n").unwrap();
            std::fs::write(dir.join("rexecport"), "7777\n").unwrap();
        }
        let script = String::from_utf8(text(Path::new("/usr/bin/qemu kvm's"))).unwrap();
        let here = dir.to_str().unwrap();
        let script = script.replace("/usr/bin/rexec", &format!("{here}/rexec")).replace("/run/rexec", here);
        let path = dir.join("wrapper");
        std::fs::write(&path, script).unwrap();
        let out = Command::new("/bin/sh").arg(&path).args(arguments).env("LD_PRELOAD", "").output().unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap())
    }

    #[test]
    fn every_argument_arrives_as_it_came() {
        let nasty =
            ["", "a b", "*", "$HOME", "`id`", "it's", "\"q\"", "a\nb", "-name", "guest=vm,debug-threads=on", "\\", "é"];
        let (out, err) = run_wrapper(&nasty, true);
        let wanted: String = nasty.iter().map(|a| format!("[{a}]")).collect();
        assert_eq!(out, format!("tcp://192.168.10.10:7777\n<>\n[/usr/bin/qemu kvm's]{wanted}"), "{err}");
    }

    #[test]
    fn without_an_offload_it_says_what_to_do() {
        let (out, err) = run_wrapper(&[], false);
        assert_eq!(out, "");
        assert!(err.contains("farside dpu up"), "{err}");
    }

    #[test]
    fn the_text_is_the_same_each_time() {
        assert_eq!(text(Path::new("/usr/bin/qemu-kvm")), text(Path::new("/usr/bin/qemu-kvm")));
    }

    #[test]
    fn emulators_are_known_by_their_names() {
        for (name, is) in [
            ("qemu-kvm", true),
            ("qemu-system-x86_64", true),
            ("qemu-system-x86_64-microvm", true),
            ("qemu-img", false),
            ("qemu-pr-helper", false),
            ("kvm", false),
        ] {
            assert_eq!(is_emulator(OsStr::new(name)), is, "{name}");
        }
    }
}

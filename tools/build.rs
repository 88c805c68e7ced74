//! Leaves `mount.qtfs` beside the programs: mount(8) looks for `mount.TYPE`, and cargo takes no dot in a target's name.

use std::os::unix::fs::symlink;
use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=tools/build.rs");
    let out = std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    // OUT_DIR is <target>/<profile>/build/<package-hash>/out.
    let profile = Path::new(&out).ancestors().nth(3).expect("OUT_DIR is four levels deep");
    let link = profile.join("mount.qtfs");
    if std::fs::read_link(&link).is_ok_and(|to| to == Path::new("mount_qtfs")) {
        return;
    }
    let _ = std::fs::remove_file(&link);
    symlink("mount_qtfs", &link).unwrap_or_else(|e| panic!("{}: {e}", link.display()));
}

//! Directories that go when the test process ends: what all tests of a file share has no owner that could drop it.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once};

static ALL: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

extern "C" fn remove_all() {
    for dir in ALL.lock().unwrap().drain(..) {
        let _ = std::fs::remove_dir_all(dir);
    }
}

/// Has `dir`, which need not be there yet, removed at exit(3).
pub(crate) fn remove_at_exit(dir: &Path) {
    static ONCE: Once = Once::new();
    // SAFETY: the function takes nothing, and lives as long as the program.
    ONCE.call_once(|| assert_eq!(unsafe { libc::atexit(remove_all) }, 0));
    ALL.lock().unwrap().push(dir.to_owned());
}

//! The house rules that a reader of the sources can check: who may know whom, where `unsafe` may be, how long a file is.

use std::path::{Path, PathBuf};

/// Rooms from the top floor down. A room imports only rooms of lower floors; rooms of one floor do not know each other.
const FLOORS: [&[&str]; 11] = [
    &["cli", "bin"],
    &["rexec", "udsproxyd", "qtfs", "offload", "vouch"],
    &["link"],
    &["ring", "fdpass", "trust"],
    &["policy"],
    &["stream"],
    &["mux", "auth"],
    &["wire", "sys"],
    &["audit", "lograte"],
    &["slack"],
    &["limits", "errno", "config"],
];

fn floor_of(room: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&room))
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// `src/mux/send.rs` is of room `mux`, `src/limits.rs` of room `limits`.
fn room_of(path: &Path) -> String {
    let rest = path.strip_prefix(src()).unwrap();
    rest.components().next().unwrap().as_os_str().to_string_lossy().trim_end_matches(".rs").to_string()
}

/// Every room that a file names after `crate::`, with the line.
fn named_rooms(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        for rest in code.split("crate::").skip(1) {
            let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if floor_of(&name).is_some() {
                found.push((number + 1, name));
            }
        }
    }
    found
}

#[test]
fn a_room_imports_only_rooms_below_it() {
    let mut wrong = Vec::new();
    for path in sources(&src()) {
        let room = room_of(&path);
        let Some(floor) = floor_of(&room) else { continue };
        let text = std::fs::read_to_string(&path).unwrap();
        for (line, named) in named_rooms(&text) {
            // `wire` and `sys` are of one floor, and `errno` is below both.
            if named != room && floor_of(&named).unwrap() <= floor {
                wrong.push(format!("{}:{line}: {room} names {named}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Those below know nothing of those above: a worker is told what to do, and a stream is pure.
#[test]
fn a_worker_knows_no_session_and_a_stream_no_fd() {
    let never = [("link/worker", "session::"), ("stream", "std::os::fd"), ("stream", "::sys::"), ("stream", "ring::")];
    for (dir, word) in never {
        for path in sources(&src().join(dir)) {
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(!text.contains(word), "{}: names {word}", path.display());
        }
    }
}

#[test]
fn unsafe_is_in_three_rooms_and_the_supervisor_only() {
    for path in sources(&src()) {
        let room = room_of(&path);
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text.lines().map(|l| l.split("//").next().unwrap_or_default());
        let used = code.flat_map(|l| l.split(|c: char| !c.is_alphanumeric() && c != '_')).any(|word| word == "unsafe");
        let may = ["sys", "ring", "supervisor"].contains(&room.as_str());
        assert!(!used || may, "{}: unsafe", path.display());
    }
}

#[test]
fn only_the_ring_names_io_uring() {
    for path in sources(&src()) {
        let text = std::fs::read_to_string(&path).unwrap();
        let named = text.contains("io_uring::") || text.contains("use io_uring");
        assert!(!named || room_of(&path) == "ring", "{}: names io_uring", path.display());
    }
}

/// A test that returns early says so where it is counted, and not where the harness hides it.
#[test]
fn a_skipped_test_says_so_in_one_way() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for path in [src(), root.join("tests"), root.join("bench/src")].iter().flat_map(|d| sources(d)) {
        let text = std::fs::read_to_string(&path).unwrap();
        let elsewhere = !path.ends_with("tests/common/skip.rs") && !path.ends_with("tests/house.rs");
        let said = ["SKIPPED", "NOT TESTED", "NOT CHECKED"].into_iter().find(|word| text.contains(word));
        assert!(said.is_none() || !elsewhere, "{}: {said:?}, which is for tests/common/skip.rs", path.display());
    }
}

#[test]
fn files_are_short_and_begin_with_what_they_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let all =
        [src(), root.join("ldpreload"), root.join("bench/src")].iter().flat_map(|d| sources(d)).collect::<Vec<_>>();
    for path in all {
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = text.lines().count();
        let narrow =
            ["src/link/session", "src/link/worker", "src/stream"].iter().any(|d| path.starts_with(root.join(d)));
        assert!(
            lines <= if narrow { 400 } else { 600 },
            "{}: {lines} lines; something in it wants a name of its own",
            path.display()
        );
        let page = text.lines().find(|l| !l.starts_with("#!["));
        assert!(page.is_some_and(|l| l.starts_with("//!")), "{}: does not say what it is", path.display());
    }
}

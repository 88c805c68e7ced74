//! A machine that is a directory: its keys and peers, its lists, and `farside` run as if on it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use farside::sys::tempdir::PrivateDir;

pub(crate) const FARSIDE: &str = env!("CARGO_BIN_EXE_farside");

pub(crate) struct Machine {
    whole: PrivateDir,
    pub(crate) dir: PathBuf,
}

/// What a command said, and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Said {
    pub(crate) fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }

    /// One line on stderr, nothing on stdout, status 1.
    #[track_caller]
    pub(crate) fn refused(self) -> String {
        let lines = self.stderr.lines().count();
        assert_eq!((self.code, lines, self.stdout.as_str()), (Some(1), 1, ""), "{self:?}");
        self.stderr
    }

    /// A verdict: one line on stdout, status 1.
    #[track_caller]
    pub(crate) fn denied(self) -> String {
        assert_eq!((self.code, self.stdout.lines().count()), (Some(1), 1), "{self:?}");
        self.stdout
    }
}

impl Machine {
    pub(crate) fn new(name: &str) -> Self {
        let whole = PrivateDir::new(&format!("keys-{name}")).unwrap();
        let dir = whole.path().join("farside");
        Self { whole, dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        if name.is_empty() { self.dir.clone() } else { self.dir.join(name) }
    }

    /// Where the two lists are, and who was last seen.
    pub(crate) fn env(&self) -> [(&'static str, PathBuf); 3] {
        let whole = self.whole.path();
        [
            ("FARSIDE_CONFIG_DIR", self.dir.clone()),
            ("FARSIDE_WHITELIST_DIR", whole.join("etc")),
            ("FARSIDE_RUN_DIR", whole.join("run")),
        ]
    }

    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.envs(self.env()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn start(&self, words: &[&str]) -> Child {
        self.command(FARSIDE).args(words).spawn().unwrap()
    }

    pub(crate) fn farside(&self, words: &[&str]) -> Said {
        Said::of(self.start(words).wait_with_output().unwrap())
    }

    pub(crate) fn key(&self) -> String {
        self.farside(&["key"]).ok().trim().to_owned()
    }

    /// What a person types, by their shell.
    pub(crate) fn shell(&self, typed: &str) -> Said {
        self.shell_with_path(Path::new("/nonexistent"), typed)
    }

    pub(crate) fn shell_with_path(&self, first: &Path, typed: &str) -> Said {
        let bin = Path::new(FARSIDE).parent().unwrap();
        let path = format!("{}:{}:/usr/bin:/bin", first.display(), bin.display());
        Said::of(self.command("sh").args(["-c", typed]).env("PATH", path).output().unwrap())
    }

    /// /etc/KIND/whitelist of this machine.
    pub(crate) fn list(&self, kind: &str, text: &str, mode: u32) {
        let dir = self.whole.path().join("etc").join(kind);
        fs::create_dir_all(&dir).unwrap();
        let file = dir.join("whitelist");
        let _ = fs::remove_file(&file);
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    }
}

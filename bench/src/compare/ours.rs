//! Our own entrants: a build of the programs, its machines' keys and trust, and a pair of udsproxyd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::entrants::Stage;
use super::machines::{Machines, Service, Side, done};

/// A directory of programs.
#[derive(Debug)]
pub(super) struct Build {
    dir: PathBuf,
    /// Whether its links are to be without encryption.
    pub(super) plain: bool,
    /// Entrants and their engines.
    pub(super) entrants: &'static [(&'static str, &'static str)],
    /// What keeps its keys apart from another's.
    name: &'static str,
}

const PROGRAMS: [&str; 3] = ["udsproxyd", "farside", "libudsproxy.so"];

impl Build {
    /// # Errors
    /// One line: what is not there.
    pub(super) fn new(
        name: &'static str,
        dir: &Path,
        plain: bool,
        entrants: &'static [(&'static str, &'static str)],
    ) -> Result<Self, String> {
        let dir = dir.canonicalize().map_err(|e| format!("{}: {e}", dir.display()))?;
        for program in PROGRAMS {
            if !dir.join(program).exists() {
                return Err(format!("{}: {program} is not there: cargo build --release", dir.display()));
            }
        }
        Ok(Self { dir, plain, entrants, name })
    }

    fn home(&self, machines: &Machines, side: Side) -> PathBuf {
        machines.work.join(format!("{}-{}", self.name, side.word()))
    }

    fn with_home(&self, machines: &Machines, side: Side, mut command: Command) -> Command {
        let home = self.home(machines, side);
        command.env("FARSIDE_CONFIG_DIR", home.join("etc")).env("FARSIDE_RUN_DIR", home.join("run"));
        command.env("FARSIDE_WHITELIST_DIR", home.join("lists")).env_remove("RUST_LOG").env_remove("FARSIDE_ENGINE");
        if self.plain {
            command.env("FARSIDE_INSECURE_PLAINTEXT", "1");
        } else {
            command.env_remove("FARSIDE_INSECURE_PLAINTEXT");
        }
        command
    }

    fn farside(&self, machines: &Machines, side: Side, words: &[&str]) -> Result<String, String> {
        let mut command = self.with_home(machines, side, Command::new(self.dir.join("farside")));
        done(command.args(words))
    }

    /// Gives each machine a key, and trusts the other's with everything.
    ///
    /// # Errors
    /// One line.
    pub(super) fn trust(&self, machines: &Machines) -> Result<(), String> {
        for side in [Side::Near, Side::Far] {
            for part in ["etc", "run"] {
                let dir = self.home(machines, side).join(part);
                fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
            }
        }
        let (near, far) = (self.farside(machines, Side::Near, &["key"])?, self.farside(machines, Side::Far, &["key"])?);
        self.farside(machines, Side::Near, &["trust", "far", &far, "--allow", "exec,uds,fs"])?;
        self.farside(machines, Side::Far, &["trust", "near", &near, "--allow", "exec,uds,fs"])?;
        Ok(())
    }
}

/// Near and far daemon, and what a program needs to connect by the shim.
type Started = (Service, Service, (PathBuf, PathBuf));

pub(super) fn start(
    stage: &Stage,
    build: &Build,
    name: &str,
    port: u16,
    plain: bool,
    engine: &str,
) -> Result<Started, String> {
    assert_eq!(plain, build.plain, "a build's entrants are all of its kind");
    let machines = stage.machines;
    let asked = |side: Side| machines.work.join(side.word()).join(format!("{name}.d/ask"));
    let daemon = |side: Side, other: Side, more: &[String]| {
        let inner = machines.command(side, build.dir.join("udsproxyd"));
        let mut command = build.with_home(machines, side, inner);
        let port = port.to_string();
        command.args([&stage.our_threads.to_string(), side.address(), &port, other.address(), &port]);
        command.args(["--engine", engine, "--log", "warn"]).arg("--socket").arg(asked(side)).args(more);
        machines.start(&format!("{name}-{}", side.word()), &mut command)
    };
    let far = daemon(Side::Far, Side::Near, &[])?;
    let export = format!("{}={}", stage.socket(name).display(), stage.echo().display());
    let near = daemon(Side::Near, Side::Far, &["--export".into(), export])?;
    Ok((near, far, (build.dir.join("libudsproxy.so"), asked(Side::Near))))
}

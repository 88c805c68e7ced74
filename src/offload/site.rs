//! Where this machine's programs and settings are: what the plan needs beside the configuration.

use std::path::Path;

use super::plan::Site;
use super::trouble::{Attempt, Trouble};
use crate::config::{NodeConfig, Offload};

/// A commented node.toml for the DPU.
const TEMPLATE: &str = include_str!("node.toml");

pub fn init(dir: &Path) -> Attempt<()> {
    use std::io::Write;
    let path = dir.join("node.toml");
    std::fs::create_dir_all(dir).map_err(|e| Trouble::io("mkdir", dir, &e))?;
    let mut file = match std::fs::File::create_new(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Trouble::new(format!("{} exists", path.display()), "edit it, or move it away first"));
        }
        Err(e) => return Err(Trouble::io("create", &path, &e)),
    };
    file.write_all(TEMPLATE.as_bytes()).map_err(|e| Trouble::io("write", &path, &e))?;
    println!("wrote {}: set the addresses in it, then `farside dpu up`", path.display());
    Ok(())
}

/// Reads the configuration, and finds what `up` starts and mounts with.
pub fn survey(config: &Path) -> Attempt<(Offload, Site)> {
    let bytes = std::fs::read(config).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            Trouble::new(format!("{} is missing", config.display()), "`farside dpu init` writes one")
        }
        _ => Trouble::io("read", config, &e),
    })?;
    let node = NodeConfig::load_file(config).map_err(|e| Trouble::new(e.to_string(), "correct it"))?;
    let lacks =
        |what: &str| Trouble::new(format!("{} has no {what}", config.display()), "`farside dpu init` shows one");
    let peer = node.peer.ok_or_else(|| lacks("peer = \"ADDR:PORT\""))?;
    let listen = node.listen.ok_or_else(|| lacks("listen = \"ADDR:PORT\""))?;
    let offload = node.offload.ok_or_else(|| lacks("[offload] section"))?;
    let find = |name: &str| {
        super::own_program(name).ok_or_else(|| {
            Trouble::new(format!("{name} is neither beside this program nor installed"), "install farside whole")
        })
    };
    let site = Site {
        peer,
        listen,
        node_toml: bytes,
        rexec: find("rexec")?,
        shim: find("libudsproxy.so")?,
        udsproxyd: find("udsproxyd")?,
        mount_helper: find("mount.qtfs")?,
    };
    Ok((offload, site))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_a_configuration_that_plans() {
        let dir = std::env::temp_dir().join(format!("farside-init-{}", std::process::id()));
        init(&dir).unwrap();
        let said = init(&dir).unwrap_err().to_string();
        assert!(said.contains("exists"), "{said}");
        let node = NodeConfig::load(&dir).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        let mut site = super::super::plan::tests::site();
        site.peer = node.peer.unwrap();
        site.listen = node.listen.unwrap();
        super::super::plan::steps(&node.offload.unwrap(), &site).unwrap();
    }
}

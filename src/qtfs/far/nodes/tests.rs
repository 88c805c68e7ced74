//! What keeps an inode's fd, and what does not.

use super::*;

struct Dir(std::path::PathBuf);

impl Dir {
    /// With a file in it.
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("qtfs-nodes-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("f"), b"text").unwrap();
        Self(path)
    }

    fn nodes(&self) -> Nodes {
        Nodes::new(nix::fcntl::open(&self.0, O_NODE, Mode::empty()).unwrap(), 0, 16).unwrap()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn looked_up(nodes: &Nodes) -> Arc<Node> {
    let fd = nodes.child(&nodes.fd(&nodes.root).unwrap(), c"f").unwrap();
    nodes.intern(fd, &nodes.root, c"f").unwrap().0
}

fn is_open(node: &Node) -> bool {
    node.fd.live(Use::Glance).is_some()
}

#[test]
fn an_idle_inode_is_closed_and_a_glance_does_not_open_it() {
    let dir = Dir::new("idle");
    let nodes = dir.nodes();
    let node = looked_up(&nodes);
    nodes.sweep(true);
    assert!(is_open(&node), "it was used since the tick before");
    nodes.sweep(true);
    assert!(!is_open(&node));
    assert_eq!(file::stat(nodes.glance(&node).unwrap().as_fd()).unwrap().size, 4);
    assert!(!is_open(&node), "nobody keeps what was looked at");
    nodes.fd(&node).unwrap();
    assert!(is_open(&node), "a use keeps it");
    nodes.sweep(true);
    nodes.glance(&node).unwrap();
    nodes.sweep(true);
    assert!(!is_open(&node), "a glance at what is open does not keep it longer");
    std::fs::remove_file(dir.0.join("f")).unwrap();
    assert_eq!(nodes.fd(&node).unwrap_err(), Errno::ESTALE);
}

#[test]
fn a_forgotten_inode_is_closed_at_once_unless_it_is_on_its_way_to_a_program() {
    let dir = Dir::new("forgotten");
    let nodes = dir.nodes();
    let node = looked_up(&nodes);
    looked_up(&nodes);
    nodes.forget(node.id, 1);
    nodes.sweep(false);
    assert!(is_open(&node), "the kernel was told of it twice");
    nodes.forget(node.id, 1);
    nodes.sweep(false);
    assert!(!is_open(&node));
    assert_eq!(nodes.get(node.id).unwrap_err(), Errno::ESTALE);
    let node = looked_up(&nodes);
    nodes.pin(node.id);
    nodes.forget(node.id, 1);
    std::fs::remove_file(dir.0.join("f")).unwrap();
    (0..3).for_each(|_| nodes.sweep(true));
    let passed = nodes.passed(node.id).unwrap();
    assert_eq!(file::stat(nodes.fd(&passed).unwrap().as_fd()).unwrap().size, 4);
}

#[test]
fn an_export_that_nobody_uses_stays_open() {
    let dir = Dir::new("root");
    let nodes = dir.nodes();
    let node = looked_up(&nodes);
    (0..3).for_each(|_| nodes.sweep(true));
    nodes.cache.shed();
    nodes.mounts.shed();
    std::fs::rename(&dir.0, dir.0.with_extension("moved")).unwrap();
    assert_eq!(file::stat(nodes.fd(&node).unwrap().as_fd()).unwrap().size, 4);
    std::fs::rename(dir.0.with_extension("moved"), &dir.0).unwrap();
}

//! A far side for trying qtfs by hand: `qtfs_far ADDR:PORT DIR[:ro]...`. No keys, no policy, no node.

#[path = "../tests/common/far.rs"]
mod far;

use std::path::Path;

use farside::config::Access;
use farside::qtfs::far::Exports;

fn main() {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let mut args = std::env::args().skip(1);
    let addr = args.next().expect("usage: qtfs_far ADDR:PORT DIR[:ro]...");
    let exports = args.map(|a| match a.strip_suffix(":ro") {
        Some(dir) => far::export(Path::new(dir), Access::Ro),
        None => far::export(Path::new(&a), Access::Rw),
    });
    let far = far::Far::start(&addr, Exports::new(exports.collect(), None));
    println!("listening on {}", far.addr);
    loop {
        std::thread::park();
    }
}

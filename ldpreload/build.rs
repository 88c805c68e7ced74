//! glibc before 2.34 has dlsym in libdl; naming that library lets one build load on both.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ENV").as_deref() == Ok("gnu") {
        // A symbol that nobody defines must fail here, not in somebody's program.
        println!("cargo::rustc-cdylib-link-arg=-Wl,-z,defs");
        println!("cargo::rustc-cdylib-link-arg=-Wl,--no-as-needed");
        println!("cargo::rustc-cdylib-link-arg=-l:libdl.so.2");
        // Where newer systems have it; the lookup of a versioned name must succeed at link time.
        println!("cargo::rustc-cdylib-link-arg=-lc");
    }
}

//! Names the shared library, so that programs linked to it find a compatible one at run time.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        let part = |name: &str| std::env::var(format!("CARGO_PKG_VERSION_{name}")).expect("set by cargo");
        println!(
            "cargo::rustc-cdylib-link-arg=-Wl,-soname,libdiffusim.so.{}.{}",
            part("MAJOR"),
            part("MINOR")
        );
    }
}

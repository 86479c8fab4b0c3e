//! include/diffusim.h is what cbindgen makes of src/capi, and every function in it is called by the C test program.

use std::collections::BTreeSet;
use std::path::Path;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn generated() -> String {
    let config = cbindgen::Config::from_file(root().join("cbindgen.toml")).unwrap();
    let builder = cbindgen::Builder::new().with_config(config).with_src(root().join("src/capi/mod.rs"));
    let mut text = Vec::new();
    builder.generate().unwrap().write(&mut text);
    String::from_utf8(text).unwrap()
}

/// `DIFFUSIM_WRITE_HEADER=1 cargo test --test header` writes it.
#[test]
fn committed_header_is_fresh() {
    let path = root().join("include/diffusim.h");
    let header = generated();
    if std::env::var_os("DIFFUSIM_WRITE_HEADER").is_some() {
        std::fs::write(&path, &header).unwrap();
    }
    assert!(
        std::fs::read_to_string(&path).unwrap_or_default() == header,
        "include/diffusim.h is stale; run `make header`"
    );
}

fn names(text: &str) -> BTreeSet<String> {
    let function = regex::Regex::new(r"\b(diffusim_[a-z0-9_]+)\s*\(").unwrap();
    function.captures_iter(text).map(|c| c[1].to_owned()).collect()
}

#[test]
fn every_function_is_exercised_from_c() {
    let header: String =
        generated().lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let test = std::fs::read_to_string(root().join("tests/c/api.c")).unwrap();
    let missing: Vec<_> = names(&header).difference(&names(&test)).cloned().collect();
    assert!(missing.is_empty(), "tests/c/api.c does not call {missing:?}");
}

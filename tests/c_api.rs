//! C99 and C++17 programs are compiled against the committed headers, linked to the library and run.

mod common;

use common::{fixture, network, simulation};
use diffusim::sampler::{Options, StepSize};
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The shared library that cargo built beside this test.
fn library() -> PathBuf {
    let folder = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let library = folder.join("libdiffusim.so");
    assert!(library.exists(), "{} was not built", library.display());
    library
}

/// Compile `source` with warnings as errors and return the program, in a folder that also holds the library.
fn compile(folder: &Path, compiler: &str, standard: &str, source: &str) -> PathBuf {
    let part = |name: &str| std::env::var(format!("CARGO_PKG_VERSION_{name}")).unwrap();
    let soname = folder.join(format!("libdiffusim.so.{}.{}", part("MAJOR"), part("MINOR")));
    let _ = std::fs::copy(library(), &soname).unwrap();
    let program = folder.join("program");
    let status =
        Command::new(std::env::var(if compiler == "gcc" { "CC" } else { "CXX" }).unwrap_or(compiler.into()))
            .arg(format!("-std={standard}"))
            .args(["-O1", "-Wall", "-Wextra", "-pedantic", "-Werror", "-I"])
            .arg(root().join("include"))
            .arg(root().join(source))
            .arg("-o")
            .arg(&program)
            .arg(&soname)
            .args(["-lm", "-Wl,-rpath,$ORIGIN"])
            .status()
            .unwrap();
    assert!(status.success(), "{source} does not compile");
    program
}

fn run(program: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn c99_program_exercises_every_function() {
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path(), "gcc", "c99", "tests/c/api.c");
    let models = ["distance_small.safetensors", "message_passing_periodic.safetensors"].map(fixture);
    run(&program, &models.each_ref().map(|path| path.to_str().unwrap()));
}

#[test]
fn cpp17_program_gives_the_trajectory_of_rust() {
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path(), "g++", "c++17", "tests/c/simulate.cpp");
    let printed = run(&program, &[fixture("distance_small.safetensors").to_str().unwrap()]);
    let options = Options {
        step_size: StepSize::EffectiveStep(2.3e-7),
        allow_unstable: true,
        seed: 991,
        n_replicas: 2,
        ..Options::default()
    };
    let mut s = simulation(&network(), options);
    s.step(300).unwrap();
    let expected: String = s.positions().iter().map(|x| format!("{:x}\n", x.to_bits())).collect();
    assert_eq!(printed, expected);
}

#[test]
fn c_example_gives_the_trajectory_of_rust() {
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path(), "gcc", "c99", "examples/c/ala2.c");
    let path = root().join("examples/ala2/ala2.safetensors");
    let printed = run(&program, &[path.to_str().unwrap(), "700"]);
    let model = std::sync::Arc::new(diffusim::model::Model::load(&path, None).unwrap());
    let mobility = Some(diffusim::schedule::Mobility::FrictionRate(10.0));
    let options = Options { temperature: Some(300.0), mobility, seed: 48291, ..Options::default() };
    let mut s = simulation(&model, options);
    s.step(700).unwrap();
    let numbers: Vec<f64> = printed.split_whitespace().map(|x| x.parse().unwrap()).collect();
    assert_eq!(numbers, s.positions());
    let missing = Command::new(&program).arg("no/such/file").output().unwrap();
    assert!(!missing.status.success() && String::from_utf8_lossy(&missing.stderr).contains("no/such/file"));
}

#[test]
fn only_diffusim_symbols_are_exported() {
    let output = Command::new("nm").args(["-D", "--defined-only"]).arg(library()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let names: Vec<&str> = text.lines().filter_map(|l| l.split_whitespace().last()).collect();
    assert!(names.len() > 20);
    let foreign: Vec<_> = names.iter().filter(|n| !n.starts_with("diffusim_")).collect();
    assert!(foreign.is_empty(), "{foreign:?}");
}

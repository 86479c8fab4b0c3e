//! The house rules (CONTRIBUTING.md): dependencies point down only, and `unsafe` stays in its rooms.

use std::path::{Path, PathBuf};

/// Rooms from the ground up. A room may use the rooms below it, and itself.
const ROOMS: [&[&str]; 6] = [
    &["cell", "error", "lane", "neighbors", "noise", "schedule"],
    &["adapter", "model"],
    &["backend"],
    &["sampler"],
    &["capi"],
    &["lib"],
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// (room, file, text without comments and tests)
fn files() -> Vec<(String, String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    sources(&root, &mut paths);
    let file = |path: PathBuf| {
        let relative = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
        let room = relative.split('/').next().unwrap().trim_end_matches(".rs").to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let text: String = text.lines().map(|l| l.split("//").next().unwrap().to_owned() + "\n").collect();
        (room, relative, text)
    };
    paths.into_iter().map(file).collect()
}

fn floor(room: &str) -> usize {
    ROOMS
        .iter()
        .position(|rooms| rooms.contains(&room))
        .unwrap_or_else(|| panic!("room '{room}' is not on the plan"))
}

#[test]
fn dependencies_point_down() {
    let reference = regex::Regex::new(r"\bcrate::([a-z_]+)").unwrap();
    for (room, file, text) in files() {
        assert!(!text.contains("crate::{"), "{file}: write one `use crate::room` per room");
        for used in reference.captures_iter(&text).map(|c| c[1].to_owned()) {
            let allowed =
                used == room || floor(&used) < floor(&room) || (floor(&used) == 0 && floor(&room) == 0);
            assert!(allowed, "{file}: '{room}' must not use '{used}'");
        }
    }
}

#[test]
fn unsafe_stays_in_its_rooms() {
    let keyword = regex::Regex::new(r"\bunsafe\b").unwrap();
    for (room, file, text) in files() {
        let allowed = room == "capi" || file == CUDA;
        assert!(allowed || !keyword.is_match(&text), "{file}: unsafe belongs into src/capi and src/{CUDA}");
        assert!(file == CUDA || !text.contains("cudarc"), "{file}: only src/{CUDA} may know the driver");
    }
}

/// The file that talks to the driver of GPUs.
const CUDA: &str = "backend/cuda.rs";

/// Adapters that the kernels know, and the function that both have; a GPU refuses the others by name (`tests/cuda.rs`).
const WITH_KERNEL: [(&str, &str); 5] = [
    ("em", "update_particle"),
    ("heun", "update_particle"),
    ("langevin", "update_particle"),
    ("leimkuhler_matthews", "update_particle"),
    ("mala", "log_proposal_ratio"),
];

#[test]
fn adapters_have_the_kernels_they_are_said_to_have() {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let adapters =
        files().into_iter().filter(|(room, file, _)| room == "adapter" && !file.ends_with("mod.rs"));
    let mut found = Vec::new();
    for (_, file, text) in adapters {
        let name = file.trim_start_matches("adapter/").trim_end_matches(".rs");
        let Ok(twin) = std::fs::read_to_string(kernels.join(name).with_extension("cuh")) else { continue };
        let known = WITH_KERNEL.iter().find(|(known, _)| *known == name);
        let (_, function) = known.unwrap_or_else(|| panic!("{file} has a kernel and is not in the list"));
        assert!(
            text.contains(&format!("fn {function}(")) && twin.contains(&format!(" {function}(")),
            "{file}"
        );
        found.push(name.to_owned());
    }
    found.sort_unstable();
    assert_eq!(found, WITH_KERNEL.map(|(name, _)| name));
}

/// CUBIN is compiled at run time from what is embedded here, as kernels/make_ptx.py compiles PTX.
#[test]
fn the_source_of_the_kernels_is_embedded() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let image = std::fs::read_to_string(root.join("src/backend/cuda/image.rs")).unwrap();
    let script = std::fs::read_to_string(root.join("kernels/make_ptx.py")).unwrap();
    for file in std::fs::read_dir(root.join("kernels")).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".cu") || name.ends_with(".cuh") {
            assert!(image.contains(&format!("\"{name}\"")), "{name} is not in src/backend/cuda/image.rs");
        }
    }
    let quoted = regex::Regex::new(r#""(--[^"{]+)""#).unwrap();
    let options = |text: &str, from: &str| -> Vec<String> {
        let line = text.lines().find(|line| line.starts_with(from)).unwrap();
        let options = quoted.captures_iter(line).map(|found| found[1].to_owned());
        options.filter(|option| !option.starts_with("--gpu-architecture")).collect()
    };
    let ours = options(&image, "const OPTIONS: ");
    assert_eq!(ours, options(&script, "OPTIONS = "));
    assert_eq!(ours.len(), 2);
}

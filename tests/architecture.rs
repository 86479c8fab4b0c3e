//! The house rules (CONTRIBUTING.md): dependencies point down only, and `unsafe` stays in its rooms.

use std::path::{Path, PathBuf};

/// Rooms from the ground up. A room may use the rooms below it, and itself.
const ROOMS: [&[&str]; 6] = [
    &["cell", "error", "lane", "noise", "schedule"],
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
fn unsafe_stays_in_the_c_api() {
    let keyword = regex::Regex::new(r"\bunsafe\b").unwrap();
    for (room, file, text) in files() {
        assert!(room == "capi" || !keyword.is_match(&text), "{file}: unsafe belongs into src/capi");
    }
}

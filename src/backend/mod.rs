//! Where arithmetic runs.

pub mod cpu;

use crate::error::{Result, bail};

/// Check the name of a device: `auto` and `cpu` run on the CPU, `cuda[:i]` is not there yet.
pub fn check_device(name: &str) -> Result<()> {
    match name {
        "auto" | "cpu" => Ok(()),
        _ if name == "cuda" || name.starts_with("cuda:") => {
            bail!(
                Unsupported,
                "device '{name}' is not supported: diffusim {} computes on the CPU; use device 'cpu' or 'auto'",
                crate::VERSION
            )
        }
        _ => bail!(InvalidArgument, "device '{name}' is unknown; expected 'auto' or 'cpu'"),
    }
}

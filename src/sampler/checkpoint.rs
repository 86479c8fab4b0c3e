//! The bytes of a checkpoint: magic, version, step, seed, sha256 of what the dynamics depend on, numbers
//! (positions, velocities, tunings, λ of a blend, what the time-parallel sampler has ahead, and proposals made and accepted),
//! sha256 of all.

use crate::error::{Result, bail};
use sha2::{Digest, Sha256};

const MAGIC: &[u8; 8] = b"DIFFUSIM";
/// Version 1 has no proposals.
const VERSION: u64 = 2;
const HEADER: usize = 8 + 3 * 8 + 32;
const DIGEST: usize = 32;

/// Bytes of a checkpoint of `n` numbers.
pub(crate) fn size(n: usize) -> usize {
    HEADER + 8 * n + DIGEST
}

pub(crate) fn write(
    step: u64,
    seed: u64,
    fingerprint: &[u8; 32],
    numbers: impl Iterator<Item = f64>,
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size(numbers.size_hint().0));
    bytes.extend(MAGIC);
    for word in [VERSION, step, seed] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(fingerprint);
    numbers.for_each(|x| bytes.extend(x.to_le_bytes()));
    let digest = Sha256::digest(&bytes);
    bytes.extend(digest);
    bytes
}

/// Step and seed; the `n` `numbers` are overwritten only if everything is right. The last `n_new` of them stay as they are where
/// the checkpoint is of version 1. `hint`: what else may be other in a simulation of other settings.
pub(crate) fn read<'a>(
    bytes: &[u8],
    fingerprint: &[u8; 32],
    n: usize,
    n_new: usize,
    hint: &str,
    numbers: impl Iterator<Item = &'a mut f64>,
) -> Result<(u64, u64)> {
    if bytes.len() < HEADER + DIGEST || !bytes.starts_with(MAGIC) {
        bail!(InvalidCheckpoint, "this is no diffusim checkpoint ({} bytes)", bytes.len());
    }
    let (content, digest) = bytes.split_at(bytes.len() - DIGEST);
    if Sha256::digest(content)[..] != *digest {
        bail!(InvalidCheckpoint, "the checkpoint is damaged or was cut short; use an earlier one");
    }
    let word = |i: usize| u64::from_le_bytes(content[8 + 8 * i..][..8].try_into().expect("eight bytes"));
    let n = match word(0) {
        1 => n - n_new,
        VERSION => n,
        other => bail!(
            InvalidCheckpoint,
            "checkpoint version {other} is unknown; this library reads versions 1 to {VERSION}"
        ),
    };
    if fingerprint[..] != content[32..64] {
        bail!(
            InvalidCheckpoint,
            "the checkpoint belongs to another model or to other settings (temperature, step, adapter, masses, replicas, \
             sampler); create the simulation as it was when the checkpoint was written{hint}"
        );
    }
    if bytes.len() != size(n) {
        bail!(
            InvalidCheckpoint,
            "the checkpoint holds {} numbers, the simulation {n}; create it with as many replicas as it had when the checkpoint \
             was written",
            (bytes.len() - HEADER - DIGEST) / 8
        );
    }
    for (x, b) in numbers.zip(content[HEADER..].as_chunks::<8>().0) {
        *x = f64::from_le_bytes(*b);
    }
    Ok((word(1), word(2)))
}

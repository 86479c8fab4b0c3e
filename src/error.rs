//! Leaf: the one error type. Each variant is one status code of the C API; each message names the offender, its value,
//! what was expected and what to do.

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument is outside its range or contradicts another.
    #[error("{0}")]
    InvalidArgument(String),
    /// The model file cannot be read or is not what it claims to be.
    #[error("{0}")]
    InvalidModel(String),
    /// The model and the particles it is asked to move do not fit.
    #[error("{0}")]
    Mismatch(String),
    /// The step is too coarse for the model (theory §2).
    #[error("{0}")]
    Unstable(String),
    /// The score stopped being finite, or a particle ran away; the last good frame is kept.
    #[error("{0}")]
    NotFinite(String),
    /// A checkpoint cannot be read or belongs to something else.
    #[error("{0}")]
    InvalidCheckpoint(String),
    /// Asked for what this build or this machine does not have.
    #[error("{0}")]
    Unsupported(String),
    /// The GPU or its driver failed.
    #[error("{0}")]
    Device(String),
    /// A file could not be read or written.
    #[error("{0}")]
    Io(String),
    /// The caller's own score function failed.
    #[error("{0}")]
    Callback(String),
}

/// A number for a message: four digits, and an exponent only where it would be long without one.
pub fn brief(value: f64) -> String {
    let scientific = format!("{value:.3e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific }; // not finite
    let exponent: i32 = exponent.parse().expect("a float's exponent is a whole number");
    let trimmed = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    if (-4..5).contains(&exponent) {
        let decimals = (3 - exponent).max(0) as usize;
        let rounded: f64 = scientific.parse().expect("a float as it was written");
        trimmed(&format!("{rounded:.decimals$}"))
    } else {
        format!("{}e{exponent}", trimmed(digits))
    }
}

/// `Err(Error::$variant(format!(…)))`, returned.
macro_rules! bail {
    ($variant:ident, $($message:tt)*) => {
        return Err($crate::error::Error::$variant(format!($($message)*)))
    };
}
pub(crate) use bail;

#[cfg(test)]
mod tests {
    use super::brief;

    #[test]
    fn numbers_are_as_short_as_four_digits_allow() {
        for (value, text) in [
            (10.0, "10"),
            (0.05, "0.05"),
            (-0.002, "-0.002"),
            (1.2340e-4, "0.0001234"),
            (3.75587e-5, "3.756e-5"),
            (12039.9, "12040"),
            (99996.0, "1e5"),
            (641025.6, "6.41e5"),
            (0.106_49, "0.1065"),
            (1.0, "1"),
            (0.0, "0"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(brief(value), text);
        }
    }
}

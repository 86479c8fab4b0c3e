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

/// `Err(Error::$variant(format!(…)))`, returned.
macro_rules! bail {
    ($variant:ident, $($message:tt)*) => {
        return Err($crate::error::Error::$variant(format!($($message)*)))
    };
}
pub(crate) use bail;

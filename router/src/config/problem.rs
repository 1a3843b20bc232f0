//! Everything that can be wrong with a configuration, in the words in which it is said.

/// Why a configuration cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// There is no pool.
    #[error("there is no `[[pool]]`: write one, with `name` and `command`")]
    NoPool,
}

/// Why a configuration may not do what was meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Caution {
    /// Nothing goes to a pool.
    #[error("no route leads to the pool `{0}`")]
    UnusedPool(String),
}

//! A peer's security context (SELinux), taken apart.

/// A context: `user:role:type:level`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// The whole text.
    pub text: Box<str>,
    /// SELinux user.
    pub user: Box<str>,
    /// Role.
    pub role: Box<str>,
    /// Type, of a process also called domain.
    pub type_: Box<str>,
    /// Level or range; empty where the policy has none.
    pub level: Box<str>,
}

impl Label {
    /// Takes a context apart. The level holds colons itself: only the first three separate.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, ':');
        let mut part = || parts.next().filter(|part| !part.is_empty()).map(Box::from);
        let (user, role, type_) = (part()?, part()?, part()?);
        let level = part().unwrap_or_default();
        Some(Self { text: text.into(), user, role, type_, level })
    }
}

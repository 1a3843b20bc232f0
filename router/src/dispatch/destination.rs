//! Whom a worker may name when it hands a connection back.

use vestibule_protocol::supervision::PoolSetup;

/// The pools by name, and whom each may name.
#[derive(Debug, Default)]
pub(super) struct Destinations {
    pools: Vec<Named>,
}

#[derive(Debug)]
struct Named {
    name: String,
    /// Names of pools.
    may_name: Vec<String>,
}

/// A pool, and perhaps one of its workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Destination {
    pub(super) pool: usize,
    pub(super) slot: Option<u32>,
}

/// Why a connection does not go where its worker wants it to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoDestination {
    /// Neither a pool nor a worker.
    #[error("there is no pool or worker of this name")]
    Unknown,
    /// The configuration does not say that it may.
    #[error("`hand-back-to` of the worker's pool does not name that pool")]
    Forbidden,
}

impl Destinations {
    pub(super) fn new(pools: &[PoolSetup]) -> Self {
        let named = |pool: &PoolSetup| Named {
            name: pool.name.clone(),
            may_name: pool.settings.hand_back_to.clone(),
        };
        Self { pools: pools.iter().map(named).collect() }
    }

    /// The name of a pool.
    pub(super) fn name(&self, pool: usize) -> &str {
        self.pools.get(pool).map_or("", |pool| &pool.name)
    }

    /// What a worker of the pool `from` means by `to`: the name of a pool, or `POOL-N` of one of its
    /// workers. A name that is both is the pool's.
    ///
    /// # Errors
    /// See [`NoDestination`].
    pub(super) fn resolve(&self, from: usize, to: &str) -> Result<Destination, NoDestination> {
        let found = self.find(to, None).or_else(|| {
            let (pool, number) = to.rsplit_once('-')?;
            let number: u32 = number.parse().ok()?;
            self.find(pool, Some(number.checked_sub(1)?))
        });
        let (destination, name) = found.ok_or(NoDestination::Unknown)?;
        let may_name = self.pools.get(from).map_or(&[][..], |pool| &pool.may_name);
        if may_name.iter().any(|known| known == name) {
            Ok(destination)
        } else {
            Err(NoDestination::Forbidden)
        }
    }

    fn find(&self, name: &str, slot: Option<u32>) -> Option<(Destination, &str)> {
        let pool = self.pools.iter().position(|pool| pool.name == name)?;
        Some((Destination { pool, slot }, &self.pools.get(pool)?.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destinations() -> Destinations {
        let named = |name: &str, may_name: &[&str]| Named {
            name: name.into(),
            may_name: may_name.iter().map(|name| (*name).to_owned()).collect(),
        };
        Destinations {
            pools: vec![
                named("login", &["customers", "customers-2"]),
                named("customers", &[]),
                named("customers-2", &[]),
                named("admin", &["login"]),
            ],
        }
    }

    #[test]
    fn a_pool_or_one_of_its_workers_is_named() {
        let to = |name| destinations().resolve(0, name);
        assert_eq!(to("customers"), Ok(Destination { pool: 1, slot: None }));
        assert_eq!(to("customers-1"), Ok(Destination { pool: 1, slot: Some(0) }));
        assert_eq!(to("customers-2"), Ok(Destination { pool: 2, slot: None }));
        assert_eq!(to("customers-2-7"), Ok(Destination { pool: 2, slot: Some(6) }));
    }

    #[test]
    fn what_is_not_named_in_the_configuration_is_forbidden() {
        let to = |from, name| destinations().resolve(from, name);
        assert_eq!(to(0, "admin"), Err(NoDestination::Forbidden));
        assert_eq!(to(0, "admin-1"), Err(NoDestination::Forbidden));
        assert_eq!(to(0, "login"), Err(NoDestination::Forbidden), "not even itself");
        assert_eq!(to(1, "login"), Err(NoDestination::Forbidden));
        assert_eq!(to(9, "customers"), Err(NoDestination::Forbidden));
        assert_eq!(to(0, "customers-0"), Err(NoDestination::Unknown), "workers count from 1");
        assert_eq!(to(0, "nobody"), Err(NoDestination::Unknown));
        assert_eq!(to(0, ""), Err(NoDestination::Unknown));
    }
}

//! A rule as it travels becomes a rule as it is used.

use std::sync::Arc;

use vestibule_protocol::Data;
use vestibule_protocol::supervision::{RuleSetup, TargetSetup};

use super::networks::Networks;
use super::pattern::{ContextPattern, Names, NotAPattern, PathPattern, ValuePattern, network};
use super::rule::{Conditions, Refusal, Rule, Target};
use crate::inspect::label::LevelError;

/// Why a rule cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RuleError {
    /// A text in it is no pattern.
    #[error(transparent)]
    Pattern(#[from] NotAPattern),
    /// A text in it is no level.
    #[error(transparent)]
    Level(#[from] LevelError),
}

/// Reads every pattern of a rule. A configuration was read by the same, so that for its rules this
/// does not fail.
///
/// # Errors
/// See [`RuleError`].
pub fn compile(setup: &RuleSetup) -> Result<Rule, RuleError> {
    let peers = match &setup.peers {
        None => None,
        Some(texts) => {
            let networks: Vec<_> =
                texts.iter().map(|text| network(text)).collect::<Result<_, _>>()?;
            Some(Networks::new(networks))
        }
    };
    let boxed = |texts: &Vec<String>| texts.iter().map(|text| text.as_str().into()).collect();
    let bytes = |texts: &Vec<String>| texts.iter().map(|text| text.as_bytes().into()).collect();
    let message = setup.message.as_ref();
    let listeners = setup.listeners.as_ref();
    Ok(Rule {
        name: setup.name.as_str().into(),
        listeners: listeners.map(|all| all.iter().map(|at| *at as usize).collect()),
        peers,
        conditions: Conditions {
            users: setup.users.as_ref().map(boxed),
            contexts: each(setup.contexts.as_ref(), ContextPattern::parse)?,
            levels: each(setup.levels.as_ref(), str::parse)?,
            server_names: names(setup.server_names.as_ref(), Names::add_server_name)?,
            alpn: setup.alpn.as_ref().map(bytes),
            http2: setup.http2,
            hosts: names(setup.hosts.as_ref(), Names::add)?,
            paths: each(setup.paths.as_ref(), PathPattern::parse)?,
            query: values(&setup.query, str::to_owned)?,
            headers: values(&setup.headers, str::to_ascii_lowercase)?,
            cookies: values(&setup.cookies, str::to_owned)?,
        },
        target: match setup.target {
            TargetSetup::Pool(pool) => Target::Pool(pool as usize),
            TargetSetup::Status(status) => Target::Reject(Refusal::Status(status)),
            TargetSetup::Reset => Target::Reject(Refusal::Reset),
            TargetSetup::Close => Target::Reject(Refusal::Close),
            TargetSetup::Redirect => Target::Redirect,
        },
        message: message.map(|json| {
            Arc::new(Data::from_parts(vestibule_protocol::Codec::Json, json.clone().into_bytes()))
        }),
    })
}

fn each<T, E>(
    texts: Option<&Vec<String>>,
    read: impl Fn(&str) -> Result<T, E>,
) -> Result<Option<Vec<T>>, E> {
    texts.map(|texts| texts.iter().map(|text| read(text)).collect()).transpose()
}

fn names(
    texts: Option<&Vec<String>>,
    add: impl Fn(&mut Names, &str) -> Result<(), NotAPattern>,
) -> Result<Option<Names>, NotAPattern> {
    let Some(texts) = texts else { return Ok(None) };
    let mut names = Names::default();
    texts.iter().try_for_each(|text| add(&mut names, text))?;
    Ok(Some(names))
}

/// Of each name its values.
type Named<T> = Vec<(Box<str>, Vec<T>)>;

fn values(
    written: &[(String, Vec<String>)],
    name: fn(&str) -> String,
) -> Result<Named<ValuePattern>, NotAPattern> {
    let read = |(key, texts): &(String, Vec<String>)| {
        let texts: Result<Vec<_>, _> = texts.iter().map(|text| ValuePattern::parse(text)).collect();
        Ok((name(key).into(), texts?))
    };
    written.iter().map(read).collect()
}

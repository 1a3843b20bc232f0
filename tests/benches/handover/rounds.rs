//! Alternating rounds: every contender once, then again, so that a machine that grows slower or faster is no one's advantage.

use std::time::Duration;

use thiserror::Error;

use crate::contender::Contender;
use crate::load::{self, Histogram, Load, LoadError, Seen};
use crate::processes::{ProcessError, cpu_time};

#[derive(Debug, Error)]
pub(crate) enum RoundError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("nothing was served in a round of {contender}{}", first_error.as_ref().map(|e| format!(": {e}")).unwrap_or_default())]
    Nothing { contender: &'static str, first_error: Option<load::ClientError> },
}

/// One round of one contender.
pub(crate) struct Round {
    /// Connections (or requests) a second.
    pub(crate) throughput: f64,
    /// CPU of all server processes, µs a connection (or request).
    pub(crate) cpu: f64,
    /// CPU of the router alone in µs; `None` where there is none.
    pub(crate) router_cpu: Option<f64>,
    /// Latency in µs that half of all, 99 % and 99.9 % did not exceed.
    pub(crate) latency: [f64; 3],
    /// The same from accept to first read; zeros where the servers do not say it.
    pub(crate) first_read: [f64; 3],
    pub(crate) errors: u64,
    pub(crate) first_error: Option<load::ClientError>,
}

/// All rounds with `load` (its port is each contender's own): one vector a contender, in their order.
///
/// # Errors
/// [`RoundError`].
pub(crate) fn alternate(
    contenders: &[Contender],
    load: &Load,
    rounds: usize,
    mut progress: impl FnMut(&Contender, &Round),
) -> Result<Vec<Vec<Round>>, RoundError> {
    let mut all: Vec<Vec<Round>> = contenders.iter().map(|_| Vec::with_capacity(rounds)).collect();
    for _ in 0..rounds {
        for (contender, done) in contenders.iter().zip(&mut all) {
            let round = measure(contender, load)?;
            progress(contender, &round);
            done.push(round);
        }
    }
    Ok(all)
}

fn measure(contender: &Contender, load: &Load) -> Result<Round, RoundError> {
    let processes = contender.processes();
    let mut marks = Vec::with_capacity(2);
    let seen = load::run(
        &Load { port: contender.port, asking: contender.kind.asking(), ..*load },
        || {
            marks.push((cpu_time(&processes.all), cpu_time(&processes.router)));
        },
    )?;
    let mut used = [Duration::ZERO; 2];
    for (index, (all, router)) in marks.into_iter().enumerate() {
        let now = [all?, router?];
        used = if index == 0 { now } else { [now[0] - used[0], now[1] - used[1]] };
    }
    let [all, router] = used;
    let Seen { elapsed, latency, first_read, errors, first_error } = seen;
    let count = latency.total() as f64;
    if latency.total() == 0 {
        return Err(RoundError::Nothing { contender: contender.kind.name(), first_error });
    }
    let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / count;
    Ok(Round {
        throughput: count / elapsed.as_secs_f64(),
        cpu: each(all),
        router_cpu: (!processes.router.is_empty()).then(|| each(router)),
        latency: quantiles(&latency),
        first_read: quantiles(&first_read),
        errors,
        first_error,
    })
}

fn quantiles(histogram: &Histogram) -> [f64; 3] {
    [0.5, 0.99, 0.999].map(|quantile| histogram.quantile(quantile) / 1e3)
}

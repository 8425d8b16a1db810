//! What may happen in a schedule.

#[derive(Clone, Debug)]
pub struct Options {
    pub proxies: usize,
    pub steps: usize,
    /// How often something goes wrong.
    pub faults: u32,
    /// Hosts whose tasks share connections.
    pub pools: bool,
    /// Clients that write to Redis without a proxy.
    pub direct: bool,
    /// Keys expire, are evicted and deleted.
    pub losses: bool,
    pub evicted_epochs: bool,
    /// FLUSHALL.
    pub flushes: bool,
    /// Redis answers writes and deletions with errors now and then.
    pub errors: bool,
    /// Writes by clients that have not read.
    pub blind_writes: bool,
    /// Connections to Redis break.
    pub cuts: bool,
    /// Proxies close connections and open others.
    pub turnover: bool,
    /// Clients try again what got no answer.
    pub retries: bool,
    /// Clients do not wait for answers that take long.
    pub timeouts: bool,
    /// The end of their connection arrives before what says that they have not read an answer.
    pub overtaking: bool,
    /// Hosts whose connections lead to any proxy.
    pub balanced: bool,
    pub proxy_crashes: bool,
    /// A proxy that has died does not come back as long as another one lives.
    pub stay_dead: bool,
    pub redis_crashes: bool,
}

impl Options {
    pub const CALM: Self = Self {
        proxies: 2,
        steps: 400,
        faults: 1,
        pools: false,
        direct: false,
        losses: false,
        evicted_epochs: false,
        flushes: false,
        errors: false,
        blind_writes: false,
        cuts: false,
        turnover: false,
        retries: false,
        timeouts: false,
        overtaking: false,
        balanced: false,
        proxy_crashes: false,
        stay_dead: false,
        redis_crashes: false,
    };

    /// Those of a schedule.
    pub fn of(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(!seed);
        let pools = rng.bool();
        Self {
            proxies: rng.usize(1..=3),
            steps: rng.usize(200..600),
            faults: [1, 1, 2, 4][rng.usize(0..4)],
            pools,
            direct: rng.bool(),
            losses: rng.bool(),
            evicted_epochs: rng.u32(0..8) == 0,
            flushes: rng.u32(0..4) == 0,
            errors: rng.bool(),
            // Known limit: a write without a miss over the connections of a pool, between a miss and its fill there.
            blind_writes: rng.bool() && !pools,
            cuts: rng.bool(),
            turnover: rng.bool(),
            // Known limit of the same kind: the same fill twice, with a younger miss of that pool in between.
            retries: rng.bool(),
            timeouts: rng.bool(),
            overtaking: rng.u32(0..4) == 0,
            balanced: rng.bool(),
            proxy_crashes: rng.bool(),
            stay_dead: rng.u32(0..4) == 0,
            redis_crashes: rng.bool(),
        }
    }
}

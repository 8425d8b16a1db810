//! The protections that the protocol consists of; each can be switched off, to see that it is needed.

use crate::options::Options;

#[derive(Clone, Copy, Debug)]
pub struct Protections {
    /// A PING on the feed ends before the index is asked.
    pub barrier: bool,
    /// Epochs and announcement go before the barrier.
    pub order: bool,
    /// Fills are compared within Redis.
    pub fill_check: bool,
    /// Each attempt of a fan-out has an epoch of its own.
    pub anew: bool,
    /// An entry is dropped only if nothing has happened to it.
    pub generation: bool,
    pub journal: bool,
    /// Recent invalidations are repeated on a Redis with another identity.
    pub replay: bool,
    /// What a dead proxy has begun is done by another one, and what one has left undone that says nothing more.
    pub takeover: bool,
    /// What is written past the proxies is fanned out.
    pub direct: bool,
    /// Where misses were lost, writes count as fills of old ones.
    pub suspect: bool,
    /// Where there are other proxies, a write without a miss of its connection may fill one of theirs.
    pub elsewhere: bool,
    /// Misses from before a loss of the feed are too old for any fill.
    pub gap: bool,
    /// A fill that failed, or whose answer may not have been read, leaves its miss open.
    pub give_back: bool,
    /// Also if it was not sent.
    pub unsent: bool,
    /// However the connection of its client ends.
    pub every_end: bool,
    /// FLUSHALL takes the epochs with it: what was invalidated lately is invalidated once more. So is what was not yet
    /// announced when its epoch was evicted.
    pub flushed: bool,
    /// What is known to be invalidated lately is news for a write that may fill a miss of another proxy, whether or not
    /// Redis still has the epoch.
    pub news: bool,
    /// At the start nothing is known of what others have invalidated.
    pub start: bool,
    /// Whose tasks share connections is not believed to be who was told of an invalidation.
    pub told: bool,
    /// An incomplete index is helped out by scans.
    pub rescan: bool,
    pub as_misses: bool,
    /// An epoch that was evicted is set again, by a new fan-out.
    pub evicted_epochs: bool,
    /// What others invalidate counts as recent.
    pub foreign_recent: bool,
    /// Each connection begins with the question who Redis is.
    pub greeting: bool,
}

impl Protections {
    pub const ALL: Self = Self {
        barrier: true,
        order: true,
        fill_check: true,
        anew: true,
        generation: true,
        journal: true,
        replay: true,
        takeover: true,
        direct: true,
        suspect: true,
        elsewhere: true,
        gap: true,
        give_back: true,
        unsent: true,
        every_end: true,
        flushed: true,
        news: true,
        start: true,
        told: true,
        rescan: true,
        as_misses: true,
        evicted_epochs: true,
        foreign_recent: true,
        greeting: true,
    };

    /// What the proxy does as it is. The rest are its known limits: a client that hangs up in order although it has not read
    /// an answer, and epochs that are flushed at the moment of a fill.
    pub const AS_IS: Self = Self { every_end: false, flushed: false, news: false, ..Self::ALL };

    /// All but one.
    pub fn without(name: &str) -> Self {
        let mut all = Self::ALL;
        let one = match name {
            "barrier" => &mut all.barrier,
            "order" => &mut all.order,
            "fill check" => &mut all.fill_check,
            "anew" => &mut all.anew,
            "generation" => &mut all.generation,
            "journal" => &mut all.journal,
            "replay" => &mut all.replay,
            "take-over" => &mut all.takeover,
            "direct" => &mut all.direct,
            "suspect" => &mut all.suspect,
            "elsewhere" => &mut all.elsewhere,
            "gap" => &mut all.gap,
            "give back" => &mut all.give_back,
            "rescan" => &mut all.rescan,
            "as misses" => &mut all.as_misses,
            "evicted epochs" => &mut all.evicted_epochs,
            "unsent" => &mut all.unsent,
            "every end" => &mut all.every_end,
            "flushed" => &mut all.flushed,
            "news" => &mut all.news,
            "start" => &mut all.start,
            "told" => &mut all.told,
            "greeting" => &mut all.greeting,
            "foreign recent" => &mut all.foreign_recent,
            _ => panic!("no such protection: {name}"),
        };
        *one = false;
        all
    }
}

/// A protection that is switched off, and where that shows.
pub struct Mutation {
    pub protection: &'static str,
    pub options: fn() -> Options,
    /// At most so many: many more than it usually takes.
    pub schedules: u64,
}

const fn mutation(protection: &'static str, schedules: u64, options: fn() -> Options) -> Mutation {
    Mutation { protection, options, schedules }
}

const CALM: Options = Options::CALM;

/// Without `news`, which the proxies do not have, or `told` something is found once in tens of thousands of schedules; without
/// what the latter stands for `refills` in `tests/it` fails. `gap` has a test of its own.
pub const MUTATIONS: [Mutation; 22] = [
    mutation("barrier", 1000, || CALM),
    mutation("order", 3000, || Options { proxies: 3, ..CALM }),
    mutation("fill check", 1000, || CALM),
    mutation("anew", 8000, || Options { errors: true, faults: 6, ..CALM }),
    mutation("generation", 2000, || Options { losses: true, direct: true, ..CALM }),
    mutation("journal", 1000, || Options { proxies: 1, proxy_crashes: true, ..CALM }),
    mutation("replay", 1000, || Options { proxies: 1, redis_crashes: true, ..CALM }),
    mutation("take-over", 4000, || Options { proxy_crashes: true, stay_dead: true, ..CALM }),
    mutation("direct", 1000, || Options { proxies: 1, direct: true, ..CALM }),
    mutation("suspect", 2000, || Options { proxies: 1, proxy_crashes: true, retries: true, ..CALM }),
    mutation("elsewhere", 5000, || Options { balanced: true, faults: 4, ..CALM }),
    mutation("give back", 5000, || Options { proxies: 1, cuts: true, retries: true, faults: 4, ..CALM }),
    mutation("unsent", 10000, || Options {
        proxies: 1,
        redis_crashes: true,
        turnover: true,
        retries: true,
        faults: 8,
        ..CALM
    }),
    mutation("every end", 5000, || Options {
        proxies: 1,
        timeouts: true,
        overtaking: true,
        retries: true,
        faults: 4,
        ..CALM
    }),
    mutation("flushed", 10000, || Options { proxies: 1, flushes: true, faults: 4, ..CALM }),
    mutation("rescan", 2000, || Options { proxies: 1, cuts: true, faults: 4, ..CALM }),
    mutation("as misses", 1000, || Options { proxies: 1, redis_crashes: true, ..CALM }),
    mutation("as misses", 5000, || Options { proxies: 1, proxy_crashes: true, ..CALM }),
    mutation("evicted epochs", 20000, || Options { proxies: 1, evicted_epochs: true, faults: 6, ..CALM }),
    mutation("greeting", 8000, || Options {
        proxies: 1,
        redis_crashes: true,
        turnover: true,
        faults: 4,
        ..CALM
    }),
    mutation("start", 8000, || Options {
        proxies: 3,
        proxy_crashes: true,
        redis_crashes: true,
        balanced: true,
        faults: 2,
        ..CALM
    }),
    mutation("foreign recent", 3000, || Options { redis_crashes: true, ..CALM }),
];

//! Where new connections lead: to the Redis that is in use, or to another one. Pure: times count from the start of the process.

use std::time::Duration;

/// A Redis that was left is not gone back to for so long. Where a name leads to several of them in turn, all connections would
/// be made anew all the time.
const AWAY: Duration = Duration::from_secs(5);

/// The Redis that is in use.
#[derive(Debug, Default)]
pub(super) struct Lead {
    /// Its run id, once it is known.
    run: Option<Box<str>>,
    /// When the last connection that led there began to be made.
    made: Duration,
    /// When it came to be the one.
    since: Duration,
    /// Those that were left lately, and when.
    left: Vec<(Box<str>, Duration)>,
}

/// Where a connection leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// To the Redis that is in use.
    Here,
    /// To another one, which is to be used from now on.
    Elsewhere,
    /// To another one, but a connection that was made later has not led there.
    Outdated,
    /// To one that has only just been left.
    Back,
}

impl Lead {
    /// Of a proxy that knows where an earlier one was led.
    pub fn to(run: &str) -> Self {
        Self { run: Some(run.into()), ..Self::default() }
    }

    /// Where a connection leads that began to be made at `made`, and whose Redis says that it is this run.
    pub fn way(&mut self, run: &str, made: Duration, now: Duration) -> Way {
        match self.run.as_deref() {
            Some(known) if known != run => {
                if made < self.made {
                    return Way::Outdated;
                }
                let just_left = |(left, at): &(Box<str>, Duration)| **left == *run && now < *at + AWAY;
                if self.left.iter().any(just_left) { Way::Back } else { Way::Elsewhere }
            }
            _ => {
                self.run.get_or_insert_with(|| run.into());
                self.made = self.made.max(made);
                Way::Here
            }
        }
    }

    /// From now on this one is in use, to which a connection leads that began to be made at `made`.
    pub fn follow(&mut self, run: &str, made: Duration, now: Duration) {
        self.left.retain(|(_, at)| now < *at + AWAY);
        let before = self.run.replace(run.into());
        self.left.extend(before.map(|before| (before, now)));
        (self.made, self.since) = (made, now);
    }

    /// Whether the one that is in use was so already when a connection began to be made.
    pub fn was_before(&self, made: Duration) -> bool {
        self.since <= made
    }
}

/// The run id in what `INFO server` says.
pub(super) fn run_of(info: &[u8]) -> Option<&str> {
    const NAME: &[u8] = b"run_id:";
    let start = memchr::memmem::find(info, NAME)? + NAME.len();
    let length = info[start..].iter().position(|byte| byte.is_ascii_whitespace())?;
    std::str::from_utf8(&info[start..start + length]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_connection_made_last_says_where_all_lead() {
        let mut lead = Lead::default();
        assert_eq!(lead.way("a", at(1), at(1)), Way::Here, "the first");
        assert_eq!(lead.way("a", at(9), at(9)), Way::Here);
        assert_eq!(lead.way("b", at(8), at(9)), Way::Outdated, "DNS has gone back since");
        assert_eq!(lead.way("b", at(10), at(10)), Way::Elsewhere);
        lead.follow("b", at(10), at(11));
        assert_eq!(lead.way("b", at(10), at(11)), Way::Here);
        assert_eq!(lead.way("a", at(9), at(20)), Way::Outdated, "slow, and made before");
        assert!(!lead.was_before(at(10)) && lead.was_before(at(11)));
        assert_eq!(Lead::to("a").way("b", at(0), at(0)), Way::Elsewhere);
    }

    #[test]
    fn a_redis_that_was_just_left_is_not_gone_back_to() {
        let mut lead = Lead::to("a");
        lead.follow("b", at(10), at(10));
        assert_eq!(lead.way("a", at(11), at(11)), Way::Back);
        assert_eq!(lead.way("c", at(11), at(11)), Way::Elsewhere, "a restarted one has a new name");
        lead.follow("c", at(11), at(11));
        assert_eq!(lead.way("a", at(14), at(14)), Way::Back, "nor by a detour");
        assert_eq!(lead.way("a", at(15), at(15)), Way::Elsewhere);
        lead.follow("a", at(15), at(15));
        assert_eq!(lead.way("b", at(16), at(16)), Way::Elsewhere);
        assert_eq!(lead.way("c", at(16), at(16)), Way::Back);
    }

    #[test]
    fn the_run_is_named_in_a_line_of_its_own() {
        assert_eq!(run_of(b"$99\r\n# Server\r\nrun_id:abc\r\ntcp_port:1\r\n"), Some("abc"));
        assert_eq!(run_of(b"# Server\r\nrun_id:ab"), None);
        assert_eq!(run_of(b"# Server\r\n"), None);
    }
}

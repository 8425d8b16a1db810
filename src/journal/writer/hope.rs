//! Whether something is worth doing again.

/// What was in vain is tried again after twice as many turns each time, until it is done in one of 2 to the power of this.
const MOST_IN_VAIN: u32 = 6;

/// Whether to do something that was in vain several times: less and less often.
#[derive(Debug, Default)]
pub(super) struct Hope {
    in_vain: u32,
    skipped: u32,
}

impl Hope {
    /// Whether to do it now.
    pub fn is_up(&mut self) -> bool {
        let up = self.skipped + 1 >= 1 << self.in_vain;
        self.skipped = if up { 0 } else { self.skipped + 1 };
        up
    }

    /// How it went.
    pub fn learn(&mut self, succeeded: bool) {
        self.in_vain = if succeeded { 0 } else { (self.in_vain + 1).min(MOST_IN_VAIN) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hope_fades_and_comes_back() {
        let mut hope = Hope::default();
        let mut tries = |turns: usize, success: bool| {
            (0..turns)
                .filter(|_| {
                    hope.is_up() && {
                        hope.learn(success);
                        true
                    }
                })
                .count()
        };
        assert_eq!(tries(7, false), 3, "the 1st, 3rd and 7th");
        assert_eq!(tries(64 * 100, false), 100 + 2, "by and by one of 64");
        assert!(tries(2 * 64, true) > 64, "after one success at once each time");
    }
}

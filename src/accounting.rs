//! What a reply means beyond its bytes: hits and misses, and whether a trigger fired.
//!
//! Made from a request when it is sent, kept in the queue of expected replies, fed with the reply's heads.

use smallvec::SmallVec;

use crate::command::{FireCondition, Outcome, Reads, Tally};
use crate::resp::Head;
use crate::rules::{FamilyId, Tag, TriggerId};

/// The families of the keys that a read names, in order.
pub type Families = SmallVec<[FamilyId; 4]>;

/// A read whose reply shows hits and misses.
#[derive(Clone, Debug)]
pub struct Reading {
    /// How its reply shows them.
    pub reads: Reads,
    /// The family of each key.
    pub families: Families,
}

impl Reading {
    fn tally(&self) -> Tally {
        Tally::new(self.reads, self.families.len())
    }

    /// Tells `count` the family of every key and whether it was there.
    fn settle(&self, outcome: Outcome<'_>, mut count: impl FnMut(FamilyId, bool)) {
        match outcome {
            Outcome::Uncounted => {}
            Outcome::All(hit) => self.families.iter().for_each(|f| count(*f, hit)),
            Outcome::PerKey(hits) => self.families.iter().zip(hits).for_each(|(f, hit)| count(*f, *hit)),
            // `EXISTS a b` answered 1: exact where the keys are of one family. Otherwise the reply does not
            // tell which; the first ones are taken to be there.
            Outcome::Some(hits) => {
                self.families.iter().enumerate().for_each(|(i, f)| count(*f, (i as u64) < hits));
            }
        }
    }
}

/// What fires if a write succeeds.
#[derive(Clone, Debug)]
pub struct Firing {
    /// When the write counts as done.
    pub condition: FireCondition,
    /// The triggers.
    pub triggers: SmallVec<[TriggerLabel; 1]>,
    /// The tags that they invalidate.
    pub tags: Vec<Tag>,
    /// The keys that made them fire, with their database.
    pub keys: Vec<(u32, Box<[u8]>)>,
    /// The command and its first key, for the log.
    pub what: String,
}

/// What fired: the label of `rescind_invalidations_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TriggerLabel {
    /// A `[[trigger]]` of the configuration.
    Rule(TriggerId),
    /// A message on the invalidation channel.
    Publish,
    /// `TAG.INVALIDATE`.
    Command,
    /// `POST /api/invalidate`.
    Http,
}

/// What EXEC's reply tells about one queued request.
#[derive(Clone, Debug, Default)]
pub struct Queued {
    /// Hits and misses to count.
    pub reading: Option<Reading>,
    /// What fires if it succeeds.
    pub firing: Option<Firing>,
}

/// What to look for in one reply.
#[derive(Debug, Default)]
pub enum Account {
    /// Nothing.
    #[default]
    Nothing,
    /// Hits and misses.
    Read(Reading),
    /// Whether a trigger fired.
    Write(Box<Firing>),
    /// `QUEUED`, unless the client was not inside MULTI after all.
    Queued(Box<Queued>),
    /// What was queued, element by element.
    Exec(Vec<Queued>),
}

impl Account {
    /// Whether triggers may fire, so that the reply waits for a fan-out.
    pub fn may_fire(&self) -> bool {
        match self {
            Self::Nothing | Self::Read(_) | Self::Queued(_) => false,
            Self::Write(_) => true,
            Self::Exec(queued) => queued.iter().any(|q| q.firing.is_some()),
        }
    }

    /// All that may fire, whatever the reply: for a reply that will never arrive.
    pub fn may_have_fired(self) -> Vec<Firing> {
        match self {
            Self::Nothing | Self::Read(_) | Self::Queued(_) => vec![],
            Self::Write(firing) => vec![*firing],
            Self::Exec(queued) => queued.into_iter().filter_map(|q| q.firing).collect(),
        }
    }
}

/// The reply that is being read.
#[derive(Debug, Default)]
pub struct Reader {
    error: bool,
    null: bool,
    /// A copy of the first head that outlives its buffer.
    int: Option<i64>,
    text_is_queued: bool,
    count: u64,
    tally: Option<Tally>,
    /// Within EXEC: the element, counted from 1.
    element: usize,
    fired: SmallVec<[usize; 2]>,
}

/// What a whole reply told.
#[derive(Debug)]
pub struct Verdict {
    /// It was an error reply.
    pub error: bool,
    /// The reply itself, as far as conditions look at it.
    pub head: Head<'static>,
    /// What fired.
    pub fired: Vec<Firing>,
    /// What did not.
    pub idle: Vec<Firing>,
}

impl Verdict {
    /// There was no reply, or one that means nothing.
    pub fn failed() -> Self {
        Self { error: true, head: Head::Error(b""), fired: vec![], idle: vec![] }
    }
}

impl Reader {
    /// Starts with a new reply.
    pub fn begin(&mut self, account: &Account) {
        let tally = match account {
            Account::Read(reading) => Some(reading.tally()),
            _ => None,
        };
        *self = Reader { tally, ..Reader::default() };
    }

    /// The head of the reply itself, as far as later decisions need it.
    pub fn head(&self) -> Head<'static> {
        match (self.error, self.null, self.int) {
            (true, ..) => Head::Error(b""),
            (_, true, _) => Head::Null,
            (.., Some(n)) => Head::Int(n),
            _ => Head::Bulk(0),
        }
    }

    /// The last number at depth 1: how many subscriptions a confirmation leaves.
    pub fn number(&self) -> u32 {
        self.int.and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
    }

    /// Takes one head of the reply.
    pub fn on(
        &mut self,
        depth: u32,
        head: &Head<'_>,
        account: &Account,
        count: &mut impl FnMut(FamilyId, bool),
    ) {
        if depth == 0 {
            self.error = head.is_error();
            self.null = *head == Head::Null;
            self.text_is_queued = matches!(head, Head::Simple(b"QUEUED"));
        }
        if depth <= 1
            && let Head::Int(n) = head
        {
            self.int = Some(*n);
        }
        if let Some(tally) = &mut self.tally
            && !matches!(account, Account::Exec(_))
        {
            tally.on(depth, head);
        }
        if let Account::Exec(queued) = account {
            self.on_exec(depth, head, queued, count);
        }
    }

    fn on_exec(
        &mut self,
        depth: u32,
        head: &Head<'_>,
        queued: &[Queued],
        count: &mut impl FnMut(FamilyId, bool),
    ) {
        match depth {
            0 => {
                if let Head::Array(n) = head {
                    self.count = *n;
                }
            }
            1 => {
                self.end_of_element(queued, count);
                self.element += 1;
                let entry = queued.get(self.element - 1);
                self.tally = entry.and_then(|q| q.reading.as_ref()).map(Reading::tally);
                if entry.and_then(|q| q.firing.as_ref()).is_some_and(|f| f.condition.fired(head)) {
                    self.fired.push(self.element - 1);
                }
            }
            _ => {}
        }
        if let Some(tally) = &mut self.tally
            && depth > 0
        {
            tally.on(depth - 1, head);
        }
    }

    fn end_of_element(&mut self, queued: &[Queued], count: &mut impl FnMut(FamilyId, bool)) {
        if let Some(tally) = self.tally.take()
            && let Some(reading) = queued.get(self.element.wrapping_sub(1)).and_then(|q| q.reading.as_ref())
        {
            reading.settle(tally.finish(), count);
        }
    }

    /// The reply is complete.
    pub fn finish(&mut self, account: Account, count: &mut impl FnMut(FamilyId, bool)) -> Verdict {
        let mut verdict = Verdict { error: self.error, head: self.head(), fired: vec![], idle: vec![] };
        match account {
            Account::Nothing => {}
            Account::Read(reading) => {
                if let Some(tally) = &self.tally {
                    reading.settle(tally.finish(), count);
                }
            }
            Account::Write(firing) => {
                let fired = firing.condition.fired(&self.head());
                if fired { verdict.fired.push(*firing) } else { verdict.idle.push(*firing) }
            }
            Account::Queued(queued) => {
                // MULTI had failed, so this ran at once.
                if !self.text_is_queued && !self.error {
                    verdict.fired.extend(queued.firing);
                }
            }
            Account::Exec(queued) => {
                self.end_of_element(&queued, count);
                let ran = !self.error && !self.null;
                // A server that queued something else than was thought: take everything as done.
                let surprised = ran && self.count != queued.len() as u64;
                let fired = std::mem::take(&mut self.fired);
                for (i, entry) in queued.into_iter().enumerate() {
                    if ran && (surprised || fired.contains(&i)) {
                        verdict.fired.extend(entry.firing);
                    } else {
                        verdict.idle.extend(entry.firing);
                    }
                }
            }
        }
        verdict
    }
}

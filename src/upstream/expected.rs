//! The replies that are expected on a connection, in order: what each of them is.

use std::borrow::Cow;
use std::rc::Rc;
use std::time::Instant;

use bytes::BytesMut;

use crate::accounting::{Account, ReadKey, Settled};
use crate::command::FireCondition;
use crate::lease::script::{Check, Short};
use crate::lease::trouble::{self, Trouble};
use crate::lease::{Clock, KeyHash};
use crate::outbox::Outbox;
use crate::resp::encode;
use crate::rules::FamilyId;
use crate::session::Effect;

/// Misses that a write fills, if it takes place.
#[derive(Debug)]
pub struct Fills {
    /// Keys, with the clocks of their misses.
    pub of: Vec<(KeyHash, Clock)>,
    /// When it takes place.
    pub condition: FireCondition,
    /// It does nothing where its keys are there already.
    pub only_adds: bool,
    /// The families of keys whose new values are known to be stale: they are undone then.
    pub stale: Vec<FamilyId>,
}

/// A reply that a client is to get.
#[derive(Debug)]
pub struct Pending {
    /// The client.
    pub client: Rc<Outbox>,
    /// The command's label, as an index into the worker's counters; `None`: not a client's command.
    pub metric: Option<u16>,
    /// When its request was read, in nanoseconds since the process started.
    pub started: u64,
    /// What to look for in it.
    pub account: Account,
    /// What else is to be done with it: with most, nothing.
    pub special: Option<Box<Special>>,
}

/// What is special about a reply that a client is to get.
#[derive(Debug, Default)]
pub struct Special {
    /// What it changes in the client's session, if anything.
    pub effect: Option<Effect>,
    /// What it fills, if it fills something.
    pub fills: Option<Box<Fills>>,
    /// It is kept back until the client's task has dealt with the verdict.
    pub hold: bool,
    /// The client wants no reply.
    pub silent: bool,
    /// The proxy asked on the client's behalf: the reply is for its task, not for the client.
    pub capture: bool,
    /// The client gets this error instead (the request only aborts a transaction).
    pub instead: Option<Box<str>>,
    /// Labelled keys whose expiry it may have changed.
    pub retimed: Option<Box<Retimed>>,
    /// Keys that others may wait for, unless it is held.
    pub settled: Option<Box<Settled>>,
    /// It runs in a script.
    pub scripted: Option<Scripted>,
}

/// A command in a script.
#[derive(Debug)]
pub struct Scripted {
    /// Its name. Errors about rights are to be worded anew.
    pub command: Cow<'static, str>,
    /// The script, if it is a short one.
    pub short: Option<Short>,
    /// The database, and what has to hold for what it writes there.
    pub checks: (u32, Vec<Check>),
    /// The request, if nothing of its client was before or behind it.
    pub kept: Option<Kept>,
}

/// A request that can be sent once more, if Redis says that nothing of it has run. The client's next one waits.
#[derive(Debug)]
pub struct Kept {
    /// What was sent.
    pub request: BytesMut,
    /// It names its script.
    pub named: bool,
    /// Where in it the client's own request begins, without its head.
    pub begin: usize,
    /// How many arguments that has.
    pub arguments: usize,
}

impl Pending {
    /// Whether it is kept back.
    pub fn is_held(&self) -> bool {
        self.special.as_ref().is_some_and(|special| special.hold)
    }

    /// Whether it is for the client's task.
    pub fn is_captured(&self) -> bool {
        self.special.as_ref().is_some_and(|special| special.capture)
    }

    /// What it changes in the client's session, if anything.
    pub fn effect(&self) -> Option<&Effect> {
        self.special.as_ref()?.effect.as_ref()
    }

    /// Likewise, to be changed itself.
    pub fn effect_mut(&mut self) -> Option<&mut Effect> {
        self.special.as_mut()?.effect.as_mut()
    }

    fn scripted(&self) -> Option<&Scripted> {
        self.special.as_ref()?.scripted.as_ref()
    }

    /// What the client gets instead of a reply that begins like that: an error without its mark.
    pub fn refusal(&self, reply: &[u8]) -> Option<Vec<u8>> {
        trouble::refusal(reply, &self.scripted()?.command)
    }

    /// The request with its script spelled out, if it named it.
    pub fn spelled_out(&mut self) -> Option<BytesMut> {
        let scripted = self.special.as_mut()?.scripted.as_mut()?;
        let kept = scripted.kept.as_mut().filter(|kept| kept.named)?;
        kept.named = false;
        Some(scripted.short?.spelled_out(&kept.request))
    }

    /// The client's own request, if it was kept.
    pub fn taken_back(&mut self) -> Option<BytesMut> {
        let Kept { request, begin, arguments, .. } = self.special.as_mut()?.scripted.as_mut()?.kept.take()?;
        let mut out = BytesMut::new();
        encode::array(&mut out, arguments);
        out.extend_from_slice(&request[begin..]);
        Some(out)
    }

    /// Whether it can be done once more.
    pub fn is_kept(&self) -> bool {
        self.scripted().is_some_and(|scripted| scripted.kept.is_some())
    }

    /// What a reply that begins like that means if a script runs the command.
    pub fn trouble(&self, reply: &[u8]) -> Option<Trouble> {
        let scripted = self.scripted().filter(|_| reply.starts_with(b"-"))?;
        let named = scripted.kept.as_ref().is_some_and(|kept| kept.named);
        // Whether the user may run the command is said in other words.
        let unnamed = reply.starts_with(b"-NOSCRIPT") || reply.starts_with(b"-NOPERM");
        if named && unnamed { Some(Trouble::Name) } else { trouble::trouble(reply) }
    }

    /// Whether the client gets its bytes as they are.
    pub fn is_passed_on(&self) -> bool {
        self.special.as_ref().is_none_or(|special| !special.silent && special.instead.is_none())
    }
}

impl Special {
    /// `None` if there is nothing special about it.
    pub fn boxed(self) -> Option<Box<Self>> {
        let Self { effect, fills, hold, silent, capture, instead, retimed, settled, scripted } = &self;
        let any = effect.is_some()
            || fills.is_some()
            || instead.is_some()
            || retimed.is_some()
            || settled.is_some()
            || scripted.is_some();
        (any || *hold || *silent || *capture).then(|| Box::new(self))
    }
}

/// Databases and keys.
pub type Retimed = Vec<(u32, Box<[u8]>)>;

/// A reply that the proxy itself asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setup {
    /// Must not be an error: the connection is useless otherwise.
    Must,
    /// The first `PING`: tells whether there is a Redis, and whether it wants authentication.
    Probe,
    /// Whether clients are let in without AUTH, asked then: `AUTH default`, or a `PING` of nobody.
    Standing(Instant),
    /// Which run of Redis this is.
    Run,
    /// Whether scripts can serve the client's user.
    Scripts,
    /// Whatever it says.
    Ignore,
}

impl Setup {
    /// Whether clients' requests wait until it has succeeded.
    pub fn blocks(self) -> bool {
        matches!(self, Self::Must | Self::Probe | Self::Run)
    }
}

/// What the next reply is.
#[derive(Debug)]
pub enum Expected {
    /// The proxy's own.
    Setup(Setup),
    /// A client's.
    Client(Pending),
    /// Whether a key exists that the client asked for: counts, unless the command before it failed.
    Probe(ReadKey, Rc<Outbox>),
}

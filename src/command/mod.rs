//! Commands: what a request is, which keys it names, and what its reply tells about them.
//!
//! Everything the proxy knows about Redis commands is data in `table`; the rest of the proxy asks a [`Command`].
//! Nothing here does I/O or keeps state, and no request, however broken, makes it fail.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `table` | one row per command and subcommand: arity, flags, key specs |
//! | `lookup` | from a name to its row |
//! | `flags`, `keys`, `special` | what a command does to which keys |
//! | `kind` | what a command means to a session |
//! | `fires` | whether a write took place |
//! | `fills` | whether a write may bring a value that was computed before |
//! | `fetches` | whether a read fetches a value as a whole |
//! | `follow` | what it does to the labels of its keys |
//! | `tally` | whether a read was a hit |
//! | `tagged` | the arguments of the commands that the proxy adds |
//! | `described` | commands that a server has and the table has not |

mod described;
mod fetches;
mod fills;
mod fires;
mod flags;
mod follow;
mod keys;
mod kind;
mod lookup;
mod special;
mod table;
mod tagged;
mod tally;

pub use described::Described;
pub use fills::Fill;
pub use fires::{FireCondition, Fires, NOT_BEGUN, says_nothing_ran};
pub use flags::{Flags, KeyFlags};
pub use follow::Carrying;
pub use keys::{Begin, Find, KeySpec, KeyUse};
pub use kind::{Kind, TagCommand};
pub use tagged::{EMPTY_TAG, with_parts};
pub use tally::{Outcome, Reads, Tally, is_there, reads_need_elements};

use smallvec::SmallVec;

use crate::resp::Args;
use fetches::Fetches;
use keys::{By, Plan};
use lookup::{Lookup, TOP};
use std::borrow::Cow;

/// The dense index of a command; subcommands have their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CommandId(pub u16);

/// All commands that are known: those of the table and those a server described.
#[derive(Clone, Debug)]
pub struct Commands {
    commands: Vec<Command>,
    labels: Vec<Cow<'static, str>>,
    lookup: Lookup,
}

/// One command or subcommand.
#[derive(Clone, Debug)]
pub struct Command {
    /// Its index.
    pub id: CommandId,
    /// Its name in lower case: `get`, `client|setname`.
    pub name: Cow<'static, str>,
    /// Its top-level name in lower case, the label of its metrics: `client`.
    pub label: Cow<'static, str>,
    /// The dense index of the label, see [`Commands::labels`].
    pub metric: u16,
    /// The number of arguments, the name included; negative: at least so many.
    pub arity: i16,
    /// What Redis says about it.
    pub flags: Flags,
    /// What it means to a session.
    pub kind: Kind,
    /// How its hits and misses show.
    pub reads: Reads,
    /// How it shows that it did nothing.
    pub fires: Fires,
    /// How it changes its keys; `None`: it brings no value.
    pub fill: Option<Fill>,
    /// A script can run it and pass its reply on unchanged.
    pub is_scripted: bool,
    /// It hands the labels of a key on: RENAME, COPY, MOVE to another, RESTORE to what overwrites it.
    pub carries: bool,
    /// It may change when a key expires.
    pub retimes: bool,
    blocks: Blocks,
    fetches: Fetches,
    plan: Plan,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blocks {
    Never,
    Always,
    WithOption,
}

impl Commands {
    /// The commands of the table.
    pub fn builtin() -> Commands {
        let mut all =
            Commands { commands: Vec::new(), labels: Vec::new(), lookup: Lookup::new([].into_iter()) };
        for row in table::ROWS {
            all.push(Cow::Borrowed(row.name), row.arity, row.flags, row.key_specs());
        }
        all.index();
        all
    }

    /// Adds what a server's `COMMAND` reply describes and is not known yet: modules' commands, and those of later
    /// versions. Returns how many were added. Indices given out before stay valid.
    pub fn extend(&mut self, described: &[Described]) -> usize {
        let before = self.commands.len();
        for command in described {
            let known = self.commands.len();
            self.add(command, None);
            for sub in &command.subcommands {
                self.add(sub, Some(&command.name));
            }
            // At once, so that one that is described twice is added once.
            if self.commands.len() > known {
                self.index();
            }
        }
        self.commands.len() - before
    }

    /// What the server does not have no script is to run: only outside of them it says that as it says it to everybody. Returns
    /// whether that is news.
    pub fn script_only(&mut self, described: &[Described]) -> bool {
        let mut is_news = false;
        for command in self.commands.iter_mut().filter(|command| fills::is_scripted(&command.name)) {
            let is_there = described.iter().any(|one| one.name.eq_ignore_ascii_case(&command.name));
            is_news |= command.is_scripted != is_there;
            command.is_scripted = is_there;
        }
        is_news
    }

    /// The command of a request: `args[0]` in any case and, if that has subcommands, `args[1]`. An unknown
    /// subcommand finds its container. Allocates nothing.
    #[inline]
    pub fn find(&self, args: Args<'_>) -> Option<&Command> {
        let command = self.top(args.get(0)?)?;
        if !command.flags.has(Flags::CONTAINER) {
            return Some(command);
        }
        Some(args.get(1).and_then(|name| self.sub(command, name)).unwrap_or(command))
    }

    /// The command with this index.
    ///
    /// # Panics
    ///
    /// If the index comes from another table.
    pub fn get(&self, id: CommandId) -> &Command {
        &self.commands[usize::from(id.0)]
    }

    /// The command of this name, such as `set` or `client|setname`, in any case.
    pub fn by_name(&self, name: &str) -> Option<&Command> {
        match name.split_once('|') {
            None => self.top(name.as_bytes()),
            Some((top, sub)) => self.sub(self.top(top.as_bytes())?, sub.as_bytes()),
        }
    }

    /// All commands in the order of their indices.
    pub fn iter(&self) -> std::slice::Iter<'_, Command> {
        self.commands.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.commands.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    /// The labels of all metrics in the order of [`Command::metric`].
    pub fn labels(&self) -> impl ExactSizeIterator<Item = &str> {
        self.labels.iter().map(|label| &**label)
    }

    #[inline]
    fn top(&self, name: &[u8]) -> Option<&Command> {
        let is_it = |id| self.get(CommandId(id)).name.as_bytes().eq_ignore_ascii_case(name);
        self.lookup.find(lookup::key(name, TOP), is_it).map(|id| self.get(CommandId(id)))
    }

    fn sub(&self, container: &Command, name: &[u8]) -> Option<&Command> {
        let is_it = |id| {
            let command = self.get(CommandId(id));
            command.label == container.label && command.own_name().eq_ignore_ascii_case(name)
        };
        self.lookup.find(lookup::key(name, container.id.0), is_it).map(|id| self.get(CommandId(id)))
    }

    fn add(&mut self, described: &Described, container: Option<&str>) {
        // Old servers and some modules name a subcommand without its container.
        let name = match container {
            Some(container) if !described.name.contains('|') => format!("{container}|{}", described.name),
            _ => described.name.clone(),
        }
        .to_ascii_lowercase();
        // The last index is the mark of an empty slot.
        let room = self.commands.len() < usize::from(u16::MAX);
        if room && !name.is_empty() && self.by_name(&name).is_none() {
            self.push(Cow::Owned(name), described.arity(), described.flags(), described.key_specs());
        }
    }

    fn push(&mut self, name: Cow<'static, str>, arity: i16, flags: Flags, specs: Vec<KeySpec>) {
        let top = name.find('|').unwrap_or(name.len());
        let label = match name {
            Cow::Borrowed(name) => Cow::Borrowed(&name[..top]),
            Cow::Owned(ref name) => Cow::Owned(name[..top].to_owned()),
        };
        let metric = match self.commands.iter().rfind(|c| c.label == label) {
            Some(relative) => relative.metric,
            None => {
                self.labels.push(label.clone());
                (self.labels.len() - 1) as u16
            }
        };
        if label != name {
            let container = self.commands.iter_mut().find(|c| c.name == label);
            container.into_iter().for_each(|c| c.flags = c.flags.with(Flags::CONTAINER));
        }
        let id = CommandId(self.commands.len() as u16);
        self.commands.push(Command::new(id, name, (label, metric), arity, flags, specs));
    }

    /// Makes the lookup table anew.
    fn index(&mut self) {
        let parent = |command: &Command| match command.name == command.label {
            true => TOP,
            false => self.commands.iter().find(|c| c.name == command.label).map_or(TOP, |c| c.id.0),
        };
        let entries = self.commands.iter().map(|c| (c.own_name(), parent(c), c.id.0));
        self.lookup = Lookup::new(entries);
    }
}

impl Command {
    fn new(
        id: CommandId,
        name: Cow<'static, str>,
        (label, metric): (Cow<'static, str>, u16),
        arity: i16,
        flags: Flags,
        specs: Vec<KeySpec>,
    ) -> Command {
        let plan = Plan::new(&name, specs, By::new(&name, flags));
        let kind = kind::kind_of(&name, flags);
        let blocks = match kind {
            Kind::Blocking if matches!(&*name, "xread" | "xreadgroup") => Blocks::WithOption,
            Kind::Blocking | Kind::Wait => Blocks::Always,
            _ => Blocks::Never,
        };
        let reads = Reads::of(&name, flags, !matches!(plan, Plan::None));
        let fires = Fires::of(&name);
        let (fill, is_scripted) = (fills::of(&name), fills::is_scripted(&name));
        let fetches = Fetches::of(&name);
        let (carries, retimes) = (follow::carries(&name), follow::retimes(&name));
        Command {
            id,
            name,
            label,
            metric,
            arity,
            flags,
            kind,
            reads,
            fires,
            fill,
            is_scripted,
            carries,
            retimes,
            blocks,
            fetches,
            plan,
        }
    }

    /// Whether a request of `argc` arguments, the name included, satisfies the arity.
    #[inline]
    pub fn arity_ok(&self, argc: usize) -> bool {
        let wanted = usize::from(self.arity.unsigned_abs());
        if self.arity < 0 { argc >= wanted } else { argc == wanted }
    }

    /// Visits the keys of a request with what it may do to them, spec by spec. Any arguments are fine: where Redis
    /// would refuse the request, the keys that can be told are visited. The work is bounded by `args.len()`.
    #[inline]
    pub fn keys<'a>(&self, args: Args<'a>, mut visit: impl FnMut(KeyUse<'a>)) {
        self.plan.visit(args, &mut visit);
    }

    /// Whether any request of this command may name keys.
    #[inline]
    pub fn has_keys(&self) -> bool {
        !matches!(self.plan, Plan::None)
    }

    /// Whether the command may modify data: a write command, or a script that is not read-only.
    #[inline]
    pub fn is_write(&self) -> bool {
        self.flags.has(Flags::WRITE) || self.is_script()
    }

    /// Whether it runs a script that may write: EVAL, EVALSHA, FCALL.
    #[inline]
    pub fn is_script(&self) -> bool {
        matches!(self.plan, Plan::Specs(_, By::Script))
    }

    /// Whether this very request blocks its client: XREAD and XREADGROUP only do with BLOCK.
    #[inline]
    pub fn blocks(&self, args: Args<'_>) -> bool {
        match self.blocks {
            Blocks::Never => false,
            Blocks::Always => true,
            Blocks::WithOption => has_block_option(args),
        }
    }

    /// Whether this very request reads the whole value of its only key, so that an empty reply proves that there is
    /// none.
    #[inline]
    pub fn fetches(&self, args: Args<'_>) -> bool {
        self.fetches.all(args)
    }

    /// What the reply to this request must be for triggers to fire.
    #[inline]
    pub fn fire_condition(&self, args: Args<'_>) -> FireCondition {
        self.fires.condition(args)
    }

    /// Whether the request, where it does nothing, has found its key there, or one of its keys.
    pub fn only_adds(&self, args: Args<'_>) -> bool {
        match &*self.name {
            "setnx" | "msetnx" | "hsetnx" => true,
            "set" => fires::SetOptions::parse(args).nx,
            _ => false,
        }
    }

    /// What the reply to this request must be for the keys that it names to get labels: what took nothing away, or changed no
    /// time to live, has not written to them. Triggers fire all the same.
    pub fn label_condition(&self, args: Args<'_>) -> FireCondition {
        match self.fire_condition(args) {
            FireCondition::NoError if self.fill.is_none() => FireCondition::NotZero,
            FireCondition::Ran => FireCondition::NoError,
            condition => condition,
        }
    }

    /// By this name it fires triggers; `None`: it is a script, which may run any command.
    pub fn name_to_fire(&self) -> Option<&str> {
        (!self.is_script()).then_some(&*self.name)
    }

    /// The database, other than the selected one, that this request writes its last key in (MOVE, `COPY … DB`).
    pub fn other_db(&self, args: Args<'_>) -> Option<i64> {
        let at = match &*self.name {
            "move" => 2,
            "copy" => 1 + (3..args.len()).find(|i| is(args, *i, "db"))?,
            _ => return None,
        };
        keys::number(args.get(at)?)
    }

    /// The database that this request, sent in `own`, writes its last key in.
    pub fn target_db(&self, args: Args<'_>, own: u32) -> u32 {
        self.other_db(args).and_then(|db| u32::try_from(db).ok()).unwrap_or(own)
    }

    /// The databases that this request, sent in `own`, writes its keys in.
    pub fn written_in(&self, args: Args<'_>, own: u32) -> SmallVec<[u32; 2]> {
        let other = self.target_db(args, own);
        match &*self.name {
            // It is gone here and new there.
            "move" if other != own => SmallVec::from_slice(&[own, other]),
            // COPY only reads here.
            _ => SmallVec::from_slice(&[other]),
        }
    }

    /// Whether a command that may write does not: GETEX without options.
    pub fn only_reads(&self, args: Args<'_>) -> bool {
        &*self.name == "getex" && args.len() == 2
    }

    /// The name without the container's.
    fn own_name(&self) -> &[u8] {
        let skip = if self.name.len() > self.label.len() { self.label.len() + 1 } else { 0 };
        self.name.as_bytes().get(skip..).unwrap_or_default()
    }
}

fn is(args: Args<'_>, index: usize, word: &str) -> bool {
    args.get(index).is_some_and(|arg| arg.eq_ignore_ascii_case(word.as_bytes()))
}

/// Whether XREAD or XREADGROUP has BLOCK among its options, which end at STREAMS.
fn has_block_option(args: Args<'_>) -> bool {
    let mut i = 1;
    while i < args.len() && !is(args, i, "streams") {
        if is(args, i, "block") {
            return true;
        }
        // A group or a consumer may be called "block".
        i += match () {
            _ if is(args, i, "group") => 3,
            _ if is(args, i, "count") || is(args, i, "claim") => 2,
            _ => 1,
        };
    }
    false
}

#[cfg(test)]
mod tests;

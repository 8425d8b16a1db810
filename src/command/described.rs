//! A server's own description of its commands, as plain data.

use super::flags::{Flags, KeyFlags};
use super::keys::{Begin, Find, KeySpec};

/// One entry of a server's `COMMAND` reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Described {
    /// The name; of a subcommand: `container|name`.
    pub name: String,
    /// The number of arguments, the name included; negative: at least so many.
    pub arity: i64,
    /// The flags by name.
    pub flags: Vec<String>,
    /// The first key; 0: none.
    pub first: i64,
    /// The last key; negative: counted from the end.
    pub last: i64,
    /// From one key to the next.
    pub step: i64,
    /// The key specs; empty if the server is too old to give any.
    pub specs: Vec<KeySpec>,
    /// The subcommands.
    pub subcommands: Vec<Described>,
}

impl Described {
    /// The flags that are known here.
    pub(super) fn flags(&self) -> Flags {
        Flags::from_names(&self.flags)
    }

    /// The arity, cut to what the table holds.
    pub(super) fn arity(&self) -> i16 {
        self.arity.clamp(i64::from(i16::MIN), i64::from(i16::MAX)) as i16
    }

    /// The key specs; where there are none, the one that `first`, `last` and `step` make.
    pub(super) fn key_specs(&self) -> Vec<KeySpec> {
        let place = (i32::try_from(self.first), i32::try_from(self.last), i32::try_from(self.step));
        match place {
            _ if !self.specs.is_empty() => self.specs.clone(),
            (Ok(first), Ok(last), Ok(step)) if first > 0 => {
                // A spec counts its last key from the first one, the old form counts from the name.
                let last = if last < 0 { last } else { (last - first).max(0) };
                let find = Find::Range { last, step, limit: 0 };
                vec![KeySpec { flags: self.assumed_use(), begin: Begin::Index(first), find }]
            }
            _ => Vec::new(),
        }
    }

    /// What the old form, which does not say, leaves to assume about the keys.
    fn assumed_use(&self) -> KeyFlags {
        if self.flags().has(Flags::WRITE) {
            KeyFlags::RW.with(KeyFlags::ACCESS).with(KeyFlags::UPDATE)
        } else {
            KeyFlags::RO.with(KeyFlags::ACCESS)
        }
    }
}

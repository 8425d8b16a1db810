//! What commands do to the labels of their keys: labels follow a value that is renamed, moved or copied, and their
//! scores the expiry of the key.

use super::{Command, FireCondition};
use crate::resp::Args;

/// Where the labels of one key go if a command succeeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carrying<'a> {
    /// Database and key that have them.
    pub from: (u32, &'a [u8]),
    /// Database and key that get them instead of its own.
    pub to: (u32, &'a [u8]),
    /// The value is not at its old place any more.
    pub moves: bool,
    /// When it has succeeded.
    pub condition: FireCondition,
}

/// Commands that may change when a key expires, by overwriting it or on purpose.
const RETIMING: &[&str] = &[
    "bitop",
    "expire",
    "expireat",
    "georadius",
    "georadiusbymember",
    "geosearchstore",
    "getex",
    "getset",
    "mset",
    "msetex",
    "persist",
    "pexpire",
    "pexpireat",
    "psetex",
    "restore",
    "sdiffstore",
    "set",
    "setex",
    "sinterstore",
    "sort",
    "sunionstore",
    "zdiffstore",
    "zinterstore",
    "zrangestore",
    "zunionstore",
];

pub(super) fn carries(name: &str) -> bool {
    matches!(name, "rename" | "renamenx" | "copy" | "move" | "restore")
}

pub(super) fn retimes(name: &str) -> bool {
    RETIMING.contains(&name)
}

impl Command {
    /// Whose labels the request hands on to whom, sent in database `db`. `None`: nobody's, or to itself. Only RESTORE does that
    /// to itself: Redis deletes what it overwrites, and the labels would go along.
    pub fn carrying<'a>(&self, args: Args<'a>, db: u32) -> Option<Carrying<'a>> {
        if !self.carries || !self.arity_ok(args.len()) {
            return None;
        }
        let from = (db, args.get(1)?);
        let target = self.target_db(args, db);
        let to = match &*self.name {
            "restore" => {
                let replaces = args.iter().skip(4).any(|word| word.eq_ignore_ascii_case(b"replace"));
                let (to, condition) = (from, self.fire_condition(args));
                return replaces.then_some(Carrying { from, to, moves: false, condition });
            }
            "move" => (target, from.1),
            _ => (target, args.get(2)?),
        };
        let moves = &*self.name != "copy";
        (from != to).then(|| Carrying { from, to, moves, condition: self.fire_condition(args) })
    }
}

impl Command {
    /// Whether the request puts the value where it is already: RENAME does that, and answers as if it had done something.
    pub fn stays_put(&self, args: Args<'_>) -> bool {
        self.carries && matches!(&*self.name, "rename" | "renamenx") && args.get(1) == args.get(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Commands;
    use crate::resp::OwnedArgs;

    fn carrying(line: &str) -> Option<(u32, String, u32, String, bool)> {
        let commands = Commands::builtin();
        let args: OwnedArgs = line.split(' ').collect();
        let carrying = commands.find(args.as_args())?.carrying(args.as_args(), 3)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Some((carrying.from.0, text(carrying.from.1), carrying.to.0, text(carrying.to.1), carrying.moves))
    }

    #[test]
    fn who_hands_labels_on_to_whom() {
        let some = |from: &str, db, to: &str, moves| Some((3, from.to_owned(), db, to.to_owned(), moves));
        assert_eq!(carrying("RENAME a b"), some("a", 3, "b", true));
        assert_eq!(carrying("renamenx a b"), some("a", 3, "b", true));
        assert_eq!(carrying("MOVE a 5"), some("a", 5, "a", true));
        assert_eq!(carrying("COPY a b"), some("a", 3, "b", false));
        assert_eq!(carrying("COPY a a REPLACE DB 4"), some("a", 4, "a", false));
        assert_eq!(carrying("RESTORE a 0 dump ABSTTL replace"), some("a", 3, "a", false));
        for nothing in [
            "RESTORE a 0 replace",
            "RESTORE replace 0 dump",
            "RENAME a a",
            "RENAME a",
            "MOVE a 3",
            "MOVE a x",
            "COPY a a DB 3",
            "SET a b",
            "GET a",
        ] {
            assert_eq!(carrying(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn the_names_are_those_of_commands() {
        let commands = Commands::builtin();
        for name in RETIMING {
            assert!(commands.by_name(name).is_some_and(|command| command.retimes), "{name}");
        }
        assert_eq!(commands.iter().filter(|command| command.carries).count(), 5);
    }
}

//! The keys of commands whose key specs Redis itself calls incomplete or variable.

use super::fires::SetOptions;
use super::keys::{Access, KeyUse};
use crate::resp::Args;

/// A command whose keys are found by code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Special {
    /// SET reads with GET only.
    Set,
    /// BITFIELD writes unless it only gets.
    Bitfield,
    /// SORT may store its result.
    Sort,
    /// GEORADIUS and GEORADIUSBYMEMBER may store theirs.
    Geo,
    /// MIGRATE names one key or many, and may leave them where they are.
    Migrate,
}

impl Special {
    pub(super) fn of(name: &str) -> Option<Special> {
        match name {
            "set" => Some(Special::Set),
            "bitfield" => Some(Special::Bitfield),
            "sort" => Some(Special::Sort),
            "georadius" | "georadiusbymember" => Some(Special::Geo),
            "migrate" => Some(Special::Migrate),
            _ => None,
        }
    }

    #[inline]
    pub(super) fn visit<'a>(self, args: Args<'a>, visit: &mut impl FnMut(KeyUse<'a>)) {
        match self {
            Special::Set => {
                let get = args.len() > 3 && SetOptions::parse(args).get;
                let access = if get { Access::MODIFY } else { Access::OVERWRITE };
                if let Some(key) = args.get(1) {
                    visit(access.at(1, key));
                }
            }
            Special::Bitfield => {
                let access = if only_gets(args) { Access::READ } else { Access::MODIFY };
                visit_at(args, 1, access, visit);
            }
            Special::Sort => visit_stored(args, sort_destination(args), visit),
            Special::Geo => visit_stored(args, geo_destination(args), visit),
            Special::Migrate => visit_migrated(args, visit),
        }
    }
}

fn visit_at<'a>(args: Args<'a>, index: usize, access: Access, visit: &mut dyn FnMut(KeyUse<'a>)) {
    if let Some(key) = args.get(index) {
        visit(access.at(index, key));
    }
}

/// Reads argument 1 and overwrites `destination`.
fn visit_stored<'a>(args: Args<'a>, destination: Option<usize>, visit: &mut dyn FnMut(KeyUse<'a>)) {
    visit_at(args, 1, Access::READ, visit);
    if let Some(index) = destination {
        visit_at(args, index, Access::OVERWRITE, visit);
    }
}

/// Whether a BITFIELD has no SET and no INCRBY. Nonsense counts as a write.
fn only_gets(args: Args<'_>) -> bool {
    let mut i = 2;
    while let Some(arg) = args.get(i) {
        if arg.eq_ignore_ascii_case(b"get") {
            i += 3;
        } else if arg.eq_ignore_ascii_case(b"overflow") {
            i += 2;
        } else {
            return false;
        }
    }
    true
}

/// The key behind the last STORE, which is the one that SORT uses.
fn sort_destination(args: Args<'_>) -> Option<usize> {
    let mut destination = None;
    let mut i = 2;
    while let Some(arg) = args.get(i) {
        // A pattern may be called "store", so the options with values are stepped over.
        i += match arg {
            _ if arg.eq_ignore_ascii_case(b"limit") => 3,
            _ if arg.eq_ignore_ascii_case(b"get") || arg.eq_ignore_ascii_case(b"by") => 2,
            _ if arg.eq_ignore_ascii_case(b"store") => {
                destination = Some(i + 1);
                2
            }
            _ => 1,
        };
    }
    destination
}

/// The key behind the last STORE or STOREDIST, which is the one that GEORADIUS uses.
fn geo_destination(args: Args<'_>) -> Option<usize> {
    let mut destination = None;
    let mut i = 5;
    while let Some(arg) = args.get(i) {
        let stores = arg.eq_ignore_ascii_case(b"store") || arg.eq_ignore_ascii_case(b"storedist");
        if stores {
            destination = Some(i + 1);
        }
        i += 1 + usize::from(stores);
    }
    destination
}

/// MIGRATE host port key|"" db timeout [COPY] [REPLACE] [AUTH p] [AUTH2 u p] [KEYS key…]
fn visit_migrated<'a>(args: Args<'a>, visit: &mut dyn FnMut(KeyUse<'a>)) {
    let mut access = Access::REMOVE;
    let mut keys = None;
    let mut i = 6;
    while let (Some(arg), None) = (args.get(i), keys) {
        i += 1;
        if arg.eq_ignore_ascii_case(b"keys") {
            keys = Some(i);
        } else if arg.eq_ignore_ascii_case(b"copy") {
            access = Access::READ;
        } else if arg.eq_ignore_ascii_case(b"auth") {
            i += 1;
        } else if arg.eq_ignore_ascii_case(b"auth2") {
            i += 2;
        }
    }
    let single = args.get(3).is_some_and(|key| !key.is_empty());
    match keys {
        None => visit_at(args, 3, access, visit),
        // Both forms at once: Redis refuses that.
        Some(_) if single => {}
        Some(first) => (first..args.len()).for_each(|i| visit_at(args, i, access, visit)),
    }
}

#[cfg(test)]
mod tests {
    use crate::command::Commands;
    use crate::resp::OwnedArgs;

    fn keys(request: &[&str]) -> Vec<(usize, bool, bool, bool)> {
        let commands = Commands::builtin();
        let owned: OwnedArgs = request.iter().collect();
        let args = owned.as_args();
        let mut found = Vec::new();
        commands.find(args).unwrap().keys(args, |k| found.push((k.index, k.reads, k.writes, k.deletes)));
        found
    }

    fn split(request: &str) -> Vec<(usize, bool, bool, bool)> {
        keys(&request.split(' ').collect::<Vec<_>>())
    }

    #[test]
    fn set_reads_with_get_only() {
        assert_eq!(split("SET k v"), [(1, false, true, false)]);
        assert_eq!(split("SET k get"), [(1, false, true, false)]);
        assert_eq!(split("SET k v PX 5 GET"), [(1, true, true, false)]);
        assert_eq!(split("SET k v IFEQ get"), [(1, false, true, false)]);
    }

    #[test]
    fn bitfield_writes_unless_all_get() {
        assert_eq!(split("BITFIELD k GET u8 0 GET u8 8"), [(1, true, false, false)]);
        assert_eq!(split("BITFIELD k GET u8 0 SET u8 8 1"), [(1, true, true, false)]);
        assert_eq!(split("BITFIELD k OVERFLOW SAT INCRBY u8 8 1"), [(1, true, true, false)]);
        assert_eq!(split("BITFIELD k"), [(1, true, false, false)]);
    }

    #[test]
    fn destinations() {
        let stored = |at| [(1, true, false, false), (at, false, true, false)];
        assert_eq!(split("SORT k BY store GET store STORE d"), stored(7));
        assert_eq!(split("SORT k LIMIT 0 1 STORE a STORE b"), stored(8));
        assert_eq!(split("SORT k ALPHA"), [(1, true, false, false)]);
        assert_eq!(split("SORT k STORE"), [(1, true, false, false)]);
        assert_eq!(split("GEORADIUS k 1 2 3 m STORE a STOREDIST b"), stored(9));
        assert_eq!(split("GEORADIUSBYMEMBER k m 3 m storedist b"), stored(6));
        assert_eq!(split("GEORADIUS k 1 2 3 m DESC"), [(1, true, false, false)]);
    }

    #[test]
    fn migrate_moves_or_copies() {
        let migrate = |tail: &[&'static str]| keys(&[&["MIGRATE", "h", "1"], tail].concat());
        assert_eq!(migrate(&["k", "0", "9"]), [(3, true, true, true)]);
        assert_eq!(migrate(&["k", "0", "9", "COPY"]), [(3, true, false, false)]);
        let two = [(9, true, true, true), (10, true, true, true)];
        assert_eq!(migrate(&["", "0", "9", "AUTH", "keys", "KEYS", "a", "b"]), two);
        assert_eq!(migrate(&["k", "0", "9", "KEYS", "a"]), []);
    }
}

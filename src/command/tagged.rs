//! The arguments of the commands that the proxy adds, as far as they must be understood in more than one place.

use super::Kind;
use crate::resp::Args;
use crate::resp::request::number;

/// What a command with an empty tag is answered.
pub const EMPTY_TAG: &str = "ERR a tag must not be empty";

/// The tags in a TAG.WITH, and its command; or the error that it is answered.
pub fn with_parts<'a>(
    args: Args<'a>,
) -> Result<(impl Iterator<Item = &'a [u8]> + use<'a>, Args<'a>), &'static str> {
    let count = args.get(1).and_then(number).ok_or("ERR value is not an integer or out of range")?;
    let count =
        usize::try_from(count).ok().filter(|n| *n > 0).ok_or("ERR numtags should be greater than 0")?;
    if args.len() < count.saturating_add(3) {
        return Err("ERR Number of tags can't be greater than number of args");
    }
    Ok((args.iter().skip(2).take(count), args.tail(2 + count)))
}

impl Kind {
    /// Whether TAG.WITH takes such a command: one that writes cached values, and does not change the connection.
    pub fn may_be_labelled(self) -> bool {
        matches!(self, Kind::Plain | Kind::Blocking | Kind::Ping | Kind::Publish | Kind::SPublish)
    }
}

//! What is told other proxies, as commands.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::BytesMut;

use crate::lease::Moment;
use crate::lease::script::epoch_key;
use crate::peers::{self, Message};
use crate::rules::Tag;

/// Tags of one fan-out that are told together.
const MOST_TAGS: usize = 1000;
/// A message beyond so many bytes is not made longer.
const LARGE: usize = 64 * 1024;

/// Something to tell.
#[derive(Clone)]
pub(super) enum Announcement {
    /// A fan-out begins: the epochs of its tags are set, then it is told.
    Begun {
        /// Who begins it.
        proxy: peers::ProxyId,
        /// The new epoch of all the tags.
        epoch: Box<[u8]>,
        /// The tags.
        tags: Arc<[Tag]>,
        /// How long Redis keeps the epochs, in milliseconds.
        lifetime: Moment,
    },
    /// Anything else.
    Message(Message),
}

/// Queues the commands that it takes to tell all this, in this order; how many there are. What is told together goes in
/// one message. All epochs are set before.
pub(super) fn queue(announcements: &[Announcement], mut command: impl FnMut(&[&[u8]])) -> usize {
    let mut commands = set_epochs(announcements, &mut command);
    let mut payload = BytesMut::new();
    let mut publish = |payload: &mut BytesMut, least: usize| {
        if payload.len() > least {
            command(&[b"PUBLISH", peers::CHANNEL, payload]);
            commands += 1;
            payload.clear();
        }
    };
    for announcement in announcements {
        match announcement {
            Announcement::Message(message) => message.encode(&mut payload),
            Announcement::Begun { proxy, epoch, tags, .. } => {
                for tags in tags.chunks(MOST_TAGS) {
                    peers::encode_begun(&mut payload, proxy, epoch, tags);
                    publish(&mut payload, LARGE);
                }
            }
        }
        publish(&mut payload, LARGE);
    }
    publish(&mut payload, 0);
    commands
}

/// Of several epochs of one tag the last.
fn set_epochs(announcements: &[Announcement], command: &mut impl FnMut(&[&[u8]])) -> usize {
    let begun = |one: &&Announcement| matches!(one, Announcement::Begun { .. });
    let several = announcements.iter().filter(begun).nth(1).is_some();
    let (mut known, mut commands) = (HashSet::new(), 0);
    for announcement in announcements.iter().rev() {
        let Announcement::Begun { epoch, tags, lifetime, .. } = announcement else { continue };
        let lifetime = lifetime.to_string();
        for tag in tags.iter().filter(|tag| !several || known.insert(*tag)) {
            command(&[b"SET", &epoch_key(tag), epoch, b"PX", lifetime.as_bytes()]);
            commands += 1;
        }
    }
    commands
}

/// The name of a fan-out.
pub(super) fn epoch_named(proxy: &[u8], number: u64) -> Box<[u8]> {
    [proxy, b"-", number.to_string().as_bytes()].concat().into()
}

/// The number in such a name.
pub(super) fn number_of(epoch: &[u8]) -> Option<u64> {
    let start = memchr::memrchr(b'-', epoch)? + 1;
    std::str::from_utf8(&epoch[start..]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(epoch: &str, tags: &[&str]) -> Announcement {
        let tags = tags.iter().map(|tag| Tag::from(tag.as_bytes())).collect();
        Announcement::Begun {
            proxy: b"p".as_slice().into(),
            epoch: epoch.as_bytes().into(),
            tags,
            lifetime: 10,
        }
    }

    fn queued(announcements: &[Announcement]) -> Vec<Vec<Vec<u8>>> {
        let mut commands = vec![];
        let count =
            queue(announcements, |words| commands.push(words.iter().map(|word| word.to_vec()).collect()));
        assert_eq!(count, commands.len());
        commands
    }

    /// The epochs of what is told, in one message or several.
    fn told(command: &[Vec<u8>]) -> Vec<String> {
        assert_eq!(command[..2], [b"PUBLISH".to_vec(), peers::CHANNEL.to_vec()]);
        let mut epochs = vec![];
        assert!(Message::decode(&command[2], |message| epochs.push(match message {
            Message::Begun { epoch, .. } => format!("begun {}", String::from_utf8_lossy(&epoch)),
            Message::Done { epoch, .. } => format!("done {}", String::from_utf8_lossy(&epoch)),
            other => format!("{other:?}"),
        })));
        epochs
    }

    #[test]
    fn what_is_told_together_is_one_message_behind_the_latest_epochs() {
        let done = Announcement::Message(Message::Done {
            proxy: b"p".as_slice().into(),
            epoch: b"p-1".as_slice().into(),
        });
        let commands = queued(&[begun("p-2", &["a", "b"]), done, begun("p-3", &["a"])]);
        let text = |words: &[Vec<u8>]| String::from_utf8_lossy(&words.join(&b' ')).into_owned();
        assert_eq!(text(&commands[0]), "SET rescind:epoch:a p-3 PX 10");
        assert_eq!(text(&commands[1]), "SET rescind:epoch:b p-2 PX 10");
        assert_eq!(told(&commands[2]), ["begun p-2", "done p-1", "begun p-3"]);
        assert_eq!(commands.len(), 3);
        assert_eq!(queued(&[]).len(), 0);
    }

    #[test]
    fn messages_do_not_grow_without_bound() {
        let long = "x".repeat(LARGE);
        let commands = queued(&[begun("p-1", &[&long]), begun("p-2", &["a"])]);
        assert_eq!(
            (told(&commands[2]), told(&commands[3])),
            (vec!["begun p-1".into()], vec!["begun p-2".into()])
        );
        let many = vec!["t"; 2 * MOST_TAGS + 1];
        assert_eq!(told(queued(&[begun("p-1", &many)]).last().unwrap()).len(), 3);
    }

    #[test]
    fn epochs_have_numbers() {
        assert_eq!(number_of(&epoch_named(b"1-2-x", 17)), Some(17));
        assert_eq!(number_of(b"x"), None);
    }
}

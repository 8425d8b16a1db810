//! What is told other proxies, as commands.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::BytesMut;

use crate::lease::Moment;
use crate::lease::script::{MOST_RECENT, RECENT, Recent, epoch_key};
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
        /// It follows one of another proxy, by other rules.
        follows: bool,
    },
    /// Anything else.
    Message(Message),
}

/// How what is told is noted in the list of what was invalidated lately.
pub(super) struct Note<'a> {
    /// The mark of what is told now: no other has it.
    pub mark: &'a [u8],
    /// From now on Redis is to keep the list for so long, in milliseconds, and no longer than it must be. `None`: as it is.
    pub lifetime: Option<Moment>,
}

/// Queues the commands that it takes to tell all this, in this order; how many there are. What is told together goes in
/// one message, but for what older proxies do not understand, who would not read on. All epochs are set before, and it is
/// noted what is invalidated: `note` is there if anything [`is_noted`].
pub(super) fn queue(
    announcements: &[Announcement],
    note: Option<&Note<'_>>,
    mut command: impl FnMut(&[&[u8]]),
) -> usize {
    let mut commands = set_epochs(announcements, &mut command);
    let (mut payloads, mut payload, mut apart) = (vec![], BytesMut::new(), vec![]);
    let mut end = |payload: &mut BytesMut, least: usize| {
        if payload.len() > least {
            payloads.push(payload.split());
        }
    };
    for announcement in announcements {
        match announcement {
            Announcement::Message(message @ Message::Repeated(..)) => {
                let mut payload = BytesMut::new();
                message.encode(&mut payload);
                apart.push(payload);
            }
            Announcement::Message(message) => message.encode(&mut payload),
            Announcement::Begun { proxy, epoch, tags, follows, .. } => {
                for tags in tags.chunks(MOST_TAGS) {
                    peers::encode_begun(&mut payload, proxy, epoch, tags, *follows);
                    end(&mut payload, LARGE);
                }
            }
        }
        end(&mut payload, LARGE);
    }
    if let Some(note) = note {
        Message::Mark(note.mark.into()).encode(&mut payload);
    }
    end(&mut payload, 0);
    let mut queue = |words: &[&[u8]]| {
        command(words);
        commands += 1;
    };
    if let Some(note) = note {
        let entries = recent(announcements, note.mark);
        let words = [b"LPUSH".as_slice(), RECENT].into_iter().chain(entries.iter().map(Vec::as_slice));
        queue(&words.collect::<Vec<_>>());
        if let Some(lifetime) = note.lifetime {
            queue(&[b"LTRIM", RECENT, b"0", (MOST_RECENT - 1).to_string().as_bytes()]);
            queue(&[b"PEXPIRE", RECENT, lifetime.to_string().as_bytes()]);
        }
    }
    payloads.iter().chain(&apart).for_each(|payload| queue(&[b"PUBLISH", peers::CHANNEL, payload]));
    commands
}

/// Whether anything of this comes to the list of what was invalidated lately. Who says hello wants a mark to begin with.
pub(super) fn is_noted(announcements: &[Announcement]) -> bool {
    announcements.iter().any(|one| match one {
        Announcement::Begun { tags, .. } => !tags.is_empty(),
        Announcement::Message(message) => matches!(message, Message::Hello(..)),
    })
}

/// What comes to that list, the last one to its front: the mark. Of more than it holds, so many that nothing older is left.
fn recent(announcements: &[Announcement], mark: &[u8]) -> Vec<Vec<u8>> {
    let mut entries = vec![];
    for announcement in announcements {
        if let Announcement::Begun { tags, .. } = announcement {
            entries.extend(tags.iter().take(MOST_RECENT).map(|tag| Recent::Tag(tag).encoded()));
        }
        entries.drain(..entries.len().saturating_sub(MOST_RECENT));
    }
    entries.push(Recent::Mark(mark).encoded());
    entries
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

/// The name of another attempt of a fan-out: who has seen an earlier one must not take it for that.
pub(super) fn epoch_anew(epoch: &[u8], number: u64) -> Box<[u8]> {
    [peers::fan_out_of(epoch), b".", number.to_string().as_bytes()].concat().into()
}

/// The number in such a name: of the attempt.
pub(super) fn number_of(epoch: &[u8]) -> Option<u64> {
    let start = memchr::memrchr2(b'-', b'.', epoch)? + 1;
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
            follows: false,
        }
    }

    fn queued(announcements: &[Announcement]) -> Vec<Vec<Vec<u8>>> {
        let mut commands = vec![];
        let note = is_noted(announcements).then_some(Note { mark: b"p.1", lifetime: Some(10) });
        let count = queue(announcements, note.as_ref(), |words| {
            commands.push(words.iter().map(|word| word.to_vec()).collect());
        });
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
            Message::Mark(mark) => format!("mark {}", String::from_utf8_lossy(&mark)),
            other => format!("{other:?}"),
        })));
        epochs
    }

    #[test]
    fn what_is_invalidated_is_noted_before_it_is_told() {
        let many = vec!["t"; 3 * MOST_RECENT];
        let hello = Announcement::Message(Message::Hello(b"p".as_slice().into(), 0, 0));
        for (announcements, expected) in [
            (vec![begun("p-1", &["a", "b"]), begun("p-2", &["c"])], 3),
            (vec![begun("p-1", &many)], MOST_RECENT),
            (vec![hello], 0),
        ] {
            let commands = queued(&announcements);
            let push = commands.iter().position(|words| words[0] == b"LPUSH").unwrap();
            assert_eq!(commands[push].len(), 2 + expected + 1, "the mark besides");
            assert_eq!(commands[push].last().unwrap(), b"mp.1");
            let told: Vec<String> = commands[push + 3..].iter().flat_map(|words| told(words)).collect();
            assert_eq!(told.last().unwrap(), "mark p.1", "behind what was begun");
            assert_eq!(told.iter().filter(|one| one.starts_with("mark")).count(), 1);
        }
        let note = Note { mark: b"p.1", lifetime: None };
        assert_eq!(queue(&[begun("p-1", &["a"])], Some(&note), |_| {}), 3, "SET, LPUSH, PUBLISH");
    }

    #[test]
    fn what_is_told_together_is_one_message_behind_the_latest_epochs() {
        let done = Announcement::Message(Message::Done {
            proxy: b"p".as_slice().into(),
            epoch: b"p-1".as_slice().into(),
        });
        let commands = queued(&[begun("p-2", &["a", "b"]), done.clone(), begun("p-3", &["a"])]);
        let text = |words: &[Vec<u8>]| String::from_utf8_lossy(&words.join(&b' ')).into_owned();
        assert_eq!(text(&commands[0]), "SET rescind:epoch:a p-3 PX 10");
        assert_eq!(text(&commands[1]), "SET rescind:epoch:b p-2 PX 10");
        assert_eq!(text(&commands[2]), "LPUSH rescind:recent ta tb ta mp.1");
        assert_eq!(text(&commands[3]), "LTRIM rescind:recent 0 16383");
        assert_eq!(text(&commands[4]), "PEXPIRE rescind:recent 10");
        assert_eq!(told(&commands[5]), ["begun p-2", "done p-1", "begun p-3", "mark p.1"]);
        assert_eq!(commands.len(), 6);
        assert_eq!(queued(&[done]).len(), 1);
        assert_eq!(queued(&[]).len(), 0);
    }

    #[test]
    fn who_does_not_know_a_message_reads_the_others() {
        let repeated = Message::Repeated(b"p".as_slice().into(), b"data".as_slice().into());
        let commands = queued(&[Announcement::Message(repeated), begun("p-1", &["a"])]);
        let told_of = |n: usize| told(&commands[commands.len() - n]);
        assert_eq!(told_of(2), ["begun p-1", "mark p.1"]);
        assert!(told_of(1)[0].starts_with("Repeated"));
    }

    #[test]
    fn messages_do_not_grow_without_bound() {
        let long = "x".repeat(LARGE);
        let commands = queued(&[begun("p-1", &[&long]), begun("p-2", &["a"])]);
        let told_of = |n: usize| told(&commands[commands.len() - n]);
        assert_eq!(
            (told_of(2), told_of(1)),
            (vec!["begun p-1".into()], vec!["begun p-2".into(), "mark p.1".into()])
        );
        let many = vec!["t"; 2 * MOST_TAGS + 1];
        // And the mark.
        assert_eq!(told(queued(&[begun("p-1", &many)]).last().unwrap()).len(), 4);
    }

    #[test]
    fn epochs_have_numbers() {
        let first = epoch_named(b"1-2-x", 17);
        assert_eq!(number_of(&first), Some(17));
        let third = epoch_anew(&epoch_anew(&first, 18), 19);
        assert_eq!(number_of(&third), Some(19));
        assert_eq!(peers::fan_out_of(&third), &*first);
        assert_eq!(number_of(b"x"), None);
    }
}

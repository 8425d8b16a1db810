//! Telling messages and confirmations from replies.

use crate::resp::Head;
use crate::resp::reply::read_head;
use crate::session::SubscriptionKind;

/// What an array or push is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// A message of a subscription.
    Message,
    /// A subscription was added or removed.
    Confirmation(SubscriptionKind),
    /// Something else: a reply if it is an array, an invalidation, say, if it is a push.
    Other,
}

/// Looks at the first element of the array or push at the start of `buf`. `None`: it has not arrived yet.
pub(super) fn classify(buf: &[u8]) -> Option<Class> {
    // What is not RESP is found out by the framer.
    let Ok(head) = read_head(buf) else { return Some(Class::Other) };
    let (head, at) = head?;
    let (Head::Array(n) | Head::Push(n)) = head else { return Some(Class::Other) };
    if n == 0 {
        return Some(Class::Other);
    }
    let Ok(first) = read_head(&buf[at..]) else { return Some(Class::Other) };
    let (first, length) = first?;
    let Head::Bulk(size) = first else { return Some(Class::Other) };
    // The longest word below has 12 letters.
    if size > 12 {
        return Some(Class::Other);
    }
    let word = buf.get(at + length..at + length + size as usize)?;
    Some(match word {
        b"message" | b"pmessage" | b"smessage" => Class::Message,
        b"subscribe" | b"unsubscribe" => Class::Confirmation(SubscriptionKind::Channel),
        b"psubscribe" | b"punsubscribe" => Class::Confirmation(SubscriptionKind::Pattern),
        b"ssubscribe" | b"sunsubscribe" => Class::Confirmation(SubscriptionKind::Shard),
        _ => Class::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        let class = |bytes: &[u8]| classify(bytes);
        assert_eq!(class(b"*3\r\n$7\r\nmessage\r\n"), Some(Class::Message));
        assert_eq!(class(b">3\r\n$9\r\nsubscribe"), Some(Class::Confirmation(SubscriptionKind::Channel)));
        assert_eq!(class(b"*3\r\n$12\r\npunsubscribe"), Some(Class::Confirmation(SubscriptionKind::Pattern)));
        assert_eq!(class(b"*2\r\n$4\r\npong\r\n"), Some(Class::Other));
        assert_eq!(class(b">2\r\n$10\r\ninvalidate\r\n"), Some(Class::Other));
        assert_eq!(class(b"*0\r\n"), Some(Class::Other));
        for incomplete in [b"*3".as_slice(), b"*3\r\n", b"*3\r\n$7\r", b"*3\r\n$7\r\nmessag"] {
            assert_eq!(class(incomplete), None, "{incomplete:?}");
        }
    }
}

//! Who a client has proved to be, and how AUTH and HELLO say it.

use std::rc::Rc;

use super::Effect;
use crate::resp::Args;

/// Who a client has proved to be. Redis verified the password each time; it is kept to open more upstream
/// connections for the same user.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Identity {
    /// It sent no AUTH: Redis treats it as the default user, or refuses it.
    Anonymous,
    /// A user name (`None`: AUTH with the password alone) and its password.
    User(Rc<(Option<Vec<u8>>, Vec<u8>)>),
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Anonymous => f.write_str("anonymous"),
            Self::User(user) => {
                write!(f, "user {}", String::from_utf8_lossy(user.0.as_deref().unwrap_or(b"default")))
            }
        }
    }
}

impl Identity {
    /// A verified user.
    pub fn user(name: Option<&[u8]>, password: &[u8]) -> Self {
        Self::User(Rc::new((name.map(<[u8]>::to_vec), password.to_vec())))
    }
}

/// The identity that an AUTH request claims.
pub(super) fn of_auth(args: Args<'_>) -> Option<Identity> {
    match args.len() {
        2 => Some(Identity::user(None, args.get(1)?)),
        3 => Some(Identity::user(args.get(1), args.get(2)?)),
        _ => None,
    }
}

/// What a HELLO request changes if it succeeds. `None`: it cannot succeed, as far as the proxy knows.
pub(super) fn of_hello(args: Args<'_>) -> Option<Effect> {
    let resp = match args.get(1) {
        None => None,
        Some(b"2") => Some(2),
        Some(b"3") => Some(3),
        Some(_) => return None,
    };
    let (mut identity, mut name, mut at) = (None, None, 2);
    while let Some(option) = args.get(at) {
        if option.eq_ignore_ascii_case(b"auth") {
            identity = Some(Identity::user(args.get(at + 1), args.get(at + 2)?));
            at += 3;
        } else if option.eq_ignore_ascii_case(b"setname") {
            name = Some(args.get(at + 1)?.into());
            at += 2;
        } else {
            return None;
        }
    }
    Some(Effect::Hello { resp, identity, name })
}

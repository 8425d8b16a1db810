//! Who a client is, and what it says about itself: how AUTH, HELLO, SELECT and CLIENT SETNAME tell.

use std::rc::Rc;

use super::Effect;
use crate::command::Kind;
use crate::resp::Args;
use crate::resp::request::number;

/// Who a client is to Redis.
///
/// Redis decides when a connection is made whether it needs AUTH, and a connection that needed none stays what it is
/// when a password is set later. So the two kinds of clients without AUTH never share a connection.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Identity {
    /// It sent no AUTH, and whether it needs one has not been asked yet.
    Unknown,
    /// It sent no AUTH and needed none when it connected: it is the default user.
    Default,
    /// It sent no AUTH and needed one when it connected: Redis judges each of its commands anew.
    Nobody,
    /// A user name (`None`: AUTH with the password alone) and its password. Redis verified it each time; it is kept to
    /// open more upstream connections for the same user.
    User(Rc<(Option<Vec<u8>>, Vec<u8>)>),
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unknown => f.write_str("unknown"),
            Self::Default => f.write_str("default user without a password"),
            Self::Nobody => f.write_str("nobody"),
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

    /// Whether it sent no AUTH.
    pub fn is_anonymous(&self) -> bool {
        !matches!(self, Self::User(_))
    }
}

/// What a client says about itself, for CLIENT LIST. Empty: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Label {
    /// CLIENT SETNAME, or SETNAME of HELLO.
    pub name: Vec<u8>,
    /// CLIENT SETINFO LIB-NAME.
    pub library: Vec<u8>,
    /// CLIENT SETINFO LIB-VER.
    pub version: Vec<u8>,
}

/// One field of a [`Label`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelField {
    /// CLIENT SETNAME
    Name,
    /// CLIENT SETINFO LIB-NAME
    Library,
    /// CLIENT SETINFO LIB-VER
    Version,
}

impl Label {
    /// Sets one field.
    pub fn set(&mut self, field: LabelField, value: &[u8]) {
        let slot = match field {
            LabelField::Name => &mut self.name,
            LabelField::Library => &mut self.library,
            LabelField::Version => &mut self.version,
        };
        *slot = value.to_vec();
    }
}

/// The field that a CLIENT SETNAME or SETINFO request sets. `None`: Redis says what is wrong.
pub(super) fn of_label(kind: Kind, args: Args<'_>) -> Option<Effect> {
    let (field, value) = match kind {
        Kind::ClientSetName => (LabelField::Name, args.get(2).filter(|_| args.len() == 3)?),
        _ => {
            let option = args.get(2).filter(|_| args.len() == 4)?;
            let field = if option.eq_ignore_ascii_case(b"lib-name") {
                LabelField::Library
            } else if option.eq_ignore_ascii_case(b"lib-ver") {
                LabelField::Version
            } else {
                return None;
            };
            (field, args.get(3)?)
        }
    };
    Some(Effect::Label(field, value.into()))
}

/// The identity that an AUTH request claims.
pub(super) fn of_auth(args: Args<'_>) -> Option<Identity> {
    match args.len() {
        2 => Some(Identity::user(None, args.get(1)?)),
        3 => Some(Identity::user(args.get(1), args.get(2)?)),
        _ => None,
    }
}

/// The database that a SELECT request names. `None`: there can be no such database.
pub fn selected(args: Args<'_>) -> Option<u32> {
    let db = args.get(1).filter(|_| args.len() == 2).and_then(number)?;
    u32::try_from(i32::try_from(db).ok()?).ok()
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
    // One AUTH is right or wrong. Of several options the first may be right; and a name is taken before AUTH is missed.
    let partly = args.len() > 5 || name.is_some();
    Some(Effect::Hello { resp, identity, name, partly })
}

//! What Redis says about a command and about its keys, as bit sets written by hand.
//!
//! The constants in `bits` and `key_bits` are plain integers so that the rows of the table stay short.

/// The bits of [`Flags`], named as in the reply of `COMMAND`.
pub(super) mod bits {
    pub const NONE: u32 = 0;
    pub const WRITE: u32 = 1;
    pub const READONLY: u32 = 1 << 1;
    pub const DENYOOM: u32 = 1 << 2;
    pub const ADMIN: u32 = 1 << 3;
    pub const PUBSUB: u32 = 1 << 4;
    pub const NOSCRIPT: u32 = 1 << 5;
    pub const BLOCKING: u32 = 1 << 6;
    pub const LOADING: u32 = 1 << 7;
    pub const STALE: u32 = 1 << 8;
    pub const SKIP_MONITOR: u32 = 1 << 9;
    pub const SKIP_SLOWLOG: u32 = 1 << 10;
    pub const ASKING: u32 = 1 << 11;
    pub const FAST: u32 = 1 << 12;
    pub const NO_AUTH: u32 = 1 << 13;
    pub const MAY_REPLICATE: u32 = 1 << 14;
    pub const NO_MANDATORY_KEYS: u32 = 1 << 15;
    pub const NO_ASYNC_LOADING: u32 = 1 << 16;
    pub const NO_MULTI: u32 = 1 << 17;
    pub const ALLOW_BUSY: u32 = 1 << 18;
    pub const MOVABLEKEYS: u32 = 1 << 19;
    pub const MODULE: u32 = 1 << 20;
    pub const TOUCHES_ARBITRARY_KEYS: u32 = 1 << 21;
    /// Not Redis's: the command has subcommands.
    pub const CONTAINER: u32 = 1 << 31;
}

/// The flags of a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u32);

/// The names that `COMMAND` uses, with their bits.
const FLAG_NAMES: &[(&str, Flags)] = &[
    ("write", Flags::WRITE),
    ("readonly", Flags::READONLY),
    ("denyoom", Flags::DENYOOM),
    ("admin", Flags::ADMIN),
    ("pubsub", Flags::PUBSUB),
    ("noscript", Flags::NOSCRIPT),
    ("blocking", Flags::BLOCKING),
    ("loading", Flags::LOADING),
    ("stale", Flags::STALE),
    ("skip_monitor", Flags::SKIP_MONITOR),
    ("skip_slowlog", Flags::SKIP_SLOWLOG),
    ("asking", Flags::ASKING),
    ("fast", Flags::FAST),
    ("no_auth", Flags::NO_AUTH),
    ("may_replicate", Flags::MAY_REPLICATE),
    ("no_mandatory_keys", Flags::NO_MANDATORY_KEYS),
    ("no_async_loading", Flags::NO_ASYNC_LOADING),
    ("no_multi", Flags::NO_MULTI),
    ("allow_busy", Flags::ALLOW_BUSY),
    ("movablekeys", Flags::MOVABLEKEYS),
    ("module", Flags::MODULE),
    ("touches_arbitrary_keys", Flags::TOUCHES_ARBITRARY_KEYS),
];

impl Flags {
    /// May change the data set.
    pub const WRITE: Flags = Flags(bits::WRITE);
    /// Only reads.
    pub const READONLY: Flags = Flags(bits::READONLY);
    /// Refused when memory is short.
    pub const DENYOOM: Flags = Flags(bits::DENYOOM);
    /// An administrator's command.
    pub const ADMIN: Flags = Flags(bits::ADMIN);
    /// Publish and subscribe.
    pub const PUBSUB: Flags = Flags(bits::PUBSUB);
    /// Not allowed in scripts.
    pub const NOSCRIPT: Flags = Flags(bits::NOSCRIPT);
    /// May block its client.
    pub const BLOCKING: Flags = Flags(bits::BLOCKING);
    /// Allowed while the server loads its data.
    pub const LOADING: Flags = Flags(bits::LOADING);
    /// Allowed on a replica with stale data.
    pub const STALE: Flags = Flags(bits::STALE);
    /// Not shown by MONITOR.
    pub const SKIP_MONITOR: Flags = Flags(bits::SKIP_MONITOR);
    /// Not in the slow log.
    pub const SKIP_SLOWLOG: Flags = Flags(bits::SKIP_SLOWLOG);
    /// Accepted for a slot that is being imported.
    pub const ASKING: Flags = Flags(bits::ASKING);
    /// Constant or logarithmic time.
    pub const FAST: Flags = Flags(bits::FAST);
    /// Allowed before AUTH.
    pub const NO_AUTH: Flags = Flags(bits::NO_AUTH);
    /// May cause replication traffic though it is no write.
    pub const MAY_REPLICATE: Flags = Flags(bits::MAY_REPLICATE);
    /// May come without keys.
    pub const NO_MANDATORY_KEYS: Flags = Flags(bits::NO_MANDATORY_KEYS);
    /// Refused during asynchronous loading.
    pub const NO_ASYNC_LOADING: Flags = Flags(bits::NO_ASYNC_LOADING);
    /// Refused inside MULTI.
    pub const NO_MULTI: Flags = Flags(bits::NO_MULTI);
    /// Allowed while a script is stuck.
    pub const ALLOW_BUSY: Flags = Flags(bits::ALLOW_BUSY);
    /// Its keys are not at fixed places.
    pub const MOVABLEKEYS: Flags = Flags(bits::MOVABLEKEYS);
    /// A module's.
    pub const MODULE: Flags = Flags(bits::MODULE);
    /// Touches keys that it does not name.
    pub const TOUCHES_ARBITRARY_KEYS: Flags = Flags(bits::TOUCHES_ARBITRARY_KEYS);
    /// Has subcommands. Set by this module, Redis has no such flag.
    pub const CONTAINER: Flags = Flags(bits::CONTAINER);

    /// Flags from a row of the table.
    pub(super) const fn from_bits(bits: u32) -> Flags {
        Flags(bits)
    }

    /// Flags from the names in a `COMMAND` reply; names that are not known are left out.
    pub fn from_names<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> Flags {
        names.into_iter().fold(Flags::default(), |flags, name| {
            let known = FLAG_NAMES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name.as_ref()));
            known.map_or(flags, |(_, flag)| flags.with(*flag))
        })
    }

    /// Whether all of `other` is set.
    pub const fn has(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// These flags and those of `other`.
    pub const fn with(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }
}

/// The bits of [`KeyFlags`].
pub(super) mod key_bits {
    pub const RO: u16 = 1;
    pub const RW: u16 = 1 << 1;
    pub const OW: u16 = 1 << 2;
    pub const RM: u16 = 1 << 3;
    pub const ACCESS: u16 = 1 << 4;
    pub const UPDATE: u16 = 1 << 5;
    pub const INSERT: u16 = 1 << 6;
    pub const DELETE: u16 = 1 << 7;
    pub const NOT_KEY: u16 = 1 << 8;
    pub const INCOMPLETE: u16 = 1 << 9;
    pub const VARIABLE_FLAGS: u16 = 1 << 10;
    /// Not Redis's: `DELETE` may mean some of the value (LPOP); this means the key, whatever its value.
    pub const WHOLE: u16 = 1 << 11;
}

/// How a command uses the keys of one key spec.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyFlags(u16);

/// The names that `COMMAND` uses, with their bits.
const KEY_FLAG_NAMES: &[(&str, KeyFlags)] = &[
    ("RO", KeyFlags::RO),
    ("RW", KeyFlags::RW),
    ("OW", KeyFlags::OW),
    ("RM", KeyFlags::RM),
    ("access", KeyFlags::ACCESS),
    ("update", KeyFlags::UPDATE),
    ("insert", KeyFlags::INSERT),
    ("delete", KeyFlags::DELETE),
    ("not_key", KeyFlags::NOT_KEY),
    ("incomplete", KeyFlags::INCOMPLETE),
    ("variable_flags", KeyFlags::VARIABLE_FLAGS),
];

impl KeyFlags {
    /// Read-only.
    pub const RO: KeyFlags = KeyFlags(key_bits::RO);
    /// Reads and writes.
    pub const RW: KeyFlags = KeyFlags(key_bits::RW);
    /// Overwrites.
    pub const OW: KeyFlags = KeyFlags(key_bits::OW);
    /// Removes.
    pub const RM: KeyFlags = KeyFlags(key_bits::RM);
    /// The user's data is read, copied or returned.
    pub const ACCESS: KeyFlags = KeyFlags(key_bits::ACCESS);
    /// The user's data is changed.
    pub const UPDATE: KeyFlags = KeyFlags(key_bits::UPDATE);
    /// Data is added, none is changed.
    pub const INSERT: KeyFlags = KeyFlags(key_bits::INSERT);
    /// Data is deleted.
    pub const DELETE: KeyFlags = KeyFlags(key_bits::DELETE);
    /// Not a key at all: routed like one (SPUBLISH).
    pub const NOT_KEY: KeyFlags = KeyFlags(key_bits::NOT_KEY);
    /// The spec does not find all keys.
    pub const INCOMPLETE: KeyFlags = KeyFlags(key_bits::INCOMPLETE);
    /// Other arguments change the access.
    pub const VARIABLE_FLAGS: KeyFlags = KeyFlags(key_bits::VARIABLE_FLAGS);
    /// The key is removed as a whole, whatever its value. Set by the table, Redis has no such flag.
    pub const WHOLE: KeyFlags = KeyFlags(key_bits::WHOLE);

    /// Any of these makes a key of a write command a written key.
    const MODIFIES: KeyFlags = KeyFlags(
        key_bits::RW | key_bits::OW | key_bits::RM | key_bits::UPDATE | key_bits::INSERT | key_bits::DELETE,
    );

    /// Flags from a row of the table.
    pub(super) const fn from_bits(bits: u16) -> KeyFlags {
        KeyFlags(bits)
    }

    /// Flags from the names in a `COMMAND` reply; names that are not known are left out.
    pub fn from_names<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> KeyFlags {
        names.into_iter().fold(KeyFlags::default(), |flags, name| {
            let known = KEY_FLAG_NAMES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name.as_ref()));
            known.map_or(flags, |(_, flag)| flags.with(*flag))
        })
    }

    /// Whether all of `other` is set.
    pub const fn has(self, other: KeyFlags) -> bool {
        self.0 & other.0 == other.0
    }

    /// These flags and those of `other`.
    pub const fn with(self, other: KeyFlags) -> KeyFlags {
        KeyFlags(self.0 | other.0)
    }

    /// Whether a write command modifies the key.
    pub const fn modifies(self) -> bool {
        self.0 & KeyFlags::MODIFIES.0 != 0
    }
}

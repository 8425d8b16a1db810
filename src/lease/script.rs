//! A fill as a script: Redis runs the client's command and undoes it in the same step if it is stale.

use std::sync::LazyLock;

use bytes::BytesMut;
use smallvec::SmallVec;

use super::Expected;
use crate::command::FireCondition;
use crate::news::label_set;
use crate::resp::{Args, encode};
use crate::rules::Tag;

/// What the names of the keys begin with that hold the latest invalidation of a tag.
pub const EPOCHS: &[u8] = b"rescind:epoch:";

/// A list of what was invalidated lately, the latest first: tags, and in front of those that were told together a mark. They
/// come to it before they are told. So who missed a key after the message with that mark had been seen here reads what was
/// committed with all that stands behind it.
pub const RECENT: &[u8] = b"rescind:recent";
/// So much of it is kept; it may be longer for a moment. What was invalidated before is not known any more: the proxy that
/// writes the key looks at it once more, when the feed has shown which labels it has.
pub const MOST_RECENT: usize = 16_384;
/// So much of it a fill may have to be compared with, as far as the feed has shown. What came to it since comes on top of that.
pub const MOST_SINCE: usize = 1024;
/// Only so much for a key of which it is not known whether it is a cached value at all.
pub const MOST_RECENT_OF_ANY: usize = 256;

/// An entry of [`RECENT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recent<'a> {
    /// A tag.
    Tag(&'a [u8]),
    /// A mark.
    Mark(&'a [u8]),
}

impl<'a> Recent<'a> {
    /// As Redis keeps it.
    pub fn encoded(self) -> Vec<u8> {
        match self {
            Recent::Tag(tag) => [b"t", tag].concat(),
            Recent::Mark(mark) => [b"m", mark].concat(),
        }
    }

    /// Of the first [`MOST_SINCE`], the tags in front of that mark, in any order, and whether these are all.
    pub fn tags_since(entries: &'a [Vec<u8>], mark: &[u8]) -> (Vec<&'a [u8]>, bool) {
        let entry = Recent::Mark(mark).encoded();
        let place = entries.iter().position(|one| *one == entry);
        let since = &entries[..place.unwrap_or(entries.len())];
        let mut tags: Vec<&[u8]> = since.iter().filter_map(|one| one.strip_prefix(b"t")).collect();
        tags.sort_unstable();
        tags.dedup();
        (tags, place.is_some() || entries.len() < MOST_SINCE)
    }
}

/// The key that holds the latest invalidation of a tag.
pub fn epoch_key(tag: &[u8]) -> Vec<u8> {
    [EPOCHS, tag].concat()
}

/// Lua that words an error about the rights of the client's user as Redis does outside of scripts: since version 7.2 it says the
/// same there behind another beginning.
macro_rules! reworded {
    ($error:literal, $command:literal) => {
        concat!(
            $error,
            "=string.gsub(",
            $error,
            ",'^ERR ACL failure in script:','NOPERM') if string.find(",
            $error,
            ",'The user executing',1,true) then ",
            $error,
            "='NOPERM this user has no permissions to '..(string.find(",
            $error,
            ",'access',1,true) and 'access one of the keys used as arguments' or \"run the '\"..",
            $command,
            "..\"' command\") end "
        )
    };
}

/// Lua that runs a command with the rights of its client, whose reply it gives, errors included. Short, since Redis hashes the
/// whole text each time.
///
/// `ARGV`: the client's database, or nothing if it is 0, where epochs are kept; the beginning of a message to this proxy; when
/// the command counts as done (`a` unless there is an error, `n` unless nil, `i` if nil, `z` if it is a number above 0); the
/// number of checks; three words for each (what to look at, what to find there, the key); the labels, in a script that gives
/// some; the command. What to look at: nothing, for what is known to be stale; an epoch; or, in a full script, a channel, on
/// which somebody must listen if the epoch that stands beside it exists, or the list of what was invalidated lately: the key
/// must have none of the labels that stand there in front of a mark (`m`, or `M` where what is not known does not count, or
/// `u` where the proxy is then asked to look at the key: it hears of that behind all that the script cannot see).
///
/// The proxy counts what it knows to be stale; of the rest the script tells it. What it could not undo it does not do.
macro_rules! script {
    (more: $many:expr, $else:expr; labels: $begun:expr, $done:expr, $failed:expr) => {
        concat!(
            "local d,n,u,t,c=ARGV[1],4+3*ARGV[4],{},{},redis.call \
if d~='' then c('SELECT',0) end \
for i=5,n,3 do local w,s,k=ARGV[i],true,ARGV[i+2] \
if w~='' then ",
            $many,
            "local e=c('GET',w) s=e and e~=ARGV[i+1] ",
            $else,
            "end \
if s then u[#u+1]=k if w~='' then t[#t+1]=k end end end \
if d~='' then c('SELECT',d) end \
if u[1] and not redis.acl_check_cmd('UNLINK',unpack(u)) then \
return redis.error_reply(\"NOPERM this user has no permissions to run the 'unlink' command\") end ",
            $begun,
            "local r,o=redis.pcall(unpack(ARGV,n+1)),ARGV[3] \
if type(r)=='table' and r.err then ",
            reworded!("r.err", "string.lower(ARGV[n+1])"),
            $failed,
            "elseif (o=='i')~=(r and true or o=='a') and not (o=='z' and r<1) then \
if u[1] then c('UNLINK',unpack(u)) \
for _,k in ipairs(t) do redis.pcall('PUBLISH','rescind:proxies',ARGV[2]..#k..'\\r\\n'..k..'\\r\\n') end end ",
            $done,
            "else ",
            $failed,
            "end \
return r"
        )
    };
}

macro_rules! plain {
    ($($labels:tt)*) => {
        script!(more: "", ""; $($labels)*)
    };
}

/// With checks of listeners and of labels.
macro_rules! full {
    ($($labels:tt)*) => {
        script!(
            more: "if string.sub(w,1,14)=='rescind:proxy:' then \
s=c('EXISTS',ARGV[i+1])==1 and c('PUBSUB','NUMSUB',w)[2]==0 \
elseif w=='rescind:recent' then local a,q,x,f,l=0,{},ARGV[i+1] s=false \
local y=string.sub(x,1,1) x='m'..string.sub(x,2) \
repeat l=redis.pcall('LRANGE',w,a,a+31) if l.err then break end if d~='' then c('SELECT',d) end \
for _,t in ipairs(l) do f=t==x \
if not (f or q[t]) and string.sub(t,1,1)=='t' then q[t]=1 \
s=type(redis.pcall('ZSCORE','rescind:tag:'..string.sub(t,2),k))=='string' end \
if f or s then break end end \
if d~='' then c('SELECT',0) end a=a+32 until f or s or #l<32 or a>(y=='M' and 255 or y=='m' and 1023 or 16383) \
if not (s or f or y=='M') and (l.err or #l==32) then s=y=='m' or type(redis.pcall('PUBLISH','rescind:proxies',\
'*5'..string.sub(string.gsub(ARGV[2],'undone','unsure',1),3)..#k..'\\r\\n'..k..'\\r\\n$'..(#x-1)..'\\r\\n'..string.sub(x,2)..'\\r\\n'))\
~='number' end else ", "end ";
            $($labels)*
        )
    };
}

/// What nearly all fills are sent as: of one key, by a command that is done unless it fails, without labels to be given. Redis
/// takes longer to hash the text of a script than to run it, so this one says no more than it must. Errors about rights it
/// leaves as they are, for [`refusal`](super::trouble::refusal); on which of its lines they came up tells whether the command has run.
///
/// `ARGV`: how many words about epochs; the key; the message that it was undone; where it is asked whether another proxy has
/// gone, how many tags and how many channels; the client's database, if it is not 0; for each epoch its name and what to find
/// there; the epochs of the tags, one of which must be there, and the channels, on one of which nobody must listen, for the
/// fill to be stale on their account; the command.
macro_rules! short {
    ($fixed:literal, $first:literal; db: $begun:expr, $done:expr; $others:expr, $end:literal) => {
        concat!(
            "local c,n,s,r=redis.call,ARGV[1]+",
            $fixed,
            " ",
            $begun,
            "for i=",
            $first,
            ",n,2 do r=c('GET',ARGV[i])s=s or r and r~=ARGV[i+1]end ",
            $others,
            $done,
            "r=redis.pcall(unpack(ARGV,",
            $end,
            "+1))if s and(type(r)~='table'or r.ok)then\n\
c('UNLINK',ARGV[2])redis.pcall('PUBLISH','rescind:proxies',ARGV[3])end return r"
        )
    };
}

/// With the question whether another proxy has gone.
macro_rules! asking {
    ($($rest:tt)*) => {
        short!($($rest)*
            "local m=n+ARGV[4]local l=m+ARGV[5]if c('EXISTS',unpack(ARGV,n+1,m))>0 then \
r=c('PUBSUB','NUMSUB',unpack(ARGV,m+1,l))for i=2,#r,2 do s=s or r[i]<1 end end ", "l")
    };
}

/// All of these: without and with that question, each for database 0 and for others.
const SHORTS: [&str; 4] = [
    short!("3", "4"; db: "", ""; "", "n"),
    short!("4", "5"; db: "c('SELECT',0)", "c('SELECT',ARGV[4])"; "", "n"),
    asking!("5", "6"; db: "", "";),
    asking!("6", "7"; db: "c('SELECT',0)", "c('SELECT',ARGV[6])";),
];
// SHA-1 works on 64 bytes at a time and adds nine to the text.
const _: () = assert!(SHORTS[0].len() + 9 <= 4 * 64 && SHORTS[1].len() + 9 <= 5 * 64);

/// By these Redis knows them once it has run them.
static NAMES: LazyLock<[String; 4]> =
    LazyLock::new(|| SHORTS.map(|text| sha1_smol::Sha1::from(text).digest().to_string()));

/// One of the short scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Short(u8);

impl Short {
    fn new(asks: bool, in_db: bool) -> Self {
        Self(2 * u8::from(asks) + u8::from(in_db))
    }

    /// A bit that no other one has.
    pub fn bit(self) -> u8 {
        1 << self.0
    }

    fn text(self) -> &'static str {
        SHORTS[usize::from(self.0)]
    }

    fn name(self) -> &'static str {
        &NAMES[usize::from(self.0)]
    }

    /// The same request with the text of the script in place of its name, by which Redis does not know it.
    pub fn spelled_out(self, named: &[u8]) -> BytesMut {
        let mut name = BytesMut::new();
        [b"EVALSHA", self.name().as_bytes()].iter().for_each(|word| encode::bulk(&mut name, word));
        let words = memchr::memchr(b'\n', named).map_or(0, |end| end + 1);
        let mut out = BytesMut::from(&named[..words]);
        [b"EVAL", self.text().as_bytes()].iter().for_each(|word| encode::bulk(&mut out, word));
        out.extend_from_slice(&named[words + name.len()..]);
        out
    }
}

/// Labels the keys that the command writes, in the same step. The labels: how many sets, how many keys, how many messages
/// about them (one for each key, or none; nothing is done if they may not be told any more); these. A label is given before the command runs, since a client that may not do
/// that must not write either, and gets its key's expiry afterwards, or is taken back.
macro_rules! labelling {
    ($script:ident) => {
        $script!(
            labels: concat!(
                "local f=n+3 local g=f+ARGV[n+1] local h=g+ARGV[n+2] local m=ARGV[n+3]~='0' \
if m and not redis.acl_check_cmd('PUBLISH','rescind:labels','') then \
return redis.error_reply('NOPERM this user has no permissions to access one of the channels used as arguments') end \
n=h+ARGV[n+3] local a={} \
local function undo() for _,l in ipairs(a) do redis.pcall('ZREM',l[1],l[2]) end end \
for i=f+1,g do for j=g+1,h do local z=redis.pcall('ZADD',ARGV[i],'NX','inf',ARGV[j]) \
if z==1 then a[#a+1]={ARGV[i],ARGV[j]} \
elseif z~=0 then undo() ",
                reworded!("z.err", "'zadd'"),
                "return z end end end "
            ),
            "for j=g+1,h do local k=ARGV[j] local e=redis.pcall('PEXPIRETIME',k) \
if type(e)~='number' or e==-1 then e='inf' end \
for i=f+1,g do if e==-2 then redis.pcall('ZREM',ARGV[i],k) else redis.pcall('ZADD',ARGV[i],'XX',e,k) end end \
if m and e~=-2 then redis.pcall('PUBLISH','rescind:labels',ARGV[j+h-g]) end end ",
            "undo() "
        )
    };
}

const SCRIPT: &str = plain!(labels: "", "", "");
const FULL: &str = full!(labels: "", "", "");
const LABELLING: &str = labelling!(plain);
const FULL_LABELLING: &str = labelling!(full);

/// Takes labels away and tells of it, in one step, so that what is told of labels is told in the order in which they come and
/// go; all or none of them, so each is first asked to give up what it does not have. `ARGV`: the key, the message, the sets.
/// Answers how many there were; a key that is gone has none, though its labels may still be there.
pub const UNLABELLING: &str = concat!(
    "if not redis.acl_check_cmd('PUBLISH','rescind:labels','') then \
return redis.error_reply('NOPERM this user has no permissions to access one of the channels used as arguments') end \
local n=0 for _,k in ipairs({'\\0rescind:none',ARGV[1]}) do for i=3,#ARGV do local r=redis.pcall('ZREM',ARGV[i],k) \
if type(r)~='number' then ",
    reworded!("r.err", "'zrem'"),
    "return r end n=n+r end end redis.pcall('PUBLISH','rescind:labels',ARGV[2]) \
if redis.pcall('EXISTS',ARGV[1])==0 then n=0 end return n"
);

/// Asks whether the client's user may do all that [`SCRIPT`] does besides the command: an error says no, and so does 0; else it
/// is the sum of 1, [`TELLS`], [`SEES`] and [`CALLS`]. It writes nothing, so that it is answered also while writes are paused.
const PROBE: &str = "\
redis.call('SELECT',0) redis.call('GET','rescind:epoch:') redis.call('PUBSUB','NUMSUB','rescind:proxy:') \
if not (redis.acl_check_cmd('UNLINK','rescind:epoch:') and redis.acl_check_cmd('EVAL','','0')) then return 0 end \
return 1+(redis.acl_check_cmd('PUBLISH','rescind:labels','') and 2 or 0)\
+(redis.acl_check_cmd('LRANGE','rescind:recent','0','0') and redis.acl_check_cmd('ZSCORE','rescind:tag:','') and 4 or 0)\
+(select(2,pcall(redis.acl_check_cmd,'EVALSHA','','0'))==true and 8 or 0)";
/// The user may tell of labels.
pub const TELLS: i64 = 2;
/// The user may see what was invalidated lately, and who has labels.
pub const SEES: i64 = 4;

/// The user may call scripts by their names.
pub const CALLS: i64 = 8;

/// What has to hold for a key that is written not to be stale.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The key.
    pub key: Box<[u8]>,
    /// What.
    pub what: What,
}

/// What has to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Nothing: the value is known to be stale.
    Never,
    /// The epoch of this tag is this one, or absent. Empty: it is absent.
    Epoch(Box<[u8]>, Box<[u8]>),
    /// Somebody listens on this channel, or this tag has not been invalidated lately.
    Listener(Box<[u8]>, Box<[u8]>),
    /// The key has no label that was invalidated since that mark, as [`RECENT`] has it.
    Unlabelled {
        /// The mark. Empty: there was none.
        since: Box<[u8]>,
        /// How much stands in front of it, as far as the feed has shown.
        entries: usize,
        /// What counts if Redis does not know it any more.
        unsure: Unsure,
    },
}

impl What {
    /// That the tag has not been invalidated since then.
    pub fn expected(tag: &[u8], expected: Expected) -> Self {
        match expected {
            Expected::Stale => What::Never,
            Expected::Epoch(id) => What::Epoch(tag.into(), id),
            Expected::NoEpoch => What::Epoch(tag.into(), Box::default()),
        }
    }
}

/// What counts where nobody knows better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsure {
    /// The value is stale: at worst it has to be computed once more.
    Stale,
    /// Whoever wrote it looks once more, by what the feed has shown up to then.
    Asked,
    /// It is not: the key need be no cached value, and must not be lost.
    Fresh,
}

/// The most words of a command and of all that goes with it that Lua unpacks.
const MOST_WORDS: usize = 4000;

/// How many keys one script looks for among what was invalidated lately.
const MOST_SEEN: usize = 64;

/// How many of the checks take the right to see what was invalidated lately.
pub fn unlabelled(checks: &[Check]) -> usize {
    checks.iter().filter(|check| matches!(check.what, What::Unlabelled { .. })).count()
}

/// Whether Redis can look at all this in one step without keeping everybody waiting.
pub fn fits_in_a_step(checks: &[Check]) -> bool {
    unlabelled(checks) <= MOST_SEEN
}

/// Whether a request of this length can be sent as a script, with so many checks.
pub fn fits(args: usize, checks: usize) -> bool {
    args + 3 * checks < MOST_WORDS
}

/// Labels that a script is to give.
#[derive(Clone, Debug, Default)]
pub struct Labelling<'a> {
    /// The labels.
    pub tags: &'a [Tag],
    /// The keys that get them.
    pub keys: Vec<&'a [u8]>,
    /// What is told of them in the same step, for each of the keys; or nothing.
    pub news: Vec<BytesMut>,
}

/// What a command is to be wrapped in.
#[derive(Debug)]
pub struct Wrapping<'a> {
    /// The client's database.
    pub db: u32,
    /// This proxy.
    pub proxy: &'a [u8],
    /// When the command counts as done.
    pub condition: FireCondition,
    /// What has to hold for what it writes.
    pub checks: &'a [Check],
    /// Labels for what it writes.
    pub labels: Labelling<'a>,
}

impl Wrapping<'_> {
    /// The short script that can do it, if there is one.
    pub fn short(&self) -> Option<Short> {
        let first = self.checks.first()?;
        let is_simple = |check: &Check| {
            check.key == first.key && matches!(check.what, What::Epoch(..) | What::Listener(..))
        };
        let fits = self.condition == FireCondition::NoError
            && self.labels.tags.is_empty()
            && self.checks.iter().all(is_simple);
        let asks = self.checks.iter().any(|check| matches!(check.what, What::Listener(..)));
        fits.then(|| Short::new(asks, self.db != 0))
    }

    /// Appends the request that runs `args` for the client in that script, called by its name or spelled out. If it is
    /// refused, [`refusal`](super::trouble::refusal) words it. Answers where `args` begin.
    pub fn wrap_shortly(&self, script: Short, by_name: bool, out: &mut BytesMut, args: Args<'_>) -> usize {
        let Some(first) = self.checks.first() else { return 0 };
        let (mut epochs, mut tags, mut channels) = (SmallVec::<[_; 8]>::new(), vec![], vec![]);
        for check in self.checks {
            match &check.what {
                What::Epoch(tag, id) => epochs.push((tag, id)),
                What::Listener(channel, tag) => {
                    // Each with each.
                    if !tags.contains(&tag) {
                        tags.push(tag);
                    }
                    if !channels.contains(&channel) {
                        channels.push(channel);
                    }
                }
                What::Never | What::Unlabelled { .. } => {}
            }
        }
        let db = database(self.db);
        let asks = !tags.is_empty();
        let fixed = 3 + 2 * usize::from(asks) + usize::from(!db.is_empty());
        encode::array(out, 3 + fixed + 2 * epochs.len() + tags.len() + channels.len() + args.len());
        let words = if by_name { ["EVALSHA", script.name()] } else { ["EVAL", script.text()] };
        words.iter().for_each(|word| encode::bulk(out, word.as_bytes()));
        encode::bulk(out, b"0");
        encode::bulk(out, (2 * epochs.len()).to_string().as_bytes());
        encode::bulk(out, &first.key);
        let mut undone = message(self.proxy, &db);
        encode::bulk(&mut undone, &first.key);
        encode::bulk(out, &undone);
        if asks {
            encode::bulk(out, tags.len().to_string().as_bytes());
            encode::bulk(out, channels.len().to_string().as_bytes());
        }
        if !db.is_empty() {
            encode::bulk(out, db.as_bytes());
        }
        for (tag, id) in epochs {
            encode_epoch(out, tag);
            encode::bulk(out, id);
        }
        tags.iter().for_each(|tag| encode_epoch(out, tag));
        channels.iter().for_each(|channel| encode::bulk(out, channel));
        let begin = out.len();
        args.iter().for_each(|arg| encode::bulk(out, arg));
        begin
    }

    /// Appends the request that runs `args` for the client. Answers where `args` begin.
    pub fn wrap(&self, out: &mut BytesMut, args: Args<'_>) -> usize {
        let Self { checks, labels, .. } = self;
        let has_labels = !labels.tags.is_empty();
        let labelling =
            if has_labels { 3 + labels.tags.len() + labels.keys.len() + labels.news.len() } else { 0 };
        encode::array(out, 7 + 3 * checks.len() + labelling + args.len());
        encode::bulk(out, b"EVAL");
        let is_full = |check: &Check| matches!(check.what, What::Listener(..) | What::Unlabelled { .. });
        let full = checks.iter().any(is_full);
        let script = match (full, has_labels) {
            (false, false) => SCRIPT,
            (true, false) => FULL,
            (false, true) => LABELLING,
            (true, true) => FULL_LABELLING,
        };
        encode::bulk(out, script.as_bytes());
        encode::bulk(out, b"0");
        let db = database(self.db);
        encode::bulk(out, db.as_bytes());
        let mut undone = message(self.proxy, &db);
        undone.extend_from_slice(b"$");
        encode::bulk(out, &undone);
        encode::bulk(
            out,
            match self.condition {
                FireCondition::NotNil => b"n",
                FireCondition::NotZero => b"z",
                FireCondition::Nil => b"i",
                FireCondition::NoError | FireCondition::Ran => b"a",
            },
        );
        encode::bulk(out, checks.len().to_string().as_bytes());
        checks.iter().for_each(|check| check.encode(out));
        if has_labels {
            labels.encode(out);
        }
        let begin = out.len();
        args.iter().for_each(|arg| encode::bulk(out, arg));
        begin
    }
}

impl Check {
    /// Whether so much has been invalidated since that only what the feed has shown of the key's labels tells.
    pub fn is_beyond(&self) -> bool {
        let What::Unlabelled { entries, unsure, .. } = &self.what else { return false };
        *unsure == Unsure::Asked && *entries > MOST_SINCE
    }

    fn encode(&self, out: &mut BytesMut) {
        match &self.what {
            What::Never => [b"".as_slice(), b""].iter().for_each(|word| encode::bulk(out, word)),
            What::Epoch(tag, id) => {
                encode_epoch(out, tag);
                encode::bulk(out, id);
            }
            What::Listener(channel, tag) => {
                encode::bulk(out, channel);
                encode::bulk(out, &epoch_key(tag));
            }
            What::Unlabelled { since, unsure, .. } => {
                encode::bulk(out, RECENT);
                let mut mark = Recent::Mark(since).encoded();
                mark[0] = match unsure {
                    Unsure::Stale => b'm',
                    Unsure::Asked => b'u',
                    Unsure::Fresh => b'M',
                };
                encode::bulk(out, &mark);
            }
        }
        encode::bulk(out, &self.key);
    }
}

impl Labelling<'_> {
    fn encode(&self, out: &mut BytesMut) {
        for count in [self.tags.len(), self.keys.len(), self.news.len()] {
            encode::bulk(out, count.to_string().as_bytes());
        }
        self.tags.iter().for_each(|tag| encode::bulk(out, &label_set(tag)));
        self.keys.iter().for_each(|key| encode::bulk(out, key));
        self.news.iter().for_each(|news| encode::bulk(out, news));
    }
}

/// A message that a fill was undone, up to its key: see `Message::Undone` in [`peers`](crate::peers).
fn message(proxy: &[u8], db: &str) -> BytesMut {
    let mut out = BytesMut::new();
    encode::array(&mut out, 4);
    [b"undone".as_slice(), proxy, db.as_bytes()].iter().for_each(|word| encode::bulk(&mut out, word));
    out
}

/// The name of a tag's epoch.
fn encode_epoch(out: &mut BytesMut, tag: &[u8]) {
    encode::header(out, b'$', (EPOCHS.len() + tag.len()) as i64);
    out.extend_from_slice(EPOCHS);
    out.extend_from_slice(tag);
    out.extend_from_slice(b"\r\n");
}

fn database(db: u32) -> String {
    if db == 0 { String::new() } else { db.to_string() }
}

/// The request that asks whether the client's user may be served by scripts.
pub fn probe() -> [&'static [u8]; 3] {
    [b"EVAL_RO", PROBE.as_bytes(), b"0"]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_come_up_behind_the_command_stands_on_a_line_of_its_own() {
        for text in SHORTS {
            let (before, behind) = text.split_once('\n').unwrap();
            assert!(before.contains("redis.pcall(unpack(ARGV") && behind.starts_with("c('UNLINK'"));
        }
        for text in [SCRIPT, FULL, LABELLING, FULL_LABELLING] {
            assert!(!text.contains('\n'));
        }
    }
}

//! A fill as a script: Redis runs the client's command and undoes it in the same step if it is stale.

use bytes::BytesMut;

use crate::command::FireCondition;
use crate::resp::{Args, encode};

/// What the names of the keys begin with that hold the latest invalidation of a tag.
pub const EPOCHS: &[u8] = b"rescind:epoch:";

/// The key that holds the latest invalidation of a tag.
pub fn epoch_key(tag: &[u8]) -> Vec<u8> {
    [EPOCHS, tag].concat()
}

/// Runs a command with the rights of its client, whose reply it gives, errors included. Short, since Redis hashes the whole
/// text each time.
///
/// `ARGV`: the client's database, or nothing if it is 0, where epochs are kept; the beginning of a message to this proxy; when
/// the command counts as done (`a` unless there is an error, `n` unless nil, `z` unless 0); the number of checks; three words
/// for each (what to look at, what to find there, the key); the command. What to look at: nothing, for what is known to be
/// stale; an epoch; or, with `$more`, a channel, on which somebody must listen if the epoch that stands beside it exists.
///
/// The proxy counts what it knows to be stale; of the rest the script tells it.
macro_rules! script {
    ($more:literal, $close:literal) => {
        concat!(
            "local d,n,u,t,c=ARGV[1],4+3*ARGV[4],{},{},redis.call \
if d~='' then c('SELECT',0) end \
for i=5,n,3 do local w,s,k=ARGV[i],true,ARGV[i+2] \
if w~='' then ",
            $more,
            "local e=c('GET',w) s=e and e~=ARGV[i+1] ",
            $close,
            "end \
if s then u[#u+1]=k if w~='' then t[#t+1]=k end end end \
if d~='' then c('SELECT',d) end \
local r,o=redis.pcall(unpack(ARGV,n+1)),ARGV[3] \
if type(r)=='table' and r.err then \
if string.find(r.err,'The user executing',1,true) then r.err='NOPERM this user has no permissions to '..\
(string.find(r.err,'access',1,true) and 'access one of the keys used as arguments' \
or \"run the '\"..string.lower(ARGV[n+1])..\"' command\") end \
elseif u[1] and (r or o=='a') and not (o=='z' and r==0) then c('UNLINK',unpack(u)) \
for _,k in ipairs(t) do redis.pcall('PUBLISH','rescind:proxies',ARGV[2]..#k..'\\r\\n'..k..'\\r\\n') end end \
return r"
        )
    };
}

const SCRIPT: &str = script!("", "");
/// With checks of listeners.
const SCRIPT_FOR_MANY: &str = script!(
    "if string.sub(w,1,14)=='rescind:proxy:' then \
s=c('EXISTS',ARGV[i+1])==1 and c('PUBSUB','NUMSUB',w)[2]==0 else ",
    "end "
);

/// Asks whether the client's user may do all that [`SCRIPT`] does besides the command: an error says no, and so does 0. It
/// writes nothing, so that it is answered also while writes are paused.
const PROBE: &str = "\
redis.call('SELECT',0) redis.call('GET','rescind:epoch:') redis.call('PUBSUB','NUMSUB','rescind:proxy:') \
return redis.acl_check_cmd('UNLINK','rescind:epoch:') and redis.acl_check_cmd('EVAL','','0') and 1 or 0";

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
}

/// The most words of a command and its checks that Lua unpacks.
const MOST_WORDS: usize = 4000;

/// Whether a request of this length can be sent as a script.
pub fn fits(args: usize, checks: usize) -> bool {
    args + 3 * checks < MOST_WORDS
}

/// Appends the request that runs `args` for a client in database `db`, with the checks.
pub fn wrap(
    out: &mut BytesMut,
    db: u32,
    proxy: &[u8],
    condition: FireCondition,
    checks: &[Check],
    args: Args<'_>,
) {
    encode::array(out, 7 + 3 * checks.len() + args.len());
    encode::bulk(out, b"EVAL");
    let many = checks.iter().any(|check| matches!(check.what, What::Listener(..)));
    encode::bulk(out, if many { SCRIPT_FOR_MANY } else { SCRIPT }.as_bytes());
    encode::bulk(out, b"0");
    let db = database(db);
    encode::bulk(out, db.as_bytes());
    encode::bulk(out, &message(proxy, &db));
    encode::bulk(
        out,
        match condition {
            FireCondition::NotNil => b"n",
            FireCondition::NotZero => b"z",
            FireCondition::NoError | FireCondition::Nil => b"a",
        },
    );
    encode::bulk(out, checks.len().to_string().as_bytes());
    for check in checks {
        match &check.what {
            What::Never => [b"".as_slice(), b""].iter().for_each(|word| encode::bulk(out, word)),
            What::Epoch(tag, id) => {
                encode::header(out, b'$', (EPOCHS.len() + tag.len()) as i64);
                out.extend_from_slice(EPOCHS);
                out.extend_from_slice(tag);
                out.extend_from_slice(b"\r\n");
                encode::bulk(out, id);
            }
            What::Listener(channel, tag) => {
                encode::bulk(out, channel);
                encode::bulk(out, &epoch_key(tag));
            }
        }
        encode::bulk(out, &check.key);
    }
    args.iter().for_each(|arg| encode::bulk(out, arg));
}

/// A message that a fill was undone, up to the length of its key: see `Message::Undone` in [`peers`](crate::peers).
fn message(proxy: &[u8], db: &str) -> BytesMut {
    let mut out = BytesMut::new();
    encode::array(&mut out, 4);
    [b"undone".as_slice(), proxy, db.as_bytes()].iter().for_each(|word| encode::bulk(&mut out, word));
    out.extend_from_slice(b"$");
    out
}

fn database(db: u32) -> String {
    if db == 0 { String::new() } else { db.to_string() }
}

/// The request that asks whether the client's user may be served by scripts.
pub fn probe() -> [&'static [u8]; 3] {
    [b"EVAL_RO", PROBE.as_bytes(), b"0"]
}

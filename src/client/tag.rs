//! The commands that the proxy adds.
//!
//! Whether a client may use a tag is Redis's to judge: each command first asks something of the key
//! `rescind:tag:<tag>` over the client's own connection, and passes an error on as it is.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;

use super::labels::{give, make_one_good, tell_ahead, tell_coming, undo};
use super::rewrite::{NO_KEY, encoded};
use super::{Client, fill, with};
use crate::accounting::{Account, Firing, Queued, TriggerLabel};
use crate::command::{EMPTY_TAG, FireCondition, Kind, TagCommand};
use crate::doubt::Scope;
use crate::explain;
use crate::fanout::{Cause, Order};
use crate::index::LabelState;
use crate::journal::Wanted;
use crate::lease::script;
use crate::news::{LABEL_SETS, Labels, News, Verb, label_set};
use crate::resp::request::number;
use crate::resp::{Args, Head, OwnedArgs, encode};
use crate::rules::spec::OnInvalidate;
use crate::rules::{Tag, unique};
use crate::upstream::{Key, Pending, Special};

/// An error reply, with or without its `-` and CRLF: the client gets it.
pub(super) struct Refusal(Vec<u8>);

impl Refusal {
    /// As it goes into an error reply.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0).trim_start_matches('-').trim_end().to_owned()
    }

    /// Redis, or a rule of the protocol, says that it may not be; otherwise there was no answer.
    fn is_of_redis(&self) -> bool {
        [b"-NOPERM".as_slice(), b"-NOAUTH", b"-WRONGTYPE"].iter().any(|word| self.0.starts_with(word))
    }
}

impl From<&str> for Refusal {
    fn from(text: &str) -> Self {
        Refusal(format!("-{text}\r\n").into_bytes())
    }
}

/// What a command comes to.
pub(super) type Answer<T> = Result<T, Refusal>;

/// Answers one command.
pub(super) async fn run(client: &mut Client, command: TagCommand, args: OwnedArgs) {
    let started = client.context.nanos();
    let commands = Rc::clone(&client.context);
    let commands = commands.commands.borrow().clone();
    let Some(row) = commands.find(args.as_args()).filter(|row| matches!(row.kind, Kind::Tag(_))) else {
        // What TAG.NEXT made of a plain command.
        answer(client, command, args.as_args()).await;
        return;
    };
    let (in_multi, is_confined) = {
        let session = client.outbox.session.borrow();
        (session.in_multi(), session.is_confined())
    };
    let refused = if !row.arity_ok(args.as_args().len()) {
        refuse(client, in_multi, &format!("ERR wrong number of arguments for '{}' command", row.name));
        true
    } else if is_confined {
        // Redis would name what it is asked instead.
        refuse(client, in_multi, &confined(&row.name));
        true
    } else if in_multi && !matches!(command, TagCommand::With | TagCommand::Next) {
        refuse(client, in_multi, &format!("ERR '{}' is not allowed inside MULTI", row.name));
        true
    } else {
        answer(client, command, args.as_args()).await
    };
    // It may have waited for another thread.
    client.context.tick();
    client.context.command_done(Some(row.metric), started, refused);
}

/// What Redis says of a command, in RESP2, to a client that has subscribed.
fn confined(name: &str) -> String {
    format!(
        "ERR Can't execute '{name}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this \
         context"
    )
}

/// Whether it was refused.
async fn answer(client: &mut Client, command: TagCommand, args: Args<'_>) -> bool {
    let result = match command {
        TagCommand::With => with::run(client, args).await,
        TagCommand::Next => next(client, args).await,
        TagCommand::Add => add(client, args).await,
        TagCommand::Rem => rem(client, args).await,
        TagCommand::Invalidate => invalidate(client, args).await,
        TagCommand::Keys => keys(client, args).await,
        TagCommand::Of => of(client, args).await,
        TagCommand::Explain => explain(client, args).await,
        TagCommand::Log => log(client, args).await,
        TagCommand::Info => info(client).await,
    };
    let refused = result.is_err();
    if let Err(refusal) = result {
        let in_multi = client.outbox.session.borrow().in_multi();
        refuse(client, in_multi, &refusal.text());
    }
    refused
}

/// Answers with an error; inside MULTI the transaction is aborted, as Redis does with what it cannot queue.
pub(super) fn refuse(client: &mut Client, in_multi: bool, text: &str) {
    if !in_multi {
        client.outbox.with_buffer(|out| encode::error(out, text));
        return;
    }
    // Redis does not know this one, so it refuses it and remembers to abort.
    let bad: OwnedArgs = ["RESCIND.ABORT"].into_iter().collect();
    let pending = pending_of(client, Some(text));
    client.conn().send(&encoded(bad.as_args()), Some(pending));
}

pub(super) fn pending_of(client: &Client, instead: Option<&str>) -> Pending {
    Pending {
        client: Rc::clone(&client.outbox),
        metric: None,
        started: client.context.nanos(),
        account: Account::Nothing,
        special: Some(Box::new(Special {
            silent: client.outbox.is_muted(),
            capture: instead.is_none(),
            instead: instead.map(Into::into),
            ..Special::default()
        })),
    }
}

/// Asks Redis as the client, and keeps the reply.
pub(super) async fn ask(client: &mut Client, args: &[&[u8]]) -> Answer<Reply> {
    let db = client.outbox.session.borrow().current_db();
    ask_in(client, db, args).await
}

/// Likewise, in any database.
pub(super) async fn ask_in(client: &mut Client, db: u32, args: &[&[u8]]) -> Answer<Reply> {
    let key = client.key();
    let is_asked_elsewhere = client.outbox.session.borrow().is_asked_elsewhere();
    let conn = match is_asked_elsewhere || db != key.db {
        true => client.pool.shared(&Key { db, label: None, ..key }),
        false => client.conn(),
    };
    let mut request = BytesMut::new();
    encode::request(&mut request, args);
    conn.send(&request, Some(pending_of(client, None)));
    let verdict = client.next_verdict().await;
    let reply = client.outbox.take_captured().to_vec();
    match verdict {
        Some(verdict) if !verdict.error => Ok(Reply(verdict.head)),
        Some(_) if reply.first() == Some(&b'-') => Err(Refusal(reply)),
        _ => Err("ERR the connection was lost".into()),
    }
}

/// Keys that are dealt with before other clients are served.
const CHUNK: usize = 4096;

/// How long Redis may take to say which keys exist that TAG.EXPLAIN names.
const TOLD: Duration = Duration::from_secs(1);

/// Labels that one command gives or takes away.
const MOST_LABELS: usize = 10_000;

/// What Redis answered.
pub(super) struct Reply(Head<'static>);

impl Reply {
    /// Whether it is this number.
    pub fn is(&self, number: i64) -> bool {
        self.0 == Head::Int(number)
    }

    /// Whether it says that there is nothing.
    pub fn is_nil(&self) -> bool {
        self.0 == Head::Null
    }
}

/// May the client write these tags? Removing a member that cannot be there asks without changing anything.
pub(super) async fn may_write(client: &mut Client, tags: &[Tag]) -> Answer<()> {
    for tag in tags {
        ask(client, &[b"ZREM", &label_set(tag), NO_KEY]).await?;
    }
    Ok(())
}

/// May the client read these tags? Without any: tags at all? Not asked by EXISTS, which Redis also allows to who may only
/// write.
async fn may_read(client: &mut Client, tags: &[Tag]) -> Answer<()> {
    if tags.is_empty() {
        ask(client, &[b"ZSCORE", LABEL_SETS, b""]).await?;
    }
    for tag in tags {
        ask(client, &[b"ZSCORE", &label_set(tag), b""]).await?;
    }
    Ok(())
}

/// As [`tags_of`], of labels that are given or taken away.
pub(super) fn labels_of<'a>(args: impl Iterator<Item = &'a [u8]>) -> Answer<Vec<Tag>> {
    let tags = tags_of(args)?;
    if tags.len() > MOST_LABELS { Err("ERR too many tags".into()) } else { Ok(tags) }
}

fn tags_of<'a>(args: impl Iterator<Item = &'a [u8]>) -> Answer<Vec<Tag>> {
    let mut tags: Vec<Tag> = vec![];
    for arg in args {
        if arg.is_empty() {
            return Err(EMPTY_TAG.into());
        }
        tags.push(arg.into());
    }
    unique(&mut tags);
    Ok(tags)
}

async fn next(client: &mut Client, args: Args<'_>) -> Answer<()> {
    let tags = labels_of(args.iter().skip(1))?;
    client.context.process.use_labels();
    client.next.extend(tags.iter().cloned());
    unique(&mut client.next);
    if client.next.len() > MOST_LABELS {
        client.next.clear();
        return Err("ERR too many tags".into());
    }
    if let Err(refusal) = may_write(client, &tags).await {
        // What follows in the same pipeline must not go without its labels: it is labelled, or refused likewise. Who has been
        // told that he has no right to it goes on without.
        let in_multi = client.outbox.session.borrow().in_multi();
        if in_multi || (refusal.is_of_redis() && !client.input.has_partial()) {
            client.next.retain(|tag| !tags.contains(tag));
        }
        return Err(refusal);
    }
    let in_multi = client.outbox.session.borrow().in_multi();
    if in_multi {
        // Queued, UNWATCH does nothing and answers OK, as TAG.NEXT is to.
        let unwatch: OwnedArgs = ["UNWATCH"].into_iter().collect();
        client.outbox.queued.borrow_mut().push(Queued::default());
        let conn = client.conn();
        let mut pending = pending_of(client, None);
        pending.special.iter_mut().for_each(|special| special.capture = false);
        conn.send(&encoded(unwatch.as_args()), Some(pending));
    } else {
        client.outbox.with_buffer(|out| encode::simple(out, "OK"));
    }
    Ok(())
}

/// Waits until the index knows the labels that the key was given a moment ago, here or through another proxy.
async fn learn(client: &mut Client, key: &[u8]) {
    let (process, db) = (&client.context.process, client.outbox.session.borrow().current_db());
    let others = process.labels.others_may_give();
    if others || process.index.expects_labels(db, key, client.context.moment()) {
        process.fanout.ask(|reply| Order::Learn(vec![(db, key.into())], reply)).await;
    }
}

async fn add(client: &mut Client, args: Args<'_>) -> Answer<()> {
    let key = args.get(1).unwrap_or_default();
    let tags = labels_of(args.iter().skip(2))?;
    may_write(client, &tags).await?;
    client.context.process.use_labels();
    learn(client, key).await;
    let mut added = 0;
    if !ask(client, &[b"EXISTS", key]).await?.is(0) {
        let db = client.outbox.session.borrow().current_db();
        let (mut labelled, new) = give(client, db, key, &tags, FireCondition::NoError).await?;
        added = new;
        let context = Rc::clone(&client.context);
        if let Err(refusal) = tell_coming(&context, std::iter::once(&mut labelled)).await {
            undo(&context, vec![labelled]);
            return Err(refusal);
        }
        make_one_good(&context, labelled).await;
        client.context.tick();
        // It may have been filled with a value from before the label's last invalidation.
        let checks = fill::checks_of_labels(&client.context, &client.outbox, db, key, &tags);
        if !checks.is_empty() {
            if !client.context.process.dry_run {
                client.context.undone(&fill::stale(&client.context, db, &checks));
            }
            client.context.process.fanout.ask(|reply| Order::Check(db, checks, reply)).await;
        }
    }
    client.outbox.with_buffer(|out| encode::int(out, added as i64));
    Ok(())
}

async fn rem(client: &mut Client, args: Args<'_>) -> Answer<()> {
    let key = args.get(1).unwrap_or_default();
    let tags = labels_of(args.iter().skip(2))?;
    learn(client, key).await;
    let process = Arc::clone(&client.context.process);
    let db = client.outbox.session.borrow().current_db();
    let taken = Labels::new(db, key, tags);
    let sets: Vec<Vec<u8>> = taken.tags.iter().map(|tag| label_set(tag)).collect();
    let hears = process.labels.are_heard();
    let conn = client.conn();
    client.until(|outbox| conn.knows_scripts(outbox).then_some(())).await;
    let removed = if hears && client.conn().takes_labels() && script::fits(sets.len() + 6, 0) {
        let news = News::payload(process.number, Verb::Taken, &taken);
        let mut request: Vec<&[u8]> = vec![b"EVAL", script::UNLABELLING.as_bytes(), b"0", key, &news];
        request.extend(sets.iter().map(Vec::as_slice));
        let Reply(Head::Int(removed)) = ask(client, &request).await? else {
            return Err("ERR the reply to a script is no number".into());
        };
        // The index follows the feed.
        process.fanout.ask(|reply| Order::Learn(vec![], reply)).await;
        if !process.labels.are_heard() {
            process.index.lock().unlabel(db, key, &taken.tags);
        }
        usize::try_from(removed).unwrap_or(0)
    } else {
        // All or none of them. Who could not be told would put them back.
        may_write(client, &taken.tags).await?;
        if process.labels.others_may_give() {
            tell_ahead(&client.context, vec![(Verb::Hello, Labels::new(0, b"", vec![]))]).await?;
        }
        let mut had = 0;
        for set in &sets {
            had += usize::from(ask(client, &[b"ZREM", set, key]).await?.is(1));
        }
        let is_gone = ask(client, &[b"EXISTS", key]).await.is_ok_and(|count| count.is(0));
        process.index.lock().unlabel(db, key, &taken.tags);
        process.fanout.ask(|reply| Order::Settle(vec![(Verb::Taken, taken.clone())], reply)).await;
        for (tag, set) in taken.tags.iter().zip(&sets) {
            // Given anew meanwhile. A label too many costs a deletion, one that is missing a stale key. Asked so that the right
            // to write suffices.
            let score = ask(client, &[b"ZADD", set, b"XX", b"INCR", b"0", key]).await;
            if !score.is_ok_and(|score| score.is_nil()) {
                process.index.lock().label(db, key, std::slice::from_ref(tag), LabelState::Settled);
            }
        }
        if is_gone { 0 } else { had }
    };
    client.outbox.with_buffer(|out| encode::int(out, removed as i64));
    Ok(())
}

async fn invalidate(client: &mut Client, args: Args<'_>) -> Answer<()> {
    let tags = tags_of(args.iter().skip(1))?;
    may_write(client, &tags).await?;
    let mut all = tags.clone();
    let rules = Arc::clone(client.context.matcher.borrow().rules());
    rules.cascade(&mut all);
    let what = || "TAG.INVALIDATE".to_owned();
    let wanted = Wanted { scope: Scope::Tags(all), rules: Some(rules.fingerprint()), what: what() };
    let noted = client.context.intend(wanted);
    let intent = noted.await.map_err(|error| Refusal::from(&*format!("ERR {error}")))?;
    let mut fired = vec![Firing::unconditional(TriggerLabel::Command, tags, rules, what())];
    fired[0].intents.push(intent);
    let cause = Cause::of(&client.who(), &fired).by(client.outbox.id);
    let done = client.context.fan_out(cause, fired);
    let keys = tokio::time::timeout(super::FANOUT_PATIENCE, done).await;
    let keys =
        keys.map_err(|_| Refusal::from("ERR the invalidation takes long; it goes on until it is done"))?;
    let keys = keys.ok_or("ERR the proxy is going down")?;
    client.outbox.with_buffer(|out| encode::int(out, keys as i64));
    Ok(())
}

async fn keys(client: &mut Client, args: Args<'_>) -> Answer<()> {
    let tags = tags_of(args.iter().skip(1).take(1))?;
    let most = match (args.get(2), args.get(3)) {
        (None, _) => usize::MAX,
        (Some(word), Some(count)) if args.len() == 4 && word.eq_ignore_ascii_case(b"count") => {
            let count = number(count).ok_or("ERR value is not an integer or out of range")?;
            usize::try_from(count).map_err(|_| "ERR COUNT should not be negative")?
        }
        _ => return Err("ERR syntax error".into()),
    };
    may_read(client, &tags).await?;
    let db = client.outbox.session.borrow().current_db();
    let tag = Tag::clone(&tags[0]);
    let found = client.context.process.fanout.ask(|reply| Order::Keys(db, tag, most, reply)).await;
    let found = found.unwrap_or_else(|| Ok(vec![]));
    let cannot = |error| Refusal::from(&*format!("ERR the keys cannot be looked at: {error}"));
    push_array(client, found.map_err(cannot)?).await;
    Ok(())
}

async fn of(client: &mut Client, args: Args<'_>) -> Answer<()> {
    let key = args.get(1).unwrap_or_default().to_vec();
    may_read(client, &[]).await.or_else(|refusal| no_permission(&refusal).then_some(()).ok_or(refusal))?;
    let db = client.outbox.session.borrow().current_db();
    let found =
        client.context.process.fanout.ask(|reply| Order::Tags(db, key, reply)).await.unwrap_or_default();
    may_read(client, &found).await?;
    push_array(client, found).await;
    Ok(())
}

/// A client that may read some tags only has no right to "tags at all".
fn no_permission(refusal: &Refusal) -> bool {
    refusal.0.starts_with(b"-NOPERM")
}

/// Other clients are served in between; nothing comes into the array.
async fn push_array<A: AsRef<[u8]>>(client: &Client, items: Vec<A>) {
    let mut reply = BytesMut::new();
    encode::array(&mut reply, items.len());
    for (number, item) in items.into_iter().enumerate() {
        encode::bulk(&mut reply, item.as_ref());
        if number % CHUNK == CHUNK - 1 {
            tokio::task::yield_now().await;
        }
    }
    client.outbox.with_buffer(|out| out.extend_from_slice(&reply));
}

async fn explain(client: &mut Client, args: Args<'_>) -> Answer<()> {
    may_read(client, &[]).await?;
    let (context, db) = (Rc::clone(&client.context), client.outbox.session.borrow().current_db());
    let (commands, process) = (context.commands.borrow().clone(), &context.process);
    let explain = |labels: &mut dyn FnMut(&[u8]) -> Vec<Tag>| {
        explain::explain(&commands, &mut context.matcher.borrow_mut(), db, args.tail(1), labels)
    };
    // First it shows which keys there are: only those that exist have labels.
    let mut keys = vec![];
    explain(&mut |key| {
        keys.push(key.to_vec());
        vec![]
    });
    // What was written and labelled before is to be in the index.
    process.fanout.ask(|reply| Order::Settle(vec![], reply)).await;
    let mut existence = Existence { client, is_told: true };
    if process.may_have_labels() {
        keys = existence.of(db, keys).await;
    }
    let keys: HashSet<Vec<u8>> = keys.into_iter().collect();
    let explained = explain(&mut |key| match keys.contains(key) {
        true => process.index.explicit_of(db, key),
        false => vec![],
    });
    let mut lines = explained.lines;
    if !explained.invalidated.is_empty() {
        lines.extend(would_go(existence, &explained.invalidated).await);
    }
    push_array(client, lines).await;
    Ok(())
}

/// How many keys a fan-out of these tags would delete, or whose life it would shorten, and the first few. Other clients are
/// served in between.
async fn would_go(mut existence: Existence<'_>, tags: &[Tag]) -> Vec<String> {
    const SHOWN: usize = 20;
    let mut found = [BTreeSet::new(), BTreeSet::new()];
    let dependents = existence.dependents(tags).await;
    let Existence { client, is_told } = existence;
    for (number, (db, key)) in dependents.into_iter().enumerate() {
        if number % CHUNK == CHUNK - 1 {
            tokio::task::yield_now().await;
        }
        let mut matcher = client.context.matcher.borrow_mut();
        let family = matcher.classify(db, &key).family;
        let is_soft = matcher.rules().family(family).on_invalidate == OnInvalidate::Expire;
        found[usize::from(is_soft)].insert((db, key));
    }
    let [deleted, shortened] = found;
    let mut lines = vec![format!("would delete {} keys", deleted.len())];
    let named = |what: &str, (db, key): &(u32, Vec<u8>)| format!("{what}: db {db} {}", explain::shown(key));
    lines.extend(deleted.iter().take(SHOWN).map(|one| named("would delete", one)));
    if !shortened.is_empty() {
        lines.push(format!("would shorten the life of {} keys", shortened.len()));
        lines.extend(shortened.iter().take(SHOWN).map(|one| named("would shorten the life", one)));
    }
    if !is_told {
        lines.push("Redis does not say which of these exist".to_owned());
    }
    if !client.context.process.index.is_complete() {
        lines.push("the index is not complete: a fan-out would also look with SCAN".to_owned());
    }
    lines
}

/// Asks Redis which keys exist, as long as it answers.
struct Existence<'a> {
    client: &'a Client,
    is_told: bool,
}

impl Existence<'_> {
    /// The keys of these tags, as far as the index knows; perhaps some of them twice.
    async fn dependents(&mut self, tags: &[Tag]) -> Vec<(u32, Vec<u8>)> {
        let mut found = vec![];
        for tag in tags {
            let mut cursor = Some(usize::MAX);
            while let Some(at) = cursor {
                let mut by_db: BTreeMap<u32, Vec<Vec<u8>>> = BTreeMap::new();
                cursor = self.client.context.process.index.lock().collect(tag, at, 512, &mut |one| {
                    by_db.entry(one.db).or_default().push(one.key.to_vec());
                });
                for (db, keys) in by_db {
                    found.extend(self.of(db, keys).await.into_iter().map(|key| (db, key)));
                }
                tokio::task::yield_now().await;
            }
        }
        found
    }

    /// Those of the keys that exist.
    async fn of(&mut self, db: u32, keys: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        if keys.is_empty() || !self.is_told {
            return keys;
        }
        let asked = self.client.context.process.fanout.ask(|reply| Order::Exist(db, keys.clone(), reply));
        let told = tokio::time::timeout(TOLD, asked).await.ok().flatten();
        self.is_told = told.is_some();
        told.unwrap_or(keys)
    }
}

async fn log(client: &mut Client, args: Args<'_>) -> Answer<()> {
    let most = match args.get(1) {
        None => 10,
        Some(count) if args.len() == 2 => number(count)
            .and_then(|n| usize::try_from(n).ok())
            .ok_or("ERR value is not an integer or out of range")?,
        Some(_) => return Err("ERR syntax error".into()),
    };
    may_read(client, &[]).await?;
    let entries = client.context.process.log.latest(most);
    client.outbox.with_buffer(|out| {
        encode::array(out, entries.len());
        for entry in &entries {
            encode::array(out, 8);
            encode::int(out, entry.unix_ms as i64);
            encode::bulk(out, format!("{} {}", entry.cause.client, entry.cause.what).trim_end().as_bytes());
            encode::bulk(out, entry.trigger.as_bytes());
            encode::array(out, entry.tags.len());
            entry.tags.iter().for_each(|tag| encode::bulk(out, tag));
            encode::int(out, entry.keys as i64);
            encode::int(out, entry.duration.as_micros() as i64);
            encode::array(out, 2 * entry.families.len());
            for (family, keys) in &entry.families {
                encode::bulk(out, family.as_bytes());
                encode::int(out, *keys as i64);
            }
            let phases = entry.phases.named();
            encode::array(out, 2 * phases.len());
            for (phase, time) in phases {
                encode::bulk(out, phase.as_bytes());
                encode::int(out, time.as_micros() as i64);
            }
        }
    });
    Ok(())
}

async fn info(client: &mut Client) -> Answer<()> {
    ask(client, &[b"PING"]).await?;
    let process = &client.context.process;
    let (keys, tags, labels, bytes) = {
        let index = process.index.lock();
        (index.len(), index.tag_count(), index.explicit_count(), index.bytes())
    };
    let snapshot = process.metrics.snapshot();
    let feed = snapshot.feeds.first();
    let complete = process.index.is_complete();
    let reason = if complete { "" } else { process.index.reason() };
    let text = format!(
        "# Index\r\nindex_keys:{keys}\r\nindex_tags:{tags}\r\nindex_labels:{labels}\r\nindex_bytes:{bytes}\r\n\
         index_complete:{}\r\nindex_incomplete_reason:{reason}\r\n\r\n\
         # Feed\r\nfeed_connected:{}\r\nfeed_gaps:{}\r\nfeed_mode:{}\r\n\r\n\
         # Journal\r\n{}\r\n\
         # Proxy\r\nrescind_version:{}\r\nclients:{}\r\n",
        u8::from(complete),
        u8::from(feed.is_some_and(|feed| feed.connected)),
        feed.map_or(0, |feed| feed.gaps),
        if process.own_writes() { "own writes" } else { "keyspace events" },
        process.journal.describe(),
        env!("CARGO_PKG_VERSION"),
        snapshot.clients,
    );
    client.outbox.with_buffer(|out| encode::bulk(out, text.as_bytes()));
    Ok(())
}

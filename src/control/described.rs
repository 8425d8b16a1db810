//! Commands that the server has and the built-in table has not: those of modules and of newer versions.

use std::sync::Arc;

use redis_protocol::resp3::types::BytesFrame;

use super::Engine;
use super::wire::{Wire, array_of, bytes_of, int_of};
use crate::command::{Begin, Described, Find, KeyFlags, KeySpec};

/// Asks the server for its commands. Without the right to ask, unknown commands are forwarded all the same;
/// only their keys are not known.
pub(super) async fn learn_commands(engine: &Engine) {
    let asked = async {
        // In RESP3 the key specs are sets of maps, which the decoder does not take.
        let mut wire = Wire::connect_in(b"2", &engine.process.upstream, &engine.credentials).await?;
        wire.call(&["COMMAND"]).await
    };
    let described: Vec<Described> = match asked.await {
        Ok(frame) => items(frame).into_iter().filter_map(command).collect(),
        Err(error) => {
            tracing::info!(%error, "COMMAND is refused: the keys of modules' commands are not known");
            return;
        }
    };
    let mut commands = (*engine.knowledge.borrow().commands).clone();
    let added = commands.extend(&described);
    if added > 0 {
        tracing::info!(added, "learned commands from the server");
    }
    if commands.script_only(&described) || added > 0 {
        engine.knowledge.send_modify(|knowledge| knowledge.commands = Arc::new(commands));
    }
}

fn command(entry: BytesFrame) -> Option<Described> {
    let mut fields = items(entry).into_iter();
    let name = text(&fields.next()?)?;
    let arity = int_of(&fields.next()?)?;
    let flags = items(fields.next()?).iter().filter_map(text).collect();
    let (first, last, step) = (int_of(&fields.next()?)?, int_of(&fields.next()?)?, int_of(&fields.next()?)?);
    // Redis 7 goes on with ACL categories, tips, key specs and subcommands.
    let (specs, subcommands) = (fields.nth(2), fields.next());
    Some(Described {
        name,
        arity,
        flags,
        first,
        last,
        step,
        specs: specs.map(items).unwrap_or_default().iter().filter_map(key_spec).collect(),
        subcommands: subcommands.map(items).unwrap_or_default().into_iter().filter_map(command).collect(),
    })
}

fn key_spec(frame: &BytesFrame) -> Option<KeySpec> {
    let part = |of: &str| field(field(frame, of)?, "spec");
    let kind = |of: &str| text(field(field(frame, of)?, "type")?);
    let number = |of: &str, name: &str| int_of(field(part(of)?, name)?).map(|n| n as i32);
    let begin = match kind("begin_search")?.as_str() {
        "index" => Begin::Index(number("begin_search", "index")?),
        "keyword" => Begin::Keyword(
            text(field(part("begin_search")?, "keyword")?)?,
            number("begin_search", "startfrom")?,
        ),
        _ => Begin::Unknown,
    };
    let get = |name| number("find_keys", name);
    let find = match kind("find_keys")?.as_str() {
        "range" => Find::Range { last: get("lastkey")?, step: get("keystep")?, limit: get("limit")? },
        "keynum" => Find::KeyNum { index: get("keynumidx")?, first: get("firstkey")?, step: get("keystep")? },
        _ => Find::Unknown,
    };
    let flags: Vec<String> = items(field(frame, "flags")?.clone()).iter().filter_map(text).collect();
    Some(KeySpec { flags: KeyFlags::from_names(flags), begin, find })
}

/// The value behind `name` in a map.
fn field<'a>(map: &'a BytesFrame, name: &str) -> Option<&'a BytesFrame> {
    match map {
        BytesFrame::Map { data, .. } => data
            .iter()
            .find(|(key, _)| bytes_of(key).is_some_and(|k| **k == *name.as_bytes()))
            .map(|(_, v)| v),
        BytesFrame::Array { data, .. } => data
            .chunks_exact(2)
            .find(|pair| bytes_of(&pair[0]).is_some_and(|k| **k == *name.as_bytes()))
            .map(|pair| &pair[1]),
        _ => None,
    }
}

/// The elements of an array or set.
fn items(frame: BytesFrame) -> Vec<BytesFrame> {
    match frame {
        BytesFrame::Set { data, .. } => data.into_iter().collect(),
        other => array_of(other),
    }
}

fn text(frame: &BytesFrame) -> Option<String> {
    bytes_of(frame).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
}

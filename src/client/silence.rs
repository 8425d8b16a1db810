//! `CLIENT REPLY`: the proxy keeps replies back itself, if Redis lets the client ask for it.

use super::Client;
use super::tag::{ask, refuse};
use crate::resp::Args;
use crate::session::{Local, Route};

/// Asks Redis as the client for what changes nothing; then does as it is told.
pub(super) async fn run(client: &mut Client, args: Args<'_>) {
    let refusal = ask(client, &[b"CLIENT", b"REPLY", b"ON"]).await.err().map(|refusal| refusal.text());
    let mut session = client.outbox.session.borrow_mut();
    let route = match &refusal {
        None => session.client_reply(args),
        Some(text) => session.local_error(text.clone()),
    };
    let in_multi = session.in_multi();
    drop(session);
    let context = &client.context;
    let metric = context.commands.borrow().find(args).map(|command| command.metric);
    let failed = refusal.is_some() || matches!(route, Route::Local(Local::Error(_)));
    context.command_done(metric, context.nanos(), failed);
    match (refusal, route) {
        (Some(text), route) if in_multi => {
            client.outbox.set_muted(matches!(route, Route::Swallow));
            refuse(client, in_multi, &text);
            client.outbox.set_muted(false);
        }
        (_, Route::Local(local)) => _ = client.local(local),
        _ => {}
    }
}

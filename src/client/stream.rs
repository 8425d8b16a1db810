//! Requests that are too big to be kept: they pass through to a connection of the client's own as they arrive.

use super::forward::{Extra, NOAUTH};
use super::input::MOST_KEPT;
use super::request::Request;
use super::{Client, Pause, Step};
use crate::command::{Command, Kind};
use crate::resp::stream::Streamed;
use crate::resp::{RequestParser, encode};
use crate::session::Route;

/// Requests of at least this many bytes pass through; smaller ones are kept until they are whole.
const BIG: usize = 256 * 1024;

impl Client {
    /// The request that begins with `rest` has not arrived whole: a big one begins to pass through.
    pub(super) fn incomplete(&mut self, rest: &[u8]) -> Option<Pause> {
        if rest.len() > MOST_KEPT {
            return Some(Pause::End);
        }
        if self.input.parser.needed().max(rest.len()) < BIG || !self.may_pass(rest) {
            return None;
        }
        if self.awaits_resend() {
            return Some(Pause::Idle);
        }
        // Perhaps a dead one.
        self.unpin_if_free();
        if !self.outbox.session.borrow().has_standing() {
            match self.standing() {
                None => return Some(Pause::Standing),
                Some(Ok(true)) => {}
                Some(Ok(false)) => return self.break_off(NOAUTH),
                Some(Err(error)) => return self.break_off(error),
            }
        }
        if self.pinned.is_none() {
            if self.outbox.pending() > 0 {
                return Some(Pause::Idle);
            }
            if !self.pin() {
                self.no_connection();
                return Some(Pause::End);
            }
        }
        let conn = self.conn();
        if !conn.has_room(&self.outbox) {
            return Some(Pause::Room);
        }
        let stream = Streamed::begin(&self.input.parser, rest)?;
        conn.pass(rest);
        self.input.advance(rest.len());
        self.input.parser = RequestParser::default();
        self.passing = Some(stream);
        None
    }

    /// Whether the proxy need not see the request as a whole.
    fn may_pass(&self, rest: &[u8]) -> bool {
        let args = self.input.parser.args(rest, false);
        let commands = self.context.commands.borrow();
        let follows = |command: &Command| command.carries && self.context.process.may_have_labels();
        let plain = |command: &Command| command.kind == Kind::Plain && !follows(command);
        let plain = commands.find(args).is_some_and(plain);
        plain && self.next.is_empty() && !self.outbox.session.borrow().is_raw()
    }

    /// Passes on what of `bytes` belongs to the request that is passing through.
    pub(super) fn pass(&mut self, bytes: &[u8]) -> Option<Pause> {
        let mut stream = self.passing.take()?;
        if let Some(last) = self.last.take() {
            return self.passed(stream, &last);
        }
        let conn = self.conn();
        if !conn.is_alive() {
            return self.break_off("ERR the connection to Redis was lost");
        }
        if stream.error().is_some() {
            return self.broken(stream);
        }
        if !conn.has_room(&self.outbox) {
            self.passing = Some(stream);
            return Some(Pause::Room);
        }
        match stream.advance(bytes, &self.limits()) {
            Ok((used, false)) => {
                conn.pass(&bytes[..used]);
                self.input.advance(used);
                self.passing = Some(stream);
                None
            }
            Ok((used, true)) => {
                self.input.advance(used);
                self.passed(stream, &bytes[..used])
            }
            Err(_) => self.broken(stream),
        }
    }

    /// The client broke the protocol: it gets the error behind all earlier replies.
    fn broken(&mut self, stream: Streamed) -> Option<Pause> {
        let error = stream.error()?;
        if self.outbox.pending() > 0 {
            self.passing = Some(stream);
            return Some(Pause::Idle);
        }
        // Redis must not wait for the rest.
        self.conn().retire();
        self.break_off(error.text())
    }

    fn break_off(&mut self, error: impl AsRef<[u8]>) -> Option<Pause> {
        if self.outbox.session.borrow().takes_replies() {
            self.outbox.with_buffer(|out| encode::error(out, error));
            self.context.mark_dirty(&self.outbox);
        }
        Some(Pause::End)
    }

    /// The last bytes are here: only now it is known what the request reads, writes and fires.
    fn passed(&mut self, stream: Streamed, last: &[u8]) -> Option<Pause> {
        let context = std::rc::Rc::clone(&self.context);
        let commands = context.commands.borrow();
        let args = stream.args();
        let request = Request::new(&commands, args, Some(last));
        if let Some(Step::Again(pause) | Step::Then(pause)) = self.awaits_trust(request, true) {
            if matches!(pause, Pause::Doubt(_)) {
                self.passing = Some(stream);
                self.last = Some(last.to_vec());
            } else {
                // Redis must not wait for the rest.
                self.conn().retire();
            }
            return Some(pause);
        }
        match self.present().intent.clone() {
            None => {
                if let Some(wanted) = self.may_invalidate(&context, request) {
                    self.passing = Some(stream);
                    self.last = Some(last.to_vec());
                    return Some(Pause::Intent(vec![wanted]));
                }
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                // Redis must not wait for the rest.
                self.conn().retire();
                return self.break_off(format!("ERR {error}"));
            }
        }
        let route = self.outbox.session.borrow_mut().route(request.kind(), args, false);
        let Route::Forward(forward) = route else { return Some(Pause::End) };
        let extra = Extra { partial: true, ..Extra::default() };
        let step = self.forward(&context, request, forward, extra);
        self.end_present();
        match step {
            Step::Done => None,
            Step::Again(pause) | Step::Then(pause) => Some(pause),
        }
    }
}

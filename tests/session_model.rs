//! A session against a model of the connection that its requests travel on.
//!
//! The model runs the forwarded requests as Redis would; the session sees only the replies. Whatever the
//! connection holds, the session must know that it may not be shared, and must know it no longer than that.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeSet, VecDeque};
use std::sync::LazyLock;

use proptest::prelude::*;
use rescind::command::{Commands, Kind};
use rescind::resp::{Head, OwnedArgs};
use rescind::session::{Effect, Identity, LabelField, Local, Route, Session, SubscriptionKind};

static COMMANDS: LazyLock<Commands> = LazyLock::new(Commands::builtin);

const REQUESTS: [&str; 41] = [
    "GET k",
    "SET k v",
    "PING",
    "MULTI",
    "MULTI",
    "EXEC",
    "EXEC",
    "DISCARD",
    "WATCH k",
    "UNWATCH",
    "SUBSCRIBE a b",
    "SUBSCRIBE c",
    "SUBSCRIBE",
    "UNSUBSCRIBE a",
    "UNSUBSCRIBE",
    "PSUBSCRIBE p*",
    "PUNSUBSCRIBE",
    "PUNSUBSCRIBE p* q*",
    "SSUBSCRIBE s",
    "SUNSUBSCRIBE",
    "BLPOP k 0",
    "XREAD COUNT 1 STREAMS s 0",
    "WAIT 1 0",
    "AUTH joe right",
    "AUTH joe wrong",
    "HELLO",
    "HELLO 2",
    "HELLO 3 AUTH joe right",
    "HELLO 7",
    "SELECT 1",
    "SELECT 99",
    "SELECT x",
    "CLIENT TRACKING ON",
    "CLIENT SETNAME me",
    "CLIENT SETINFO LIB-NAME lib",
    "CLIENT SETINFO LIB-AGE 7",
    "CLIENT REPLY SKIP",
    "CLIENT REPLY OFF",
    "CLIENT REPLY ON",
    "CLIENT REPLY MAYBE",
    "RESET",
];

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The client sends this one of the requests.
    Send(usize),
    /// One reply arrives.
    Arrive,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![3 => (0..REQUESTS.len()).prop_map(Step::Send), 2 => Just(Step::Arrive)];
    prop::collection::vec(step, 1..60)
}

/// What Redis sends for one request.
#[derive(Debug, PartialEq)]
enum Sent {
    Ok,
    Error,
    /// One after the other: how many subscriptions there are then.
    Confirmations(SubscriptionKind, Vec<u32>),
}

/// A connection as Redis keeps it.
#[derive(Debug, Default, Clone)]
struct Connection {
    multi: Option<Vec<String>>,
    watching: bool,
    subscriptions: [BTreeSet<String>; 3],
    db: u32,
    resp3: bool,
    joe: bool,
    tracking: bool,
    name: bool,
    library: bool,
}

impl Connection {
    /// Whether it holds something that another client must not find.
    fn is_dirty(&self) -> bool {
        self.multi.is_some()
            || self.watching
            || self.tracking
            || self.name
            || self.subscriptions.iter().any(|names| !names.is_empty())
    }

    fn run(&mut self, request: &str) -> Sent {
        let words: Vec<&str> = request.split(' ').collect();
        let listening = self.subscriptions.iter().any(|names| !names.is_empty());
        if listening && !self.resp3 && !words[0].contains("SUBSCRIBE") && words[0] != "PING" {
            return Sent::Error;
        }
        match (&mut self.multi, words[0]) {
            (Some(_), "MULTI" | "WATCH") | (None, "EXEC" | "DISCARD") => return Sent::Error,
            (None, "MULTI") => self.multi = Some(vec![]),
            (Some(_), "DISCARD") => (self.multi, self.watching) = (None, false),
            (Some(queued), "EXEC") => {
                let queued = std::mem::take(queued);
                (self.multi, self.watching) = (None, false);
                // What they answer is in the array.
                queued.iter().for_each(|request| _ = self.run(request));
            }
            (Some(_), _) if request == "SUBSCRIBE" => return Sent::Error,
            (Some(queued), _) => queued.push(request.to_owned()),
            (None, _) => return self.outside_multi(request, &words),
        }
        Sent::Ok
    }

    fn outside_multi(&mut self, request: &str, words: &[&str]) -> Sent {
        match request {
            "WATCH k" => self.watching = true,
            "UNWATCH" => self.watching = false,
            "AUTH joe right" => self.joe = true,
            "HELLO 2" => self.resp3 = false,
            "HELLO 3 AUTH joe right" => (self.resp3, self.joe) = (true, true),
            "SELECT 1" => self.db = 1,
            "CLIENT TRACKING ON" => self.tracking = true,
            "CLIENT SETNAME me" => self.name = true,
            "CLIENT SETINFO LIB-NAME lib" => self.library = true,
            "CLIENT SETINFO LIB-AGE 7" => return Sent::Error,
            "AUTH joe wrong" | "HELLO 7" | "SELECT 99" | "SELECT x" | "SUBSCRIBE" => return Sent::Error,
            _ if words[0].contains("SUBSCRIBE") => return self.subscribe(words),
            _ => {}
        }
        Sent::Ok
    }

    fn subscribe(&mut self, words: &[&str]) -> Sent {
        let kind = match words[0].as_bytes()[0] {
            b'P' => SubscriptionKind::Pattern,
            b'S' if words[0].starts_with("SS") || words[0].starts_with("SUN") => SubscriptionKind::Shard,
            _ => SubscriptionKind::Channel,
        };
        let removes = words[0].contains("UNSUB");
        let mut names: Vec<String> = words[1..].iter().map(|name| (*name).to_owned()).collect();
        if names.is_empty() {
            names.extend(self.subscriptions[kind as usize].iter().cloned());
        }
        let mut totals = vec![];
        for name in &names {
            let list = &mut self.subscriptions[kind as usize];
            let _ = if removes { list.remove(name) } else { list.insert(name.clone()) };
            totals.push(self.total(kind));
        }
        if names.is_empty() {
            totals.push(self.total(kind));
        }
        Sent::Confirmations(kind, totals)
    }

    fn total(&self, kind: SubscriptionKind) -> u32 {
        let [channels, patterns, shards] = &self.subscriptions;
        let total =
            if kind == SubscriptionKind::Shard { shards.len() } else { channels.len() + patterns.len() };
        total as u32
    }
}

/// The session, the connection, and the replies between them.
#[derive(Default)]
struct World {
    session: Session,
    connection: Connection,
    replies: VecDeque<(Effect, Sent)>,
    /// A reply must be applied before the next request is looked at.
    sync: bool,
    /// A state command failed, or one ran inside EXEC: the session may know less than the connection holds,
    /// and must then never share it.
    blurred: bool,
    /// A state command was refused: the connection is never given to another client as it is.
    unknown: bool,
    off: bool,
    skip: bool,
}

impl World {
    fn send(&mut self, request: &str) {
        while self.sync && !self.replies.is_empty() {
            self.arrive();
        }
        self.sync = false;
        let owned: OwnedArgs = request.split(' ').collect();
        let args = owned.as_args();
        let command = COMMANDS.find(args).unwrap();
        let had_state = self.session.needs_own();
        let in_multi = self.session.in_multi();
        let silent = self.off || self.skip;
        match self.session.route(command.kind, args, command.blocks(args)) {
            Route::Forward(forward) => {
                assert_eq!(forward.silent, silent, "{request}");
                assert!(forward.own || !had_state, "{request} must go where the state is");
                assert!(forward.own || !self.session.needs_own(), "{request} must not bring state to others");
                assert!(!forward.queued || in_multi, "{request}");
                self.skip = false;
                self.sync = forward.sync;
                self.forwarded(request, command.kind, forward.queued, forward.effect);
            }
            Route::Local(Local::Reset { .. }) => {
                while !self.replies.is_empty() {
                    self.arrive();
                }
                self.session.reset();
                let session = std::mem::take(&mut self.session);
                let library = self.connection.library && !self.blurred;
                *self = World::default();
                if library {
                    // Redis remembers it.
                    (self.session, self.connection.library) = (session, true);
                }
            }
            route => {
                assert!(command.kind == Kind::ClientReply, "{request}: {route:?}");
                let route = if route == Route::Silence { self.session.client_reply(args) } else { route };
                self.client_reply(request, &route);
            }
        }
    }

    fn forwarded(&mut self, request: &str, kind: Kind, queued: bool, effect: Effect) {
        let was_in_multi = self.connection.multi.is_some();
        let sent = self.connection.run(request);
        if queued && was_in_multi {
            let plain =
                matches!(kind, Kind::Plain | Kind::Ping | Kind::Blocking | Kind::Wait | Kind::Unwatch);
            self.blurred |= !plain;
        }
        // Redis refused what the session took for done.
        self.blurred |= sent == Sent::Error && matches!(kind, Kind::Multi | Kind::Watch);
        self.blurred |= sent == Sent::Error && matches!(kind, Kind::ConnectionState);
        // Confirmations of what was queued come inside EXEC's reply.
        self.replies.push_back((effect, sent));
    }

    fn client_reply(&mut self, request: &str, route: &Route) {
        let silent = self.off || self.skip;
        match request {
            "CLIENT REPLY ON" => (self.off, self.skip) = (false, false),
            "CLIENT REPLY OFF" => (self.off, self.skip) = (true, false),
            "CLIENT REPLY SKIP" => self.skip = !self.off,
            _ => self.skip = false,
        }
        match request {
            "CLIENT REPLY ON" => assert_eq!(*route, Route::Local(Local::Ok)),
            "CLIENT REPLY MAYBE" if !silent => assert!(matches!(route, Route::Local(Local::Error(_)))),
            _ => assert_eq!(*route, Route::Swallow),
        }
    }

    fn arrive(&mut self) {
        let Some((effect, sent)) = self.replies.pop_front() else { return };
        let must = matches!(effect, Effect::Multi(_) | Effect::Hello { .. });
        let head = match sent {
            Sent::Error => Head::Error(b"ERR no"),
            Sent::Ok => Head::Simple(b"OK"),
            Sent::Confirmations(kind, totals) => {
                if let (Effect::Subscription { kind: waited, confirms }, false) = (&effect, self.blurred) {
                    let expected = confirms.unwrap_or_else(|| self.session.confirmations(kind));
                    assert_eq!((*waited, expected as usize), (kind, totals.len()));
                }
                totals.iter().for_each(|total| self.session.confirmed(kind, *total));
                Head::Array(3)
            }
        };
        let known = self.session.replied(effect, &head);
        assert_eq!(known, !(must && head.is_error()));
        self.unknown |= !known;
    }

    fn check(&self) {
        let session = &self.session;
        // While replies are on their way, a client stays on its connection whatever its session thinks.
        let waiting = !self.replies.is_empty();
        if self.connection.multi.is_some() && !waiting {
            assert!(session.in_multi() && !session.is_plain() && session.needs_own());
        }
        assert!(!session.is_plain() || (!self.off && !self.skip));
        if self.connection.is_dirty() && !waiting && !self.unknown {
            assert!(session.needs_own(), "{:?}", self.connection);
        }
        if waiting {
            return;
        }
        assert!(!session.is_blocked());
        if !self.blurred {
            let subscribed = self.connection.subscriptions.iter().any(|names| !names.is_empty());
            assert_eq!(session.needs_own(), self.connection.is_dirty());
            assert_eq!(session.is_listening(), subscribed);
            assert_eq!(session.has_subscriptions(), subscribed);
            assert_eq!(session.in_multi(), self.connection.multi.is_some());
            assert_eq!((session.db, session.resp == 3), (self.connection.db, self.connection.resp3));
            assert_eq!(!session.identity.is_anonymous(), self.connection.joe);
            let label = session.label.as_deref().cloned().unwrap_or_default();
            let says = (!label.name.is_empty(), !label.library.is_empty());
            assert_eq!(says, (self.connection.name, self.connection.library));
        }
    }
}

fn play(steps: &[Step]) {
    let mut world = World::default();
    for step in steps {
        match step {
            Step::Send(n) => world.send(REQUESTS[*n]),
            Step::Arrive => world.arrive(),
        }
        world.check();
    }
    while !world.replies.is_empty() {
        world.arrive();
        world.check();
    }
}

#[test]
fn a_second_multi_may_be_the_one_that_counts() {
    let named = |request: &str| REQUESTS.iter().position(|one| *one == request).unwrap();
    let send = |request| Step::Send(named(request));
    // The first one is refused, since the client listens; what follows ends that.
    let begin = ["PSUBSCRIBE p*", "MULTI", "PUNSUBSCRIBE", "SUBSCRIBE", "MULTI"].map(send);
    for arrived in 0..=5 {
        play(&[&begin[..], &vec![Step::Arrive; arrived], &[send("MULTI")]].concat());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn a_session_knows_what_its_connection_holds(steps in steps()) {
        play(&steps);
    }

    #[test]
    fn replies_out_of_nowhere_never_underflow(which in prop::collection::vec((0..9u8, any::<bool>()), 0..20)) {
        let mut session = Session::default();
        for (effect, fails) in which {
            let effect = match effect {
                0 => Effect::None,
                1 => Effect::Exec,
                2 => Effect::Unwatch,
                3 => Effect::Auth(Identity::Default),
                4 => Effect::Hello { resp: None, identity: None, name: None, partly: false },
                5 => Effect::Select(0),
                6 => Effect::Label(LabelField::Library, b"me".as_slice().into()),
                7 => Effect::Subscription { kind: SubscriptionKind::Shard, confirms: None },
                _ => Effect::Unblocked,
            };
            session.replied(effect, if fails { &Head::Error(b"ERR") } else { &Head::Simple(b"OK") });
            prop_assert!(!session.needs_own() && session.is_plain());
        }
    }

    #[test]
    fn sticky_until_reset(steps in steps(), sticky in 0..3usize) {
        let mut session = Session::default();
        let send = |session: &mut Session, request: &str| {
            let owned: OwnedArgs = request.split(' ').collect();
            let command = COMMANDS.find(owned.as_args()).unwrap();
            if let Route::Forward(forward) = session.route(command.kind, owned.as_args(), false) {
                session.replied(forward.effect, &Head::Simple(b"OK"));
            }
        };
        send(&mut session, ["CLIENT TRACKING ON", "MONITOR", "READONLY"][sticky]);
        for step in steps {
            if let Step::Send(n) = step {
                send(&mut session, REQUESTS[n]);
            }
            prop_assert!(session.needs_own() && !session.is_plain());
        }
        session.reset();
        prop_assert!(session.is_plain());
    }
}

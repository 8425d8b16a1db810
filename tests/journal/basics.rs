//! What is intended, done, seen and recent.

use std::time::Duration;

use rescind::config::Fsync;
use rescind::journal::{Journal, Options, Scope, Wanted};
use rescind::rules::Tag;

use crate::support::{crashed, files, flush, folder, intend, names, open, options, pending, run, tags};

#[test]
fn names_of_tags_hold_by_the_rules_that_named_them() {
    let folder = folder();
    let open = |rules| Journal::open(Options { rules, ..options(folder.path(), Fsync::Always) }).unwrap();
    let by = |rules, name: &str| Wanted { scope: tags(&[name]), rules: Some(rules), what: name.to_owned() };
    let (journal, _) = open(1);
    run(journal.intend(by(1, "a"))).unwrap();
    journal.follow_rules(2);
    assert_eq!(names(&journal.recent()), ["*"], "what is under way");
    // Some go by the old rules a moment longer.
    for wanted in [by(1, "b"), by(2, "c"), (tags(&["d"]), "d".to_owned()).into()] {
        run(journal.intend(wanted)).unwrap();
    }
    journal.close(true);
    let pending = |rules| {
        let (journal, recovered) = open(rules);
        let scopes: Vec<_> = recovered.pending.iter().map(|intent| names(&intent.scope).concat()).collect();
        journal.close(true);
        scopes
    };
    assert_eq!(pending(2), ["*", "*", "c", "d"]);
    assert_eq!(pending(2), ["*", "*", "c", "d"], "written anew");
    assert_eq!(pending(1), ["*", "*", "*", "*"]);
}

#[test]
fn what_is_not_done_is_pending_after_a_crash() {
    for fsync in [Fsync::Always, Fsync::EverySec, Fsync::Never] {
        let folder = folder();
        let (journal, recovered) = Journal::open(options(folder.path(), fsync)).unwrap();
        assert!(recovered.pending.is_empty() && !recovered.unclean && recovered.redis.is_none());
        intend(&journal, &["a", "b"]).unwrap();
        let done = intend(&journal, &["c"]).unwrap();
        intend(&journal, &["d"]).unwrap();
        journal.done(done.id);
        journal.saw("first".to_owned());
        journal.saw("run id 1".to_owned());
        flush(&journal);
        let after = crashed(folder.path());
        let (next, recovered) = open(after.path());
        assert_eq!(pending(&recovered)[..2], ["a b", "d"], "{fsync:?}");
        assert_eq!(recovered.pending[0].what, "SET ab");
        assert!(recovered.pending[0].unix_ms > 1_700_000_000_000);
        assert_eq!((recovered.unclean, recovered.redis.as_deref()), (true, Some("run id 1")));
        assert_eq!(recovered.damage, [""; 0]);
        assert_eq!(names(&next.recent()), ["a", "b", "c", "d", "flush"]);
        // They are its own now, and stay its own until they are done.
        next.done(recovered.pending[0].id);
        flush(&next);
        let (_, recovered) = open(crashed(after.path()).path());
        assert_eq!(pending(&recovered)[..1], ["d"]);
        assert_eq!(recovered.redis.as_deref(), Some("run id 1"));
    }
}

#[test]
fn a_stop_in_order_is_told_from_a_crash() {
    let folder = folder();
    let (journal, _) = open(folder.path());
    let done = intend(&journal, &["a"]).unwrap();
    intend(&journal, &["b"]).unwrap();
    journal.done(done.id);
    journal.close(true);
    assert_eq!(intend(&journal, &["c"]).unwrap_err(), "the journal is closed");
    journal.close(true);
    let (journal, recovered) = open(folder.path());
    assert!(!recovered.unclean);
    assert_eq!(pending(&recovered), ["b"]);
    assert_eq!(names(&journal.recent()), ["a", "b"]);
    assert_eq!(files(folder.path(), "log").len(), 1, "the old file is gone");
}

#[test]
fn recent_ends_with_the_window_but_not_for_what_is_pending() {
    let folder = folder();
    let mut options = options(folder.path(), Fsync::Always);
    options.window = Duration::from_millis(1);
    let (journal, _) = Journal::open(options).unwrap();
    let done = intend(&journal, &["done"]).unwrap();
    intend(&journal, &["pending"]).unwrap();
    journal.done(done.id);
    let over = (0..10_000).any(|_| {
        std::thread::sleep(Duration::from_millis(1));
        names(&journal.recent()) == ["pending"]
    });
    assert!(over, "{:?}", names(&journal.recent()));
}

#[test]
fn any_tag_and_any_number_of_them() {
    let folder = folder();
    let (journal, _) = open(folder.path());
    let every_byte: Tag = (0..=255).collect::<Vec<u8>>().into();
    let many: Vec<Tag> = (0..5000).map(|n| format!("{n:0200}").into_bytes().into()).collect();
    let odd = Scope::Tags(vec![every_byte, Tag::from(&b""[..])]);
    let big: Tag = vec![b'x'; 16 << 20].into();
    for scope in [odd.clone(), Scope::Tags(many.clone()), Scope::Tags(vec![]), Scope::Tags(vec![big])] {
        run(journal.intend((scope, "é".repeat(10_000)))).unwrap();
    }
    let (_, recovered) = open(crashed(folder.path()).path());
    let scopes: Vec<_> = recovered.pending.iter().map(|intent| &intent.scope).collect();
    assert_eq!(scopes, [&odd, &Scope::Tags(many), &Scope::Tags(vec![]), &Scope::Everything]);
    assert_eq!(recovered.pending[0].what, "é".repeat(512));
    assert_eq!(journal.recent(), Scope::Everything);
}

#[test]
fn an_intent_that_nobody_waits_for_is_done() {
    let folder = folder();
    let (journal, _) = open(folder.path());
    drop(journal.intend((tags(&["a"]), String::new())));
    flush(&journal);
    // Answered already, but not looked at.
    let waiting = journal.intend((tags(&["b"]), String::new()));
    flush(&journal);
    drop(waiting);
    flush(&journal);
    journal.close(true);
    let (journal, recovered) = open(folder.path());
    assert_eq!(pending(&recovered), [""; 0]);
    assert_eq!(names(&journal.recent()), ["a", "b", "flush"]);
}

#[test]
fn without_a_folder_it_remembers_as_long_as_it_lives() {
    let journal = Journal::none(Duration::from_secs(3600));
    assert!(!journal.is_on());
    let done = intend(&journal, &["a"]).unwrap();
    intend(&journal, &["b"]).unwrap();
    drop(journal.intend((tags(&["c"]), String::new())));
    journal.done(done.id);
    journal.saw("run id".to_owned());
    assert_eq!(names(&journal.recent()), ["a", "b", "c"]);
    assert_eq!(journal.describe().pending, 1);
    assert!(journal.describe().to_string().starts_with("journal_enabled:0\r\njournal_fsync:none\r\n"));
    journal.close(true);
}

#[test]
fn it_tells_how_it_is_doing() {
    let folder = folder();
    let (journal, _) = open(folder.path());
    assert!(journal.is_on());
    let before = journal.describe();
    intend(&journal, &["a"]).unwrap();
    let after = journal.describe();
    assert_eq!((after.fsyncs, after.pending), (before.fsyncs + 1, 1));
    let file = files(folder.path(), "log").remove(0);
    journal.close(true);
    let after = journal.describe();
    assert!(after.bytes > before.bytes);
    assert_eq!(after.bytes, std::fs::metadata(file).unwrap().len());
    assert_eq!(
        after.to_string(),
        format!(
            "journal_enabled:1\r\njournal_fsync:always\r\njournal_pending:1\r\njournal_bytes:{}\r\n\
             journal_fsyncs:2\r\njournal_rewrites:0\r\njournal_failures:0\r\n",
            after.bytes
        )
    );
}

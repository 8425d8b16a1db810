//! kill -9 at random moments: whatever was accepted and not done is there again.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rescind::config::Fsync;

use crate::child::{Role, Running};
use crate::support::{crashed, files, folder, intend, names, open, pending};

/// What a process may rely on after all the lines of another.
#[derive(Default)]
struct Known {
    pending: BTreeSet<u64>,
    maybe_done: BTreeSet<u64>,
    rewritten: bool,
}

impl Known {
    fn hear(&mut self, line: &str) {
        let (kind, rest) = line.split_at(1);
        match kind {
            "+" => drop(self.pending.insert(rest.parse().unwrap())),
            "-" => {
                let number = rest.parse().unwrap();
                self.pending.remove(&number);
                self.maybe_done.insert(number);
            }
            "=" => self.rewritten |= rest.starts_with("rewritten"),
            _ => panic!("{line}"),
        }
    }

    /// Lets a process run until it has said so many lines, and kills it.
    fn run(&mut self, role: Role, folder: &Path, fsync: Fsync, first: u64, lines: usize) {
        let mut running = Running::start(role, folder, fsync, first, &[]);
        for _ in 0..lines {
            self.hear(&running.line().unwrap());
        }
        std::thread::sleep(Duration::from_micros(fastrand::u64(0..3000)));
        running.kill();
        while let Some(line) = running.line() {
            self.hear(&line);
        }
    }

    fn check(&self, folder: &Path) {
        // A copy, so that the next process has to take over the same files.
        let copy = crate::support::crashed(folder);
        let (journal, recovered) = open(copy.path());
        assert_eq!(recovered.damage, [""; 0], "kill -9 damages nothing");
        assert!(recovered.unclean);
        let found: BTreeSet<u64> = recovered.pending.iter().map(|one| one.what.parse().unwrap()).collect();
        let lost: Vec<_> = self.pending.difference(&found).collect();
        assert!(lost.is_empty(), "accepted and not done, but lost: {lost:?}");
        let recent = names(&journal.recent());
        let known = |number: u64| {
            let name = if number.is_multiple_of(10) { number } else { number % 8 };
            recent.iter().any(|tag| tag.split(':').next() == Some(&name.to_string()))
        };
        assert!(self.pending.iter().chain(&self.maybe_done).all(|number| known(*number)));
    }
}

#[test]
fn killed_at_any_moment_it_loses_nothing() {
    let folder = folder();
    let mut known = Known::default();
    for round in 0..12 {
        let fsync = [Fsync::Always, Fsync::EverySec, Fsync::Never][round % 3];
        known.run(Role::Busy, folder.path(), fsync, 100_000 * (round as u64 + 1), fastrand::usize(1..400));
        known.check(folder.path());
    }
    assert!(known.pending.len() > 12 && known.maybe_done.len() > 12);
}

#[test]
fn killed_while_files_are_rewritten_it_loses_nothing() {
    let folder = folder();
    let mut known = Known::default();
    for round in 0..8 {
        let fsync = [Fsync::Never, Fsync::Always][round % 2];
        known.run(
            Role::Rewriting,
            folder.path(),
            fsync,
            100_000 * (round as u64 + 1),
            fastrand::usize(200..500),
        );
        known.check(folder.path());
    }
    assert!(known.rewritten, "the test is about something");
    let sizes = files(folder.path(), "log").iter().map(|path| path.metadata().unwrap().len()).sum::<u64>();
    assert!(sizes < 64 << 20, "{sizes} bytes");
}

#[test]
fn killed_while_it_takes_over_it_loses_nothing() {
    let folder = folder();
    let mut known = Known::default();
    known.run(Role::Busy, folder.path(), Fsync::Never, 100_000, 2000);
    for round in 2..30 {
        let mut running = Running::start(Role::Busy, folder.path(), Fsync::Always, 100_000 * round, &[]);
        std::thread::sleep(Duration::from_micros(fastrand::u64(0..30_000)));
        running.kill();
        while let Some(line) = running.line() {
            known.hear(&line);
        }
        known.check(folder.path());
    }
}

#[test]
fn a_limit_on_the_size_of_files_is_survived() {
    let folder = folder();
    let wrapper = ["prlimit", "--fsize=40000:", "--"];
    let mut running = Running::start(Role::Limited, folder.path(), Fsync::Always, 1, &wrapper);
    let mut accepted = vec![];
    let refused = loop {
        let line = running.line().unwrap();
        match line.split_at(1) {
            ("+", number) => accepted.push(number.to_owned()),
            ("!", text) => break text.to_owned(),
            _ => {}
        }
    };
    assert_eq!(refused, "the journal cannot be written: File too large");
    assert!((6..8).contains(&accepted.len()), "{}", accepted.len());
    // Up to the last whole record, as if nothing had been tried.
    let length = files(folder.path(), "log")[0].metadata().unwrap().len();
    assert!((accepted.len() as u64 * 5000..40_000).contains(&length) && length % 5000 < 1000, "{length}");
    let pid = running.id().to_string();
    let lifted = Command::new("prlimit").args(["--fsize=unlimited:", "--pid", &pid]).status().unwrap();
    assert!(lifted.success());
    running.say("go on");
    assert_eq!(running.line().unwrap(), "+1001");
    accepted.push("1001".to_owned());
    running.kill();
    let (_, recovered) = open(folder.path());
    assert_eq!(recovered.damage, [""; 0]);
    assert_eq!(recovered.pending.into_iter().map(|one| one.what).collect::<Vec<_>>(), accepted);
}

/// Whoever starts again on a full disk goes on with what the process before it has left, and refuses what is new.
#[test]
fn without_room_at_the_start_it_waits_for_room() {
    for clean in [false, true] {
        let folder = folder();
        let (journal, _) = open(folder.path());
        intend(&journal, &["before"]).unwrap();
        journal.close(clean);
        let wrapper = ["prlimit", "--fsize=0:", "--"];
        let mut running = Running::start(Role::Limited, folder.path(), Fsync::Always, 1, &wrapper);
        assert_eq!(running.line().as_deref(), Some("=1"));
        assert_eq!(running.line().as_deref(), Some("!the journal cannot be written: File too large"));
        // If it ends now, it was not in order, whatever the one before it has said.
        let (_, recovered) = open(crashed(folder.path()).path());
        assert_eq!((pending(&recovered), recovered.unclean), (vec!["before".to_owned()], true), "{clean}");
        assert_eq!(recovered.damage, [""; 0]);
        // It holds what it has taken over.
        let (other, recovered) = open(folder.path());
        assert!(recovered.pending.is_empty() && !recovered.unclean);
        other.close(true);
        let pid = running.id().to_string();
        let lifted = Command::new("prlimit").args(["--fsize=unlimited:", "--pid", &pid]).status().unwrap();
        assert!(lifted.success());
        running.say("go on");
        assert_eq!(running.line().as_deref(), Some("+1001"));
        running.kill();
        let (_journal, recovered) = open(folder.path());
        let begun: Vec<_> = recovered.pending.into_iter().map(|one| one.what).collect();
        assert_eq!(begun, ["SET before", "1001"], "{clean}");
        assert_eq!(files(folder.path(), "log").len(), 1, "the old ones are gone");
    }
}

#[test]
fn without_room_for_the_first_file_it_does_not_start() {
    let folder = folder();
    let wrapper = ["prlimit", "--fsize=0:", "--"];
    let mut running = Running::start(Role::Limited, folder.path(), Fsync::Always, 1, &wrapper);
    assert_eq!(running.line(), None);
    assert!(files(folder.path(), "log").is_empty() && files(folder.path(), "tmp").is_empty());
}

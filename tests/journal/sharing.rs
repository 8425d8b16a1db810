//! Several processes in one folder. A lock belongs to whoever opened the file, so journals of one process are as
//! foreign to each other as those of several.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Barrier;
use std::time::Duration;

use rescind::config::Fsync;
use rescind::journal::Journal;

use crate::support::{crashed, files, folder, intend, names, open, options, pending, run};

#[test]
fn who_lives_keeps_its_file() {
    let folder = folder();
    let (first, _) = open(folder.path());
    intend(&first, &["a"]).unwrap();
    let (second, recovered) = open(folder.path());
    assert!(recovered.pending.is_empty() && !recovered.unclean);
    intend(&second, &["b"]).unwrap();
    assert_eq!(files(folder.path(), "log").len(), 2);
    first.close(true);
    let (third, recovered) = open(folder.path());
    assert_eq!((pending(&recovered), recovered.unclean), (vec!["a".to_owned()], false));
    assert_eq!(names(&third.recent()), ["a", "b"], "it is heard of");
    assert_eq!(files(folder.path(), "log").len(), 2);
    // The crash of both.
    let (_, recovered) = open(crashed(folder.path()).path());
    let mut found = pending(&recovered);
    found.sort_unstable();
    assert_eq!((found, recovered.unclean), (vec!["a".to_owned(), "b".to_owned()], true));
}

/// A child has everything that is open until it has become another program.
#[test]
fn a_child_that_is_just_being_started_does_not_hold_the_file() {
    let turns = || {
        let folder = folder();
        let turn = |_| {
            let (journal, recovered) = open(folder.path());
            intend(&journal, &["a"]).unwrap();
            journal.close(true);
            recovered.pending.len()
        };
        (0..300).map(turn).collect::<Vec<_>>()
    };
    let found = std::thread::spawn(turns);
    while !found.is_finished() {
        assert!(Command::new("true").status().unwrap().success());
    }
    assert_eq!(found.join().unwrap(), (0..300).collect::<Vec<_>>());
}

/// Those that run already look at it for an instant.
#[test]
fn a_file_that_somebody_only_looks_at_is_taken_over() {
    let folder = folder();
    let (journal, _) = open(folder.path());
    intend(&journal, &["a"]).unwrap();
    let left = crashed(folder.path());
    let looked_at = File::open(&files(left.path(), "log")[0]).unwrap();
    looked_at.lock_shared().unwrap();
    let recovered = std::thread::scope(|scope| {
        let starting = scope.spawn(|| open(left.path()).1);
        std::thread::sleep(Duration::from_millis(50));
        looked_at.unlock().unwrap();
        starting.join().unwrap()
    });
    assert_eq!((pending(&recovered), recovered.unclean), (vec!["a".to_owned()], true));
}

/// The new one has started before the old one ends.
#[test]
fn what_an_ended_one_had_begun_those_know_that_run_already() {
    let (folder, elsewhere) = (folder(), folder());
    let (living, _) = open(folder.path());
    let (other, _) = open(folder.path());
    intend(&other, &["b"]).unwrap();
    assert_eq!(run(living.orphans()), [], "it lives");
    let (first, _) = open(elsewhere.path());
    intend(&first, &["a"]).unwrap();
    let left = crashed(elsewhere.path());
    for path in files(left.path(), "log") {
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    for journal in [&living, &other] {
        let begun: Vec<_> = run(journal.orphans()).iter().flat_map(|intent| names(&intent.scope)).collect();
        assert_eq!(begun, ["a"]);
        assert_eq!(run(journal.orphans()), [], "once");
    }
    // Who starts next is told as well.
    let (_third, recovered) = open(folder.path());
    assert_eq!((pending(&recovered), recovered.unclean), (vec!["a".to_owned()], true));
    assert_eq!(run(Journal::none(std::time::Duration::ZERO).orphans()), []);
}

#[test]
fn of_those_that_start_at_once_one_takes_over() {
    let before = folder();
    let mut expected = vec![];
    let left: Vec<_> = (0..5)
        .map(|n| {
            let (journal, _) = open(before.path());
            expected.push(format!("tag{n}"));
            intend(&journal, &[&expected[n]]).unwrap();
            journal
        })
        .collect();
    for _ in 0..20 {
        let after = crashed(before.path());
        let barrier = Barrier::new(4);
        let start = || {
            barrier.wait();
            open(after.path())
        };
        let opened: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(start)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let mut found: Vec<_> = opened.iter().flat_map(|(_, recovered)| pending(recovered)).collect();
        found.sort_unstable();
        assert_eq!(found, expected, "each once");
        assert_eq!(files(after.path(), "log").len(), 4);
    }
    drop(left);
}

#[test]
fn files_of_others_are_left_alone() {
    let folder = folder();
    let mut other = options(folder.path(), Fsync::Always);
    other.upstream = "127.0.0.1:6380".to_owned();
    let (journal, _) = Journal::open(other.clone()).unwrap();
    intend(&journal, &["a"]).unwrap();
    journal.close(true);
    let foreign = ["notes.log", "notes.tmp", "1-2-3.log", "README"];
    foreign.iter().for_each(|name| std::fs::write(folder.path().join(name), "mine").unwrap());
    std::fs::create_dir(folder.path().join("folder.log")).unwrap();
    let (journal, recovered) = open(folder.path());
    assert!(!recovered.unclean && recovered.damage.is_empty());
    journal.close(true);
    for name in foreign {
        assert_eq!(std::fs::read_to_string(folder.path().join(name)).unwrap(), "mine", "{name}");
    }
    let (_, recovered) = Journal::open(other).unwrap();
    assert_eq!(pending(&recovered), ["a"]);
}

/// The data may be the same, under another name: a replica that was promoted.
#[test]
fn what_another_upstream_had_later_is_done_here_as_well() {
    let folder = folder();
    let mut other = options(folder.path(), Fsync::Always);
    other.upstream = "127.0.0.1:6380".to_owned();
    // Its process may live or not.
    for lives in [true, false] {
        let (journal, _) = Journal::open(other.clone()).unwrap();
        let done = intend(&journal, &["done"]).unwrap();
        journal.done(done.id);
        intend(&journal, &["begun"]).unwrap();
        let kept = Some(journal).filter(|_| lives);
        let (journal, recovered) = open(folder.path());
        assert_eq!(pending(&recovered), ["begun done"], "{lives}");
        assert_eq!(recovered.redis, None);
        let done = recovered.pending[0].id;
        journal.done(done);
        assert_eq!(names(&journal.recent()), ["begun", "done"]);
        // Only once, and they do not tell each other for ever.
        journal.close(true);
        let (journal, recovered) = open(folder.path());
        assert!(recovered.pending.is_empty(), "{:?}", recovered.pending);
        journal.close(true);
        kept.into_iter().for_each(|journal| journal.close(true));
        let (journal, recovered) = Journal::open(other.clone()).unwrap();
        assert_eq!(pending(&recovered), ["begun"]);
        journal.close(true);
        files(folder.path(), "log").into_iter().for_each(|file| std::fs::remove_file(file).unwrap());
    }
}

#[test]
fn a_renamed_file_is_still_known_by_its_header() {
    let folder = folder();
    let (journal, _) = open(folder.path());
    intend(&journal, &["a"]).unwrap();
    journal.close(true);
    std::fs::rename(&files(folder.path(), "log")[0], folder.path().join("restored.log")).unwrap();
    let (_, recovered) = open(folder.path());
    assert_eq!(pending(&recovered), ["a"]);
}

#[test]
fn what_was_begun_and_not_named_is_removed() {
    let folder = folder();
    let (journal, _) = open(folder.path());
    let file = files(folder.path(), "log").remove(0);
    std::fs::write(file.with_extension("tmp"), "half a fi").unwrap();
    let (_, recovered) = open(folder.path());
    assert!(recovered.damage.is_empty() && !recovered.unclean);
    assert!(files(folder.path(), "tmp").is_empty());
    drop(journal);
}

#[test]
fn only_the_owner_reads_it() {
    let parent = folder();
    let folder = parent.path().join("data/journal");
    let (_journal, _) = open(&folder);
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder), 0o700);
    assert_eq!(mode(&files(&folder, "log")[0]), 0o600);
}

#[test]
fn what_stands_in_the_way_is_said_in_one_line() {
    let parent = folder();
    let file = parent.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = |path: &Path| Journal::open(options(path, Fsync::Always)).unwrap_err();
    let message = |path: &Path, why: &str| format!("the journal cannot be kept at {}: {why}", path.display());
    assert_eq!(error(&file), message(&file, "File exists"));
    let inside = file.join("journal");
    assert_eq!(error(&inside), message(&inside, "Not a directory"));
    let nowhere = Path::new("/proc/journal");
    assert_eq!(error(nowhere), message(nowhere, "No such file or directory"));
    // Where the superuser runs tests, nothing is forbidden.
    let closed = parent.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, Permissions::from_mode(0o500)).unwrap();
    if std::fs::write(closed.join("probe"), "").is_err() {
        assert_eq!(error(&closed), message(&closed, "Permission denied"));
    }
}

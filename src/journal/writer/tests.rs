//! The thread's turns one by one, with files that fail.

use std::path::Path;
use std::sync::mpsc::{Sender, channel};

use super::super::Scope;
use super::super::folder::Folder;
use super::*;
use crate::rules::Tag;

type Answered = oneshot::Receiver<Result<IntentId, String>>;

struct Bench {
    folder: tempfile::TempDir,
    writer: Writer,
    queue: Sender<Message>,
    messages: Receiver<Message>,
}

impl Bench {
    fn new(fsync: Fsync) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shared = Arc::new(Shared::new(fsync, Duration::from_secs(3600)));
        let files = Folder::open(folder.path().to_owned(), "up".to_owned()).unwrap();
        let now = shared.now();
        let file = files.begin(now, |mark| shared.state().snapshot(mark, "up", now)).unwrap();
        let (queue, messages) = channel();
        Self { folder, writer: Writer::new(shared, files, file), queue, messages }
    }

    fn intend(&self, tag: &str) -> Answered {
        let (answer, answered) = oneshot::channel();
        let scope = Scope::Tags(vec![Tag::from(tag.as_bytes())]);
        self.queue
            .send(Message::Intend(vec![Asked { wanted: (scope, String::new()).into(), answer }]))
            .unwrap();
        answered
    }

    fn done(&self, id: IntentId) {
        self.writer.shared.finished().push(id);
    }

    fn turn(&mut self) {
        let ControlFlow::Continue(batch) = self.writer.gather(&self.messages) else { panic!("at its end") };
        self.writer.turn(batch);
    }

    fn accepted(&mut self, tag: &str) -> IntentId {
        let mut answered = self.intend(tag);
        self.turn();
        answered.try_recv().unwrap().unwrap()
    }

    fn refused(&mut self, tag: &str) -> String {
        let mut answered = self.intend(tag);
        self.turn();
        answered.try_recv().unwrap().unwrap_err()
    }

    fn fsyncs(&self) -> u64 {
        self.writer.shared.counts.fsyncs.load(Ordering::Relaxed)
    }

    /// Lets what the writer has open be something else.
    fn replace(&mut self, path: &str) {
        let file = std::fs::File::options().append(true).open(path).unwrap();
        let real = self.writer.file.path().clone();
        let length = self.writer.file.length();
        self.writer.file = LogFile::new(file, real, self.writer.file.mark());
        assert!(length > 0);
    }

    /// The tags of what would be pending after a crash now.
    fn pending(&self) -> Vec<String> {
        let (copy, now) = (tempfile::tempdir().unwrap(), self.writer.shared.now());
        for entry in std::fs::read_dir(self.folder.path()).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
        }
        let mut state = State::new(Duration::ZERO);
        let folder = Folder::open(copy.path().to_owned(), "up".to_owned()).unwrap();
        let taken = folder.take_over(&mut state, now).unwrap();
        assert_eq!(taken.damage, [""; 0]);
        let text = |scope: &Scope| match scope {
            Scope::Tags(tags) => tags.iter().map(|tag| String::from_utf8_lossy(tag).into_owned()).collect(),
            Scope::Everything => "*".to_owned(),
        };
        state.pending().map(|intent| text(&intent.scope)).collect()
    }
}

fn names(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn what_has_gathered_shares_one_fsync() {
    let mut bench = Bench::new(Fsync::Always);
    let answers: Vec<_> = (0..50).map(|n| bench.intend(&n.to_string())).collect();
    bench.turn();
    assert_eq!(bench.fsyncs(), 1);
    let mut ids: Vec<_> = answers.into_iter().map(|mut one| one.try_recv().unwrap().unwrap()).collect();
    assert!(ids.is_sorted());
    ids.dedup();
    assert_eq!(ids.len(), 50);
    assert_eq!(bench.pending().len(), 50);
}

#[test]
fn those_who_are_about_to_ask_again_are_waited_for() {
    let mut bench = Bench::new(Fsync::Always);
    let long = Duration::from_secs(3600);
    let (a, b) = (bench.accepted("a"), bench.accepted("b"));
    (bench.writer.sync_time, bench.writer.hope) = (long, Hope::default());
    let first = bench.intend("c");
    let (queue, ids) = (bench.queue.clone(), [a, b]);
    let others = std::thread::spawn(move || {
        ids.map(|id| {
            std::thread::sleep(Duration::from_millis(5));
            let (answer, answered) = oneshot::channel();
            let scope = Scope::Tags(vec![Tag::from(id.0.to_string().as_bytes())]);
            queue
                .send(Message::Intend(vec![Asked { wanted: (scope, String::new()).into(), answer }]))
                .unwrap();
            answered
        })
    });
    bench.turn();
    for mut answered in others.join().unwrap().into_iter().chain([first]) {
        assert!(answered.try_recv().unwrap().is_ok());
    }
    assert_eq!(bench.fsyncs(), 3);
    // Nobody has anything under way.
    let pending: Vec<_> = bench.writer.state().pending().map(|intent| intent.id).collect();
    pending.into_iter().for_each(|id| bench.done(id));
    bench.writer.sync_time = long;
    let last = bench.accepted("d");
    // Who has, does not come.
    bench.writer.sync_time = 2 * LEAST_SYNC;
    bench.accepted("e");
    bench.writer.sync_time = long;
    bench.accepted("f");
    bench.done(last);
}

#[test]
fn completions_are_written_but_not_synced() {
    let mut bench = Bench::new(Fsync::Always);
    let (a, b) = (bench.accepted("a"), bench.accepted("b"));
    bench.done(a);
    bench.done(a);
    bench.turn();
    assert_eq!((bench.fsyncs(), bench.pending()), (2, vec!["b".to_owned()]));
    bench.done(b);
    bench.queue.send(Message::Saw("id".to_owned())).unwrap();
    bench.turn();
    assert_eq!(bench.fsyncs(), 3);
    bench.queue.send(Message::Saw("id".to_owned())).unwrap();
    bench.turn();
    assert_eq!(bench.fsyncs(), 3, "no news");
}

#[test]
fn once_a_second_if_there_is_something() {
    let mut bench = Bench::new(Fsync::EverySec);
    bench.accepted("a");
    assert_eq!((bench.fsyncs(), bench.writer.unsynced.is_some()), (0, true));
    bench.writer.unsynced = Some(Instant::now() - SECOND);
    bench.turn();
    assert_eq!((bench.fsyncs(), bench.writer.unsynced), (1, None));
    let mut bench = Bench::new(Fsync::Never);
    bench.accepted("a");
    assert_eq!((bench.fsyncs(), bench.writer.unsynced), (0, None));
}

#[test]
fn after_a_failed_fsync_a_new_file_is_begun() {
    for fsync in [Fsync::Always, Fsync::EverySec] {
        let mut bench = Bench::new(fsync);
        let done = bench.accepted("done");
        bench.accepted("a");
        let before = bench.writer.file.path().clone();
        bench.replace("/dev/null");
        bench.done(done);
        bench.writer.unsynced = bench.writer.unsynced.map(|_| Instant::now() - SECOND);
        let error = bench.refused("refused");
        assert!(error.starts_with("the journal cannot be written: "), "{error}");
        assert_eq!(bench.pending(), ["done", "a"], "{fsync:?}: the old file stays until there is a new one");
        bench.accepted("b");
        assert_eq!(bench.pending(), ["a", "b"], "{fsync:?}");
        assert!(!before.exists() && bench.writer.file.path().exists());
    }
}

#[test]
fn nothing_is_accepted_before_the_new_file_is_there() {
    let mut bench = Bench::new(Fsync::Always);
    bench.accepted("a");
    bench.replace("/dev/null");
    bench.refused("b");
    let away = bench.folder.path().with_extension("away");
    std::fs::rename(bench.folder.path(), &away).unwrap();
    assert_eq!(bench.refused("c"), "the journal cannot be written: No such file or directory");
    std::fs::rename(&away, bench.folder.path()).unwrap();
    bench.accepted("d");
    assert_eq!(bench.pending(), ["a", "d"]);
    assert_eq!(names(bench.folder.path()).len(), 1);
}

#[test]
fn a_file_that_is_not_in_its_place_any_more_is_written_anew() {
    for fsync in [Fsync::Always, Fsync::Never] {
        let mut bench = Bench::new(fsync);
        bench.accepted("a");
        std::fs::remove_file(bench.writer.file.path()).unwrap();
        bench.accepted("b");
        assert_eq!(bench.pending(), ["a", "b"], "{fsync:?}");
        // Also if nothing is to be written.
        std::fs::remove_file(bench.writer.file.path()).unwrap();
        bench.writer.turn(Batch::default());
        assert_eq!(bench.pending(), ["a", "b"], "{fsync:?}");
        std::fs::remove_dir_all(bench.folder.path()).unwrap();
        assert_eq!(bench.refused("c"), "the journal cannot be written: No such file or directory");
        std::fs::create_dir(bench.folder.path()).unwrap();
        bench.accepted("d");
        assert_eq!(bench.pending(), ["a", "b", "d"], "{fsync:?}");
    }
}

#[test]
fn a_full_disk_is_given_room_where_most_of_the_file_is_not_needed() {
    let mut bench = Bench::new(Fsync::Always);
    for n in 0..100 {
        let id = bench.accepted("a");
        bench.done(id);
        assert!(n < 50 || bench.writer.is_mostly_dead());
    }
    bench.turn();
    let length = bench.writer.file.length();
    bench.replace("/dev/full");
    bench.writer.file.pretend(length);
    bench.accepted("b");
    assert_eq!(bench.pending(), ["b"]);
    assert!(bench.writer.file.length() < length / 2);
}

#[test]
fn a_full_disk_refuses_all_that_gathered() {
    let mut bench = Bench::new(Fsync::Always);
    let done = bench.accepted("done");
    bench.replace("/dev/full");
    bench.done(done);
    let mut answers = [bench.intend("a"), bench.intend("b")];
    bench.turn();
    for answer in &mut answers {
        let error = answer.try_recv().unwrap().unwrap_err();
        assert_eq!(error, "the journal cannot be written: No space left on device");
    }
    assert_eq!(bench.writer.shared.counts.failures.load(Ordering::Relaxed), 1);
    bench.accepted("c");
    assert_eq!(bench.pending(), ["c"]);
}

#[test]
fn a_clock_that_is_set_makes_a_new_file() {
    let mut bench = Bench::new(Fsync::Always);
    bench.accepted("a");
    let before = bench.writer.file.path().clone();
    bench.writer.difference -= 100_000;
    bench.accepted("b");
    assert_ne!(&before, bench.writer.file.path());
    assert_eq!(bench.pending(), ["a", "b"]);
    let before = bench.writer.file.path().clone();
    bench.accepted("c");
    assert_eq!(&before, bench.writer.file.path());
    // Also if nothing is to be written.
    bench.writer.difference -= 100_000;
    bench.writer.turn(Batch::default());
    assert_ne!(&before, bench.writer.file.path());
}

#[test]
fn a_file_is_rewritten_when_most_of_it_is_not_needed() {
    let mut bench = Bench::new(Fsync::Never);
    let rewrites = |bench: &Bench| bench.writer.shared.counts.rewrites.load(Ordering::Relaxed);
    let long = "x".repeat(10_000);
    let mut ids = vec![];
    // All of it is needed.
    while bench.writer.file.length() < 2 * COMPACT {
        ids.push(bench.accepted(&format!("{}{long}", ids.len())));
    }
    assert_eq!(rewrites(&bench), 0);
    // Its tags stay known; each counts once.
    ids.drain(..).for_each(|id| bench.done(id));
    while rewrites(&bench) == 0 {
        let id = bench.accepted(&format!("0{long}"));
        bench.done(id);
        assert!(bench.writer.file.length() < 6 * COMPACT);
    }
    assert!(bench.writer.file.length() < 3 * COMPACT);
    assert_eq!(names(bench.folder.path()).len(), 1);
}

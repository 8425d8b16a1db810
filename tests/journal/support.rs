//! Journals in folders of the test's own.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rescind::config::Fsync;
use rescind::journal::{Journal, Noted, Options, Recovered, Scope};
use rescind::rules::Tag;
use tempfile::TempDir;

pub const UPSTREAM: &str = "127.0.0.1:6379";

pub fn folder() -> TempDir {
    tempfile::Builder::new().prefix("rescind-journal-").tempdir().unwrap()
}

pub fn options(folder: &Path, fsync: Fsync) -> Options {
    Options {
        folder: folder.to_owned(),
        fsync,
        upstream: UPSTREAM.to_owned(),
        window: Duration::from_secs(3600),
        rules: 7,
    }
}

pub fn open(folder: &Path) -> (Journal, Recovered) {
    Journal::open(options(folder, Fsync::Always)).unwrap()
}

pub fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

pub fn tags(names: &[&str]) -> Scope {
    Scope::Tags(names.iter().map(|name| Tag::from(name.as_bytes())).collect())
}

pub fn intend(journal: &Journal, names: &[&str]) -> Result<Noted, String> {
    run(journal.intend((tags(names), format!("SET {}", names.concat()))))
}

/// The tags of a scope in order, or `*`.
pub fn names(scope: &Scope) -> Vec<String> {
    match scope {
        Scope::Everything => vec!["*".to_owned()],
        Scope::Tags(tags) => {
            let mut names: Vec<_> =
                tags.iter().map(|tag| String::from_utf8_lossy(tag).into_owned()).collect();
            names.sort_unstable();
            names
        }
    }
}

/// The tags of each pending intent, in order.
pub fn pending(recovered: &Recovered) -> Vec<String> {
    recovered.pending.iter().map(|intent| names(&intent.scope).join(" ")).collect()
}

/// The files of a folder with an extension.
pub fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = paths.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    found.sort_unstable();
    found
}

/// What a crash at this moment leaves behind: the files, and no process that holds them.
pub fn crashed(from: &Path) -> TempDir {
    let to = folder();
    for path in files(from, "log") {
        std::fs::copy(&path, to.path().join(path.file_name().unwrap())).unwrap();
    }
    to
}

/// Waits until the journal has written what nobody waits for.
pub fn flush(journal: &Journal) {
    let noted = intend(journal, &["flush"]).unwrap();
    journal.done(noted.id);
}

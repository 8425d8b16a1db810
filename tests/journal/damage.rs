//! Files that somebody or something has changed.

use std::path::{Path, PathBuf};

use rescind::journal::{Recovered, Scope};
use tempfile::TempDir;

use crate::support::{crashed, files, flush, folder, intend, open, pending};

/// What a process left behind that had three intents pending and one done.
fn left() -> (TempDir, PathBuf) {
    let folder = folder();
    let (journal, _) = open(folder.path());
    let done = intend(&journal, &["done"]).unwrap();
    journal.done(done.id);
    for tag in ["a", "b", "c"] {
        intend(&journal, &[tag]).unwrap();
    }
    let after = crashed(folder.path());
    let file = files(after.path(), "log").remove(0);
    (after, file)
}

fn change(file: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(file).unwrap();
    change(&mut bytes);
    std::fs::write(file, bytes).unwrap();
}

fn is_everything(recovered: &Recovered) -> bool {
    recovered.pending.iter().any(|intent| intent.scope == Scope::Everything)
}

/// Everything counts as invalidated until that is done, and what was found is kept for whoever looks into it.
fn survived(folder: &Path, file: &Path, complaint: &str) {
    let damaged = std::fs::read(file).unwrap();
    let (journal, recovered) = open(folder);
    assert!(is_everything(&recovered) && recovered.unclean, "{recovered:?}");
    assert_eq!(
        recovered.damage,
        [format!("{} {complaint}; everything counts as invalidated", file.display())]
    );
    assert_eq!(journal.recent(), Scope::Everything);
    assert_eq!(std::fs::read(file.with_extension("damaged")).unwrap(), damaged);
    assert!(!file.exists());
    let (_, again) = open(crashed(folder).path());
    assert!(is_everything(&again), "durable before the file was set aside");
    recovered.pending.iter().for_each(|intent| journal.done(intent.id));
    flush(&journal);
    journal.close(true);
    let (_, recovered) = open(folder);
    assert_eq!(pending(&recovered), [""; 0], "once is enough");
    assert!(recovered.damage.is_empty() && !recovered.unclean);
}

#[test]
fn a_torn_end_is_no_damage() {
    let (folder, file) = left();
    change(&file, |bytes| bytes.truncate(bytes.len() - 1));
    let (_, recovered) = open(folder.path());
    assert_eq!((pending(&recovered), recovered.damage), (vec!["a".to_owned(), "b".to_owned()], vec![]));
    assert!(files(folder.path(), "damaged").is_empty());
}

#[test]
fn damage_in_the_middle() {
    let (folder, file) = left();
    let bytes = std::fs::read(&file).unwrap();
    let at = bytes.windows(5).position(|bytes| bytes == b"SET a").unwrap();
    change(&file, |bytes| bytes[at] = b'G');
    // Its frame begins with the mark that stands in the header.
    let begin = bytes.windows(8).take(at).rposition(|window| window == &bytes[20..28]).unwrap();
    survived(folder.path(), &file, &format!("is damaged at byte {begin}"));
}

#[test]
fn damage_keeps_what_is_behind_it() {
    let (folder, file) = left();
    change(&file, |bytes| {
        let at = bytes.windows(5).position(|bytes| bytes == b"SET a").unwrap();
        bytes[at] = b'G';
    });
    let (_, recovered) = open(folder.path());
    assert_eq!(pending(&recovered), ["*", "b", "c"]);
}

#[test]
fn headers() {
    let complaint = "does not begin like a journal";
    let (folder, file) = left();
    change(&file, |bytes| bytes[3] ^= 1);
    survived(folder.path(), &file, complaint);
    let (folder, file) = left();
    change(&file, |bytes| bytes[36] ^= 1);
    survived(folder.path(), &file, complaint);
    let (folder, file) = left();
    change(&file, Vec::clear);
    survived(folder.path(), &file, complaint);
    let (folder, file) = left();
    change(&file, |bytes| bytes[16] = 7);
    survived(folder.path(), &file, "was written by a later version (format 7)");
}

#[test]
fn a_damaged_file_of_another_upstream_is_not_ours() {
    let (folder, file) = left();
    let name = file.file_name().unwrap().to_str().unwrap();
    let renamed = file.with_file_name(format!("{}00000000.log", &name[..name.len() - 12]));
    std::fs::rename(&file, &renamed).unwrap();
    change(&renamed, Vec::clear);
    let (_, recovered) = open(folder.path());
    assert!(recovered.pending.is_empty() && recovered.damage.is_empty());
    assert!(renamed.exists());
}

#[test]
fn a_file_longer_than_any_is_not_read() {
    let (folder, file) = left();
    let sparse = std::fs::File::options().write(true).open(&file).unwrap();
    sparse.set_len((1 << 30) + 1).unwrap();
    let (_, recovered) = open(folder.path());
    assert!(is_everything(&recovered));
    assert_eq!(
        recovered.damage,
        [format!("{} cannot be read: it is too long; everything counts as invalidated", file.display())]
    );
}

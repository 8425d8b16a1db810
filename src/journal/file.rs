//! The file that a journal writes: whole records, or an error and whole records all the same.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

/// A file of this process, locked as long as it is open.
#[derive(Debug)]
pub(super) struct LogFile {
    file: File,
    path: PathBuf,
    mark: u64,
    /// Up to the last whole record.
    length: u64,
    /// What it holds is not what was written: another file must take its place.
    distrusted: bool,
}

impl LogFile {
    /// Takes a file opened for appending and locked, with nothing in it.
    pub fn new(file: File, path: PathBuf, mark: u64) -> Self {
        Self { file, path, mark, length: 0, distrusted: false }
    }

    /// Appends whole records, or nothing.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = self.file.write_all(bytes);
        match &written {
            Ok(()) => self.length += bytes.len() as u64,
            // Records behind a part of one would not be found with certainty.
            Err(_) => self.distrusted |= self.file.set_len(self.length).is_err(),
        }
        written
    }

    /// Forces it to the disk. After a failure nobody can tell what is there: asking again may succeed without
    /// having written what was lost.
    pub fn sync(&mut self) -> io::Result<()> {
        let synced = self.file.sync_data();
        self.distrusted |= synced.is_err();
        synced
    }

    pub fn is_distrusted(&self) -> bool {
        self.distrusted
    }

    /// Looks whether it is still where others would find it: somebody may have removed or moved it, or its folder.
    pub fn look(&mut self) {
        self.distrusted |= std::fs::symlink_metadata(&self.path).is_err();
    }

    pub fn mark(&self) -> u64 {
        self.mark
    }

    pub fn length(&self) -> u64 {
        self.length
    }

    /// As if so many bytes had been written.
    #[cfg(test)]
    pub fn pretend(&mut self, length: u64) {
        self.length = length;
    }

    pub fn path(&self) -> &PathBuf {
        &self.path
    }

    /// Gives it its final name.
    pub fn rename(&mut self, path: PathBuf) -> io::Result<()> {
        std::fs::rename(&self.path, &path)?;
        self.path = path;
        Ok(())
    }
}

impl Drop for LogFile {
    /// A child that is being started shares the lock until it has become another program: closing the file here would
    /// leave it locked for that long, as if this process lived.
    fn drop(&mut self) {
        let _ = self.file.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &str) -> LogFile {
        let file = File::options().append(true).open(path).unwrap();
        LogFile::new(file, PathBuf::from(path), 1)
    }

    #[test]
    fn what_cannot_be_cut_back_is_not_trusted() {
        let mut full = open("/dev/full");
        let error = full.append(b"record").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(full.is_distrusted());
        assert_eq!(full.length(), 0);
    }

    #[test]
    fn what_cannot_be_synced_is_not_trusted() {
        let mut null = open("/dev/null");
        null.append(b"record").unwrap();
        assert!(!null.is_distrusted());
        assert!(null.sync().is_err());
        assert!(null.is_distrusted());
    }
}

//! The folder of journals: a file for each process, locked while it lives.
//!
//! A file is written under a temporary name, forced to the disk with all it has to say, and only then given its final
//! name; what it replaces goes after that. So every file with a final name is complete up to its last record, and
//! whatever is removed is in another file already. Who dies in between leaves two files that say the same.

use std::collections::HashSet;
use std::fs::{DirBuilder, DirEntry, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Intent;
use super::decode::{Decoded, Unreadable, decode};
use super::file::LogFile;
use super::record;
use super::state::{Now, State};

/// A longer file is not read; it counts as damaged. Files are rewritten when they exceed some MiB.
const MOST_READ: u64 = 1 << 30;
/// Somebody who tidies up may hold a new file for a moment.
const ATTEMPTS: usize = 10;
/// Who starts waits this often for somebody who looks at a file, and so long each time: he is done in an instant, unless he has
/// been stopped.
const LOOKS: usize = 2000;
const LOOK: Duration = Duration::from_millis(1);

const LOG: &str = "log";
const TEMPORARY: &str = "tmp";
const DAMAGED: &str = "damaged";

/// A folder and whose files in it are ours.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    upstream: String,
    /// Files of processes that have ended since, which have been looked at.
    seen: HashSet<PathBuf>,
}

/// What taking over found.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// Files that are not needed once another one says the same; locked.
    files: Vec<(File, PathBuf)>,
    /// Which of them are worth keeping for whoever looks into it.
    damaged: Vec<PathBuf>,
    /// Which of them say at their end that their process stopped in order.
    closed: Vec<PathBuf>,
    /// A process did not stop in order.
    pub unclean: bool,
    /// What was wrong.
    pub damage: Vec<String>,
    /// What files of other upstreams say.
    others: Vec<Decoded>,
    /// What files of processes say that live, or that somebody else is about to take over.
    living: Vec<Decoded>,
}

impl Folder {
    /// Makes the folder if there is none; others need not read what is in it.
    pub fn open(path: PathBuf, upstream: String) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        Ok(Self { path, upstream, seen: HashSet::new() })
    }

    pub fn upstream(&self) -> &str {
        &self.upstream
    }

    /// Begins a file with what `snapshot` makes for its mark: locked, on the disk, and named so that others find it.
    pub fn begin(&self, now: Now, snapshot: impl Fn(u64) -> Vec<u8>) -> io::Result<LogFile> {
        for _ in 0..ATTEMPTS {
            // No byte of it is zero: zeros are what a disk has where nothing was written.
            let mark = fastrand::u64(..) | 0x0101_0101_0101_0101;
            let temporary = self.path.join(Name::new(now, mark, &self.upstream).file(TEMPORARY));
            let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(&temporary)?;
            if lock(&file, &temporary)? {
                let mut log = LogFile::new(file, temporary, mark);
                let written = self.complete(&mut log, &snapshot(mark));
                if written.is_err() {
                    let _ = std::fs::remove_file(log.path());
                }
                return written.map(|()| log);
            }
        }
        Err(io::Error::other("new files are locked or removed by somebody else"))
    }

    /// In the place of a file that there is no room for: it is to be written anew before anything else.
    pub fn unwritten(&self) -> io::Result<LogFile> {
        let mut log = LogFile::new(File::open(&self.path)?, self.path.join("unwritten"), 0);
        log.look();
        Ok(log)
    }

    fn complete(&self, log: &mut LogFile, bytes: &[u8]) -> io::Result<()> {
        log.append(bytes)?;
        log.sync()?;
        log.rename(log.path().with_extension(LOG))?;
        File::open(&self.path)?.sync_all()
    }

    /// Adds to `state` what files of processes that are gone say. The error is one line for the user.
    pub fn take_over(&self, state: &mut State, now: Now) -> Result<Taken, String> {
        let mut taken = Taken::default();
        // A file vanishes when its process has rewritten it into another, or somebody else has taken it over. The
        // process may have died since, and this listing be older than the other file.
        while self.pass(state, now, &mut taken)? {}
        state.start_beside(std::mem::take(&mut taken.living), now);
        for other in std::mem::take(&mut taken.others) {
            let upstream = other.upstream.clone();
            if state.overhear(other, now) {
                tracing::warn!(
                    %upstream,
                    "the journal of another upstream has invalidations that this one's has not: they are done here as well, \
                     since the data may have moved"
                );
            }
        }
        Ok(taken)
    }

    /// What processes have begun that have ended since this was last asked. Their files stay: whoever starts takes them over, and
    /// waits while they are looked at here.
    pub fn orphans(&mut self, rules: Option<u32>, now: Now) -> Vec<Intent> {
        let Ok(files) = self.files() else { return vec![] };
        self.seen.retain(|path| files.contains(path));
        // It does not matter how far back it looks: only what was begun counts.
        let mut state = State::new(Duration::ZERO);
        rules.into_iter().for_each(|rules| state.follow_rules(rules));
        for path in files.into_iter().filter(|path| path.extension().is_some_and(|end| end == LOG)) {
            if self.seen.contains(&path) {
                continue;
            }
            if let Ok(Some(file)) = self.ours(&path, File::try_lock_shared)
                && file.unlock().is_ok()
            {
                self.read(file, path.clone(), &mut state, now, &mut Taken::default());
                self.seen.insert(path);
            }
        }
        state.pending().cloned().collect()
    }

    /// What is in the folder, the oldest first.
    fn files(&self) -> io::Result<Vec<PathBuf>> {
        let mut files: Vec<PathBuf> = vec![];
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            files.extend(is_file(&entry).then(|| entry.path()));
        }
        // Names begin with the time.
        files.sort_unstable();
        Ok(files)
    }

    /// Whether a file vanished meanwhile.
    fn pass(&self, state: &mut State, now: Now, taken: &mut Taken) -> Result<bool, String> {
        let files = self.files().map_err(|error| {
            format!("the journal at {} cannot be read: {}", self.path.display(), plain(&error))
        })?;
        let mut vanished = false;
        (taken.others, taken.living) = Default::default();
        for path in files {
            match self.ours(&path, lock_alone) {
                Ok(Some(file)) => self.read(file, path, state, now, taken),
                Ok(None) => match of_another(&path) {
                    Ok(Some(decoded)) if decoded.upstream == self.upstream => taken.living.push(decoded),
                    Ok(decoded) => taken.others.extend(decoded),
                    Err(error) => vanished |= error.kind() == io::ErrorKind::NotFound,
                },
                Err(error) if error.kind() == io::ErrorKind::NotFound => vanished = true,
                Err(error) => {
                    return Err(format!(
                        "the journal file {} cannot be taken over: {}",
                        path.display(),
                        plain(&error)
                    ));
                }
            }
        }
        Ok(vanished)
    }

    /// The file, locked, if its name does not speak against it and its process is gone. Temporary ones are removed.
    fn ours(
        &self,
        path: &Path,
        lock: impl FnOnce(&File) -> Result<(), TryLockError>,
    ) -> io::Result<Option<File>> {
        let extension = path.extension().and_then(|extension| extension.to_str());
        let name = Name::parse(path);
        let may_be = match extension {
            Some(LOG) => name.is_none_or(|name| name.is_for(&self.upstream)),
            Some(TEMPORARY) => name.is_some_and(|name| name.is_for(&self.upstream)),
            _ => false,
        };
        if !may_be {
            return Ok(None);
        }
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            // Whoever named it so did not mean us.
            Err(_) if name.is_none() => return Ok(None),
            opened => opened?,
        };
        match lock(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        if !is_same(&file, path)? {
            return Err(io::ErrorKind::NotFound.into());
        }
        if extension == Some(TEMPORARY) {
            std::fs::remove_file(path)?;
            return Ok(None);
        }
        Ok(Some(file))
    }

    fn read(&self, file: File, path: PathBuf, state: &mut State, now: Now, taken: &mut Taken) {
        let shown = path.display();
        let mut suspect = |taken: &mut Taken, why: String| {
            state.suspect(format!("damaged journal {shown}"), now);
            taken.damage.push(format!("{shown} {why}; everything counts as invalidated"));
            taken.damaged.push(path.clone());
        };
        match contents(&file) {
            Err(error) => suspect(taken, format!("cannot be read: {}", plain(&error))),
            Ok(bytes) => match decode(&bytes) {
                Ok(decoded) if decoded.upstream != self.upstream => return taken.others.push(decoded),
                Ok(decoded) => {
                    if let Some(at) = decoded.damage.first() {
                        suspect(taken, format!("is damaged at byte {at}"));
                    } else if decoded.torn {
                        tracing::info!(file = %shown, "ends in an unfinished record, as after a crash");
                    }
                    let clean = state.take_over(decoded, now);
                    taken.unclean |= !clean;
                    taken.closed.extend(clean.then(|| path.clone()));
                    taken.files.push((file, path));
                    return;
                }
                // Not a journal at all, or one for another upstream: nobody can tell.
                Err(_) if Name::parse(&path).is_none() => return,
                Err(Unreadable::Header) => suspect(taken, "does not begin like a journal".to_owned()),
                Err(Unreadable::Version(version)) => {
                    suspect(taken, format!("was written by a later version (format {version})"));
                }
            },
        }
        taken.unclean = true;
        taken.files.push((file, path));
    }
}

impl Taken {
    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Keeps the files for now, as those of a process that lives: none says any more that all has ended in order.
    pub fn reopen(&self) -> io::Result<()> {
        let mut closed = self.files.iter().filter(|(_, path)| self.closed.contains(path));
        closed.try_for_each(|(file, _)| {
            let length = file.metadata()?.len();
            file.set_len(length.saturating_sub(record::CLOSED_FRAME))
        })
    }

    /// Removes the files: another one says the same by now. Damaged ones are kept under another name.
    pub fn remove(self) {
        for (file, path) in self.files {
            let gone = if self.damaged.contains(&path) {
                std::fs::rename(&path, path.with_extension(DAMAGED))
            } else {
                std::fs::remove_file(&path)
            };
            if let Err(error) = gone {
                tracing::warn!(%error, file = %path.display(), "an old journal cannot be removed; it is read again next time");
            }
            drop(file);
        }
    }
}

/// What a file says that is not taken over: that of a process that lives, or of another upstream.
fn of_another(path: &Path) -> io::Result<Option<Decoded>> {
    if path.extension().is_none_or(|extension| extension != LOG) || Name::parse(path).is_none() {
        return Ok(None);
    }
    Ok(decode(&contents(&File::open(path)?)?).ok())
}

fn contents(mut file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![];
    if file.metadata()?.len() > MOST_READ {
        return Err(io::Error::other("it is too long"));
    }
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn is_file(entry: &DirEntry) -> bool {
    entry.file_type().is_ok_and(|kind| kind.is_file())
}

/// Locks a file whose process is gone. That one had it alone, who only looks at it shares it.
fn lock_alone(file: &File) -> Result<(), TryLockError> {
    for _ in 0..LOOKS {
        let locked = file.try_lock();
        if !matches!(locked, Err(TryLockError::WouldBlock)) || file.try_lock_shared().is_err() {
            return locked;
        }
        file.unlock().map_err(TryLockError::Error)?;
        std::thread::sleep(LOOK);
    }
    file.try_lock()
}

/// Locks a new file; whether it is still there.
fn lock(file: &File, path: &Path) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(is_same(file, path).unwrap_or(false)),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Whether the path still leads to the file.
fn is_same(file: &File, path: &Path) -> io::Result<bool> {
    let (open, named) = (file.metadata()?, std::fs::symlink_metadata(path)?);
    Ok((open.dev(), open.ino()) == (named.dev(), named.ino()))
}

/// An error as a user likes to read it, without its number.
pub(super) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// `<unix ms>-<pid>-<mark>-<checksum of the upstream>`: even a file that cannot be read tells whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Name {
    unix_ms: u64,
    pid: u32,
    mark: u64,
    upstream: u32,
}

impl Name {
    fn new(now: Now, mark: u64, upstream: &str) -> Self {
        let upstream = crc32fast::hash(upstream.as_bytes());
        Self { unix_ms: now.wall, pid: std::process::id(), mark, upstream }
    }

    fn is_for(&self, upstream: &str) -> bool {
        self.upstream == crc32fast::hash(upstream.as_bytes())
    }

    fn file(&self, extension: &str) -> String {
        let Self { unix_ms, pid, mark, upstream } = self;
        format!("{unix_ms:015}-{pid}-{mark:016x}-{upstream:08x}.{extension}")
    }

    fn parse(path: &Path) -> Option<Self> {
        let (stem, extension) = (path.file_stem()?.to_str()?, path.extension()?.to_str()?);
        let mut parts = stem.split('-');
        let name = Self {
            unix_ms: parts.next()?.parse().ok()?,
            pid: parts.next()?.parse().ok()?,
            mark: u64::from_str_radix(parts.next()?, 16).ok()?,
            upstream: u32::from_str_radix(parts.next()?, 16).ok()?,
        };
        (path.file_name()?.to_str()? == name.file(extension)).then_some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_the_upstream() {
        let name = Name::new(Now { steady: 0, wall: 1_700_000_000_000 }, 0x1f, "redis:6379");
        let path = PathBuf::from("/j").join(name.file(LOG));
        assert_eq!(Name::parse(&path), Some(name));
        assert!(name.is_for("redis:6379") && !name.is_for("redis:6380"));
        for other in ["notes.log", "1-2-3-4.log", "000001700000000-1-+000000000000001-00000001.log"] {
            assert_eq!(Name::parse(Path::new(other)), None, "{other}");
        }
    }
}

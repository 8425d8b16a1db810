//! The log is written by a thread of its own, many lines at once: whoever has something to say never waits until it is
//! written. What nobody reads in time is dropped.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Bytes that wait to be written; beyond, lines are dropped and counted.
const MOST: usize = 1 << 20;
/// How long lines gather, so that each does not wake the thread.
const GATHER: Duration = Duration::from_millis(2);
/// How long the end of the process waits for somebody to take the last lines.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is logged, from the words of `RESCIND_LOG`; if there are none, as with `info`.
///
/// # Errors
/// What is wrong and what to write instead.
pub fn filter(words: &str) -> Result<EnvFilter, String> {
    if words.split(',').all(|word| word.trim().is_empty()) {
        return Ok(EnvFilter::new("info"));
    }
    // Elsewhere such a word would name another program's part, so that nothing at all would be logged.
    let is_unknown = |word: &&str| {
        let is_plain = !word.contains(['=', '[']) && !word.is_empty() && !word.starts_with("rescind");
        is_plain && word.parse::<LevelFilter>().is_err()
    };
    match words.split(',').map(str::trim).find(is_unknown) {
        Some(word) => Err(format!("{word:?} is not a level; write error, warn, info, debug, trace or off")),
        None => EnvFilter::try_new(words).map_err(|error| error.to_string()),
    }
}

/// Where lines are left to be written. What is left when the last handle is gone is still written, as long as the process
/// lives; [`Lines::flush`] waits for it.
#[derive(Clone, Debug)]
pub struct Lines(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// There is something to write.
    news: Condvar,
    /// All was written.
    written: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    /// Lines that were dropped since it last took what waits.
    dropped: usize,
    /// The thread waits for news.
    idle: bool,
}

impl Lines {
    /// Begins to write to `out`.
    pub fn new(out: impl Write + Send + 'static) -> io::Result<Self> {
        let lines = Self(Arc::default());
        let shared = Arc::clone(&lines.0);
        std::thread::Builder::new().name("log".to_owned()).spawn(move || shared.write(out))?;
        Ok(lines)
    }

    /// Returns when all that was said before is written, or nobody takes it; whether it is written.
    pub fn flush(&self) -> bool {
        let unwritten = |state: &mut State| !state.waiting.is_empty() || !state.idle;
        let waited = self.0.written.wait_timeout_while(self.0.state(), PATIENCE, unwritten);
        waited.is_ok_and(|(_, waited)| !waited.timed_out())
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.state();
        // Nothing comes behind what was dropped before that is said.
        if state.waiting.len() > MOST || state.dropped > 0 {
            state.dropped += memchr::memchr_iter(b'\n', bytes).count();
            return Ok(bytes.len());
        }
        state.waiting.extend_from_slice(bytes);
        if std::mem::take(&mut state.idle) {
            self.0.news.notify_one();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs for ever.
    fn write(&self, mut out: impl Write) {
        let mut lines = vec![];
        loop {
            let mut state = self.state();
            if state.waiting.is_empty() {
                state.idle = true;
                self.written.notify_all();
                while state.waiting.is_empty() {
                    state = self.news.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                drop(state);
                std::thread::sleep(GATHER);
                state = self.state();
            }
            std::mem::swap(&mut lines, &mut state.waiting);
            let dropped = std::mem::take(&mut state.dropped);
            drop(state);
            if dropped > 0 {
                let said = format!(
                    "rescind: {dropped} lines of the log were dropped: nobody had read those before them\n"
                );
                lines.extend_from_slice(said.as_bytes());
            }
            // Whoever read the log may have gone; that is no reason to end.
            let _ = out.write_all(&lines).and_then(|()| out.flush());
            lines.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    /// Takes as much as is asked for.
    struct Reader(SyncSender<Vec<u8>>);

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines() -> (Lines, Receiver<Vec<u8>>) {
        let (sender, receiver) = sync_channel(0);
        (Lines::new(Reader(sender)).unwrap(), receiver)
    }

    #[test]
    fn what_would_silence_the_log_is_a_mistake() {
        for words in
            ["", "info", "WARN", "off", "debug,tokio=warn", "rescind::control=debug", "rescind", "info,"]
        {
            assert!(filter(words).is_ok(), "{words:?}");
        }
        for words in ["inof", "garbage", "info,inof", "garbage=loud"] {
            assert!(filter(words).is_err(), "{words:?}");
        }
        assert_eq!(filter("").unwrap().to_string(), "info");
    }

    #[test]
    fn lines_are_written_in_order() {
        let (mut lines, read) = lines();
        let said: String = (0..200).map(|n| format!("line {n}\n")).collect();
        let length = said.len();
        let reading = std::thread::spawn(move || {
            let mut all = vec![];
            while all.len() < length {
                all.extend(read.recv().unwrap());
            }
            all
        });
        said.split_inclusive('\n').for_each(|line| lines.write_all(line.as_bytes()).unwrap());
        assert_eq!(String::from_utf8(reading.join().unwrap()).unwrap(), said);
    }

    #[test]
    fn nobody_waits_for_a_reader_and_what_was_dropped_is_counted() {
        let (mut lines, read) = lines();
        let line = [vec![b'x'; MOST], b"\n".to_vec()].concat();
        lines.write_all(b"first\n").unwrap();
        // The thread has taken it, and nobody takes it from there.
        while !lines.0.state().waiting.is_empty() {
            std::thread::sleep(GATHER);
        }
        (0..5).for_each(|_| lines.write_all(&line).unwrap());
        lines.write_all(b"dropped, too\n").unwrap();
        assert!(!Lines::flush(&lines));
        assert_eq!(read.recv().unwrap(), b"first\n");
        let rest = read.recv().unwrap();
        let said = String::from_utf8_lossy(&rest[line.len()..]).into_owned();
        assert!(
            rest.starts_with(&line) && said.starts_with("rescind: 5 lines of the log were dropped"),
            "{said}"
        );
        lines.write_all(b"last\n").unwrap();
        assert_eq!(read.recv().unwrap(), b"last\n");
    }

    #[test]
    fn the_last_lines_are_waited_for() {
        #[derive(Clone, Default)]
        struct Slow(Arc<Mutex<Vec<u8>>>);
        impl Write for Slow {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                std::thread::sleep(10 * GATHER);
                self.0.lock().unwrap().write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let slow = Slow::default();
        let mut lines = Lines::new(slow.clone()).unwrap();
        lines.write_all(b"last").unwrap();
        assert!(Lines::flush(&lines));
        assert_eq!(*slow.0.lock().unwrap(), b"last");
    }

    #[test]
    fn nobody_waits_for_ever_for_a_reader_that_is_gone() {
        let (mut lines, read) = lines();
        drop(read);
        lines.write_all(&vec![b'x'; 3 * MOST]).unwrap();
        lines.write_all(b"more").unwrap();
        Lines::flush(&lines);
    }
}

//! The log is written by a thread of its own, many lines at once: whoever has something to say does not wait until it is
//! written, unless far more has gathered than anybody reads.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes that wait to be written; beyond, whoever says more waits.
const MOST: usize = 1 << 20;
/// How long lines gather, so that each does not wake the thread.
const GATHER: Duration = Duration::from_millis(2);
/// How long the end of the process waits for somebody to take the last lines.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where lines are left to be written. What is left when the last handle is gone is still written, as long as the process
/// lives; [`Lines::flush`] waits for it.
#[derive(Clone, Debug)]
pub struct Lines(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// There is something to write.
    news: Condvar,
    /// Something was written.
    written: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
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

    /// Returns when all that was said before is written, or nobody takes it.
    pub fn flush(&self) {
        let unwritten = |state: &mut State| !state.waiting.is_empty() || !state.idle;
        drop(self.0.written.wait_timeout_while(self.0.state(), PATIENCE, unwritten));
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let full = |state: &mut State| state.waiting.len() > MOST;
        let waited = self.0.written.wait_while(self.0.state(), full);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
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
            drop(state);
            self.written.notify_all();
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
    fn whoever_says_too_much_waits_and_nothing_is_lost() {
        let (mut lines, read) = lines();
        let mut other = lines.clone();
        let long = vec![b'x'; MOST];
        let saying = std::thread::spawn(move || (0..5).for_each(|_| other.write_all(&long).unwrap()));
        let mut length = 0;
        while length < 3 * MOST {
            length += read.recv().unwrap().len();
            assert!(lines.0.state().waiting.len() <= 2 * MOST);
        }
        while !saying.is_finished() {
            length += read.recv_timeout(GATHER).map_or(0, |bytes| bytes.len());
        }
        while length < 5 * MOST {
            length += read.recv().unwrap().len();
        }
        lines.write_all(b"end").unwrap();
        assert_eq!(read.recv().unwrap(), b"end");
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
        Lines::flush(&lines);
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

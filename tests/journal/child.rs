//! A process of its own that keeps a journal, until it is killed.
//!
//! It is this test program again, told by an environment variable what to do. Its output is what the other side may
//! rely on: `+n` when the intent `n` was accepted, `-n` before it is done, `!…` for what was refused.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use rescind::config::Fsync;
use rescind::journal::{Journal, Scope};
use rescind::rules::Tag;

use crate::support::{options, run};

const ROLE: &str = "RESCIND_TEST_JOURNAL_CHILD";

/// What the process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Intends and completes, several at a time.
    Busy,
    /// The same with long tags, so that files are rewritten again and again.
    Rewriting,
    /// Intends until it is refused, waits for a line, and intends once more.
    Limited,
}

/// A running process; killed at the latest when dropped.
pub struct Running {
    child: Child,
    pub lines: BufReader<ChildStdout>,
}

impl Running {
    /// `wrapper` is a program that starts it, such as one that sets limits.
    pub fn start(role: Role, folder: &Path, fsync: Fsync, first: u64, wrapper: &[&str]) -> Self {
        let own = std::env::current_exe().unwrap();
        let mut words: Vec<_> = wrapper.iter().map(|word| (*word).into()).collect();
        words.push(own.into_os_string());
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .args(["child::child", "--exact", "--ignored", "--nocapture"])
            .env(ROLE, format!("{role:?} {fsync:?} {first} {}", folder.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn say(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// SIGKILL, at this instant.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }

    /// The next line that the process means.
    pub fn line(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            // The process is killed in the middle of a line: then it has not said it.
            if self.lines.read_line(&mut line).unwrap() == 0 || !line.ends_with('\n') {
                return None;
            }
            // The test program has things to say, too.
            if line.starts_with(['+', '-', '!', '=']) {
                return Some(line.trim_end().to_owned());
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

fn say(line: String) {
    std::io::stdout().write_all((line + "\n").as_bytes()).unwrap();
}

#[test]
#[ignore = "what other tests start"]
fn child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let words: Vec<_> = role.splitn(4, ' ').collect();
    let fsync = match words[1] {
        "Always" => Fsync::Always,
        "EverySec" => Fsync::EverySec,
        _ => Fsync::Never,
    };
    let (journal, recovered) = Journal::open(options(Path::new(words[3]), fsync)).unwrap();
    say(format!("={}", recovered.pending.len()));
    let first = words[2].parse().unwrap();
    match words[0] {
        "Busy" => busy(&journal, first, 0),
        "Rewriting" => busy(&journal, first, 50_000),
        _ => limited(&journal, first),
    }
}

fn tag(number: u64, padding: usize) -> Scope {
    Scope::Tags(vec![Tag::from(format!("{number}:{}", "x".repeat(padding)).as_bytes())])
}

/// Four threads, each with numbers of its own; of ten intents nine are done.
fn busy(journal: &Journal, first: u64, padding: usize) {
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for number in (first + thread..).step_by(4) {
                    // Few tags: only their latest times are kept.
                    let name = if number.is_multiple_of(10) { number } else { number % 8 };
                    let noted = run(journal.intend((tag(name, padding), number.to_string()))).unwrap();
                    say(format!("+{number}"));
                    if number % 10 != 0 {
                        say(format!("-{number}"));
                        journal.done(noted.id);
                    }
                    let rewrites = journal.describe().rewrites;
                    if number % 4 == 0 && rewrites > 0 {
                        say(format!("=rewritten {rewrites}"));
                    }
                }
            });
        }
    });
}

fn limited(journal: &Journal, first: u64) {
    let mut line = String::new();
    for number in first.. {
        match run(journal.intend((tag(number, 5000), number.to_string()))) {
            Ok(_) => say(format!("+{number}")),
            Err(text) => {
                say(format!("!{text}"));
                break;
            }
        }
    }
    std::io::stdin().read_line(&mut line).unwrap();
    match run(journal.intend((tag(first + 1000, 5000), (first + 1000).to_string()))) {
        Ok(_) => say(format!("+{}", first + 1000)),
        Err(text) => say(format!("!{text}")),
    }
    std::io::stdin().read_line(&mut line).unwrap();
}

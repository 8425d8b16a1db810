//! What is wrong with a configuration, where, and how that is shown.

use std::fmt;

use super::Config;
use crate::rules::spec::Problem;

/// Where a problem stands. Ordered as problems are shown.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The file as a whole.
    File,
    /// A line of the file, from 1.
    Line(u32),
    /// An environment variable.
    Variable(String),
    /// A flag, such as `--listen`.
    Flag(&'static str),
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblem {
    /// Where.
    pub place: Place,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl From<Problem> for ConfigProblem {
    fn from(problem: Problem) -> Self {
        let place = if problem.line == 0 { Place::File } else { Place::Line(problem.line) };
        Self { place, message: problem.message }
    }
}

/// A configuration that was read, with everything that is wrong in it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What could be read; defaults where something is wrong. To be run with only after [`Loaded::finish`].
    pub config: Config,
    /// The file as it was named.
    pub file_name: String,
    /// All problems, in the order of [`Place`].
    pub problems: Vec<ConfigProblem>,
    /// What is no error, but should be looked at; a line each.
    pub notes: Vec<String>,
}

impl Loaded {
    /// Adds the problems of compiling [`Config::rules`] and decides.
    ///
    /// # Errors
    /// All problems, if there is any.
    pub fn finish(mut self, rules: Vec<Problem>) -> Result<Config, ConfigErrors> {
        self.problems.extend(rules.into_iter().map(ConfigProblem::from));
        if self.problems.is_empty() {
            return Ok(self.config);
        }
        self.problems.sort_by(|a, b| a.place.cmp(&b.place));
        Err(ConfigErrors { file_name: self.file_name, problems: self.problems })
    }
}

/// Why a configuration cannot be used: at least one problem. Exit code 2.
///
/// Shown as one line per problem, `proxy.toml:12: message`, without a newline behind the last.
#[derive(Clone, Debug)]
pub struct ConfigErrors {
    /// The file as it was named.
    pub file_name: String,
    /// The problems, in the order of [`Place`].
    pub problems: Vec<ConfigProblem>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, ConfigProblem { place, message }) in self.problems.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            match place {
                Place::File => write!(f, "{}: {message}", self.file_name)?,
                Place::Line(line) => write!(f, "{}:{line}: {message}", self.file_name)?,
                Place::Variable(name) => write!(f, "{name}: {message}")?,
                Place::Flag(name) => write!(f, "{name}: {message}")?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

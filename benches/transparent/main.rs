//! What an application would notice of the proxy: memory of idle clients, huge values, slow neighbours, transactions.
//!
//! ```sh
//! cargo bench --bench transparent -- [--rescind PATH] [--quick] [--json FILE] [--only PART,...]
//! ```
//!
//! `--quick` does fewer and shorter rounds. Each part has a proxy and two redis-servers of its own: one behind the
//! proxy, and one for the direct connections, which must not pay for the proxy's feed. What is compared alternates
//! within one run, and medians are shown. A target that is missed is shown, and is no failure.

mod client;
mod huge;
mod idle;
mod neighbours;
mod process;
mod report;
mod transactions;

use std::path::PathBuf;
use std::process::ExitCode;

use process::Stage;
use report::Outcome;

/// Whatever goes wrong ends the run.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// A part's name, and what runs it.
type Part = (&'static str, fn(&Bench) -> Result<Outcome>);

const PARTS: [Part; 4] = [
    ("idle", idle::run),
    ("huge", huge::run),
    ("neighbours", neighbours::run),
    ("transactions", transactions::run),
];

/// What the command line says.
struct Bench {
    rescind: PathBuf,
    quick: bool,
    json: Option<PathBuf>,
    only: Option<Vec<String>>,
}

impl Bench {
    fn stage(&self) -> Result<Stage> {
        Stage::start(&self.rescind)
    }

    /// One of two values: for a full run or a quick one.
    fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    fn wants(&self, part: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only.iter().any(|name| name == part))
    }
}

fn main() -> ExitCode {
    match options().and_then(|bench| run(&bench)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("transparent: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(bench: &Bench) -> Result<()> {
    let origin = report::origin(&bench.rescind)?;
    let mut outcomes = Vec::new();
    for (name, part) in PARTS.into_iter().filter(|(name, _)| bench.wants(name)) {
        eprintln!("{name}");
        outcomes.push((name, part(bench)?));
    }
    println!("{}", report::table(&outcomes));
    match &bench.json {
        Some(path) => report::write_json(path, origin, bench.quick, &outcomes),
        None => Ok(()),
    }
}

fn options() -> Result<Bench> {
    let mut rescind = PathBuf::from(env!("CARGO_BIN_EXE_rescind"));
    let (mut quick, mut json, mut only) = (false, None, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} takes a value"));
        match argument.as_str() {
            "--rescind" => rescind = value()?.into(),
            "--json" => json = Some(value()?.into()),
            "--only" => only = Some(value()?.split(',').map(str::to_owned).collect::<Vec<_>>()),
            "--quick" => quick = true,
            // Cargo adds it.
            "--bench" => {}
            other => return Err(format!("no option {other}").into()),
        }
    }
    let unknown = only.iter().flatten().find(|name| PARTS.iter().all(|(part, _)| part != name));
    if let Some(name) = unknown {
        return Err(format!("--only: no part {name}").into());
    }
    let rescind =
        rescind.canonicalize().map_err(|error| format!("--rescind {}: {error}", rescind.display()))?;
    Ok(Bench { rescind, quick, json, only })
}

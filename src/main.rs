//! The `rescind` binary: command line in, exit code out.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;

use rescind::app::{App, Signals};
use rescind::cli::{Cli, Command, EXIT_USAGE};
use rescind::command::Commands;
use rescind::config::{self, Config};
use rescind::explain::explain;
use rescind::logging::{self, Lines};
use rescind::resp::OwnedArgs;
use rescind::rules::Rules;
use rescind::spawn;
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    if let Some(failure) = spawn::stand_in() {
        return failure;
    }
    let cli = Cli::read();
    let (config, rules) = match load(&cli, |note| eprintln!("{note}")) {
        Ok(loaded) => loaded,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match &cli.command {
        Some(Command::Check { .. }) => check(&cli, &Arc::new(rules)),
        Some(Command::Explain { db, request }) => {
            let args: OwnedArgs = request.iter().map(|arg| arg.as_encoded_bytes()).collect();
            let rules = Arc::new(rules);
            let (commands, mut matcher) = (Commands::builtin(), rules.matcher());
            let explained = explain(&commands, &mut matcher, *db, args.as_args(), &mut |_| vec![]);
            explained.lines.iter().for_each(|line| println!("{line}"));
            ExitCode::SUCCESS
        }
        None => run(cli, config, rules),
    }
}

/// Reads the configuration and says with `tell` what is remarkable about it.
fn load(cli: &Cli, tell: impl Fn(String)) -> Result<(Config, Rules), String> {
    let loaded = config::load(cli.config_file(), std::env::vars_os(), &cli.flags());
    loaded.notes.iter().cloned().for_each(&tell);
    let (rules, problems) = match Rules::compile(&loaded.config.rules) {
        Ok(rules) => (rules, vec![]),
        Err(problems) => (Rules::empty(), problems),
    };
    let config = loaded.finish(problems).map_err(|errors| errors.to_string())?;
    let known = Commands::builtin();
    for trigger in rules.triggers() {
        for name in &trigger.commands {
            if known.by_name(name).is_none() {
                tell(format!(
                    "{}: note: trigger \"{}\": {name} is not a command of Redis 7 or Valkey 8; a module's?",
                    cli.config_file().display(),
                    trigger.label
                ));
            }
        }
    }
    Ok((config, rules))
}

fn check(cli: &Cli, rules: &Arc<Rules>) -> ExitCode {
    let name = cli.config_file().display();
    for note in rules.notes() {
        println!("{name}: note: {note}");
    }
    let (families, triggers) = (rules.families().len() - 1, rules.triggers().len());
    println!("{name}: ok ({families} families, {triggers} triggers)");
    ExitCode::SUCCESS
}

fn run(cli: Cli, config: Config, rules: Rules) -> ExitCode {
    // First of all: from here on they end the process in order.
    let signals = match Signals::catch() {
        Ok(signals) => signals,
        Err(error) => return ended_by(&error, ExitCode::FAILURE),
    };
    let filter = match logging::filter(&std::env::var("RESCIND_LOG").unwrap_or_default()) {
        Ok(filter) => filter,
        Err(error) => return ended_by(&format!("RESCIND_LOG: {error}"), ExitCode::from(EXIT_USAGE)),
    };
    let mut lines = match Lines::new(std::io::stderr()) {
        Ok(lines) => lines,
        Err(error) => return ended_by(&error.to_string(), ExitCode::FAILURE),
    };
    log_to(&lines, filter);
    let dry_run = cli.dry_run;
    let begun = config.clone();
    let reload = Box::new(move || {
        let (config, rules) = load(&cli, |note| tracing::warn!("{note}"))?;
        let waiting = begun.needs_restart(&config);
        if !waiting.is_empty() {
            tracing::warn!("what has changed in {} takes a restart", waiting.join(", "));
        }
        Ok(rules)
    });
    let result = App::build(config, rules, dry_run, reload).and_then(|app| app.run(signals));
    if let Err(error) = &result {
        // Not past the log: if nobody reads that, nothing shall wait for a reader here.
        let _ = writeln!(lines, "rescind: {error}");
    }
    Lines::flush(&lines);
    if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn ended_by(error: &str, code: ExitCode) -> ExitCode {
    eprintln!("rescind: {error}");
    code
}

fn log_to(lines: &Lines, filter: EnvFilter) {
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer({
            let lines = lines.clone();
            move || lines.clone()
        })
        .init();
    // What was said before comes first.
    let (lines, tell) = (lines.clone(), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |panic| {
        // If nobody reads, nothing shall wait for a reader.
        if Lines::flush(&lines) {
            tell(panic);
        }
    }));
}

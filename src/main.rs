//! The `rescind` binary: command line in, exit code out.

use std::io::IsTerminal;
use std::process::ExitCode;

use rescind::app::App;
use rescind::cli::{Cli, Command, EXIT_USAGE};
use rescind::command::Commands;
use rescind::config::{self, Config};
use rescind::explain::explain;
use rescind::logging::Lines;
use rescind::resp::OwnedArgs;
use rescind::rules::Rules;
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::read();
    let (config, rules) = match load(&cli) {
        Ok(loaded) => loaded,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match &cli.command {
        Some(Command::Check { .. }) => check(&cli, &rules),
        Some(Command::Explain { db, request }) => {
            let args: OwnedArgs = request.iter().map(|arg| arg.as_encoded_bytes()).collect();
            let rules = std::sync::Arc::new(rules);
            let explained = explain(&Commands::builtin(), &mut rules.matcher(), *db, args.as_args());
            explained.lines.iter().for_each(|line| println!("{line}"));
            ExitCode::SUCCESS
        }
        None => run(cli, config, rules),
    }
}

fn load(cli: &Cli) -> Result<(Config, Rules), String> {
    let loaded = config::load(cli.config_file(), std::env::vars_os(), &cli.flags());
    let (rules, problems) = match Rules::compile(&loaded.config.rules) {
        Ok(rules) => (rules, vec![]),
        Err(problems) => (Rules::empty(), problems),
    };
    let config = loaded.finish(problems).map_err(|errors| errors.to_string())?;
    let known = Commands::builtin();
    for trigger in rules.triggers() {
        for name in &trigger.commands {
            if known.by_name(name).is_none() {
                eprintln!(
                    "{}: note: trigger \"{}\": {name} is not a command of Redis 7 or Valkey 8; a module's?",
                    cli.config_file().display(),
                    trigger.label
                );
            }
        }
    }
    Ok((config, rules))
}

fn check(cli: &Cli, rules: &Rules) -> ExitCode {
    let name = cli.config_file().display();
    for left_out in rules.tracking_prefixes().left_out {
        let trigger = &rules.triggers()[usize::from(left_out.trigger.0)].label;
        println!(
            "{name}: note: trigger \"{trigger}\": the prefix \"{}\" of its keys also begins cached keys, so writes \
             made past the proxy are not seen; give trigger keys a prefix of their own",
            String::from_utf8_lossy(&left_out.prefix)
        );
    }
    let (families, triggers) = (rules.families().len() - 1, rules.triggers().len());
    println!("{name}: ok ({families} families, {triggers} triggers)");
    ExitCode::SUCCESS
}

fn run(cli: Cli, config: Config, rules: Rules) -> ExitCode {
    let lines = match Lines::new(std::io::stderr()) {
        Ok(lines) => lines,
        Err(error) => {
            eprintln!("rescind: {error}");
            return ExitCode::FAILURE;
        }
    };
    log_to(&lines);
    let dry_run = cli.dry_run;
    let reload = Box::new(move || load(&cli).map(|(_, rules)| rules));
    let result = App::build(config, rules, dry_run, reload).and_then(App::run);
    lines.flush();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rescind: {error}");
            ExitCode::FAILURE
        }
    }
}

fn log_to(lines: &Lines) {
    let filter = EnvFilter::try_from_env("RESCIND_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
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
        lines.flush();
        tell(panic);
    }));
}

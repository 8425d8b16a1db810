//! Figures beside their targets: the table, and the JSON with all that was measured.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::Result;

/// What a part found: its figures, and the measurements they come from.
pub struct Outcome {
    pub figures: Vec<Figure>,
    pub raw: Value,
}

pub struct Figure {
    measure: String,
    value: f64,
    target: Option<Target>,
}

#[derive(Clone, Copy)]
enum Target {
    AtMost(f64),
    AtLeast(f64),
}

impl Figure {
    pub fn new(measure: impl Into<String>, value: f64) -> Self {
        Self { measure: measure.into(), value, target: None }
    }

    pub fn at_most(self, limit: f64) -> Self {
        Self { target: Some(Target::AtMost(limit)), ..self }
    }

    pub fn at_least(self, limit: f64) -> Self {
        Self { target: Some(Target::AtLeast(limit)), ..self }
    }

    fn target(&self) -> Option<String> {
        self.target.map(|target| match target {
            Target::AtMost(limit) => format!("≤ {limit}"),
            Target::AtLeast(limit) => format!("≥ {limit}"),
        })
    }

    fn met(&self) -> Option<bool> {
        self.target.map(|target| match target {
            Target::AtMost(limit) => self.value <= limit,
            Target::AtLeast(limit) => self.value >= limit,
        })
    }

    fn row(&self, part: &str) -> String {
        let digits = if self.value.fract() == 0.0 || self.value >= 1000.0 { 0 } else { 2 };
        let met = self.met().map_or("", |met| if met { "yes" } else { "no" });
        let target = self.target().unwrap_or_default();
        format!("| {part} | {} | {:.digits$} | {target} | {met} |", self.measure, self.value)
    }

    fn json(&self) -> Value {
        json!({ "measure": self.measure, "value": self.value, "target": self.target(), "met": self.met() })
    }
}

pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

pub fn table(outcomes: &[(&str, Outcome)]) -> String {
    let mut lines = vec!["| part | measure | value | target | met |".to_owned()];
    lines.push("| --- | --- | ---: | ---: | --- |".to_owned());
    for (part, outcome) in outcomes {
        lines.extend(outcome.figures.iter().map(|figure| figure.row(part)));
    }
    lines.join("\n")
}

pub fn write_json(path: &Path, mut origin: Value, quick: bool, outcomes: &[(&str, Outcome)]) -> Result<()> {
    let part = |(name, outcome): &(&str, Outcome)| {
        let figures: Vec<_> = outcome.figures.iter().map(Figure::json).collect();
        ((*name).to_owned(), json!({ "figures": figures, "raw": outcome.raw }))
    };
    origin["quick"] = quick.into();
    origin["results"] = Value::Object(outcomes.iter().map(part).collect());
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(path, format!("{origin:#}\n"))?;
    eprintln!("raw data: {}", path.display());
    Ok(())
}

/// When, on what machine and with which versions this is measured.
pub fn origin(rescind: &Path) -> Result<Value> {
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let model =
        cpus.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(": ").nth(1));
    let load = fs::read_to_string("/proc/loadavg")?;
    let load: f64 = load.split(' ').next().unwrap_or("").parse()?;
    Ok(json!({
        "date": first_line("date".as_ref(), &["-u", "-Iseconds"])?,
        "machine": {
            "cores": std::thread::available_parallelism()?.get(),
            "kernel": first_line("uname".as_ref(), &["-r"])?,
            "cpu": model,
            "load": load,
        },
        "versions": {
            "redis-server": first_line("redis-server".as_ref(), &["--version"])?,
            "rescind": first_line(rescind, &["--version"])?,
        },
    }))
}

fn first_line(program: &Path, arguments: &[&str]) -> Result<String> {
    let done = Command::new(program).args(arguments).output();
    let done = done.map_err(|error| format!("{}: {error}", program.display()))?;
    Ok(String::from_utf8_lossy(&done.stdout).lines().next().unwrap_or("").to_owned())
}

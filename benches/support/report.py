"""Results as Markdown, JSON and plots."""

import json
import os
import platform
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from .cases import CASES, DIRECT, HAPROXY, VALUE_BYTES, Case
from .charts import Group, bars
from .judge import Verdict
from .results import Results

FLAGS = {"haproxy": "-v", "nutcracker": "-V", "redis-server": "--version", "redis-benchmark": "--version"}


def provenance(*programs: str) -> dict:
    """When, on what machine and with which versions a result was measured."""
    cpu = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    present = [program for program in dict.fromkeys((*FLAGS, *programs)) if shutil.which(program)]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cores": os.cpu_count(),
            "kernel": platform.release(),
            "cpu": cpu[0] if cpu else platform.machine(),
            "load": os.getloadavg()[0],
        },
        "versions": {Path(program).name: _version(program) for program in present},
    }


def _version(program: str) -> str:
    flags = FLAGS.get(program, "--version")
    done = subprocess.run([program, flags], capture_output=True, text=True, timeout=20, check=False)
    lines = (done.stdout + done.stderr).strip().splitlines() or [""]
    return lines[0].replace(program, Path(program).name).strip()


def circumstances(origin: dict, others: float) -> str:
    """The machine and the versions, as a sentence. `others`: the share of the machine that other processes used."""
    versions = [f"{program} {_release(line)}" for program, line in origin["versions"].items()]
    machine = "shared machine" if others > 0.05 else "machine"
    return f"A {machine} with {origin['machine']['cores']} cores; {', '.join(versions)}."


def _release(line: str) -> str:
    """The version in what a program says about itself."""
    found = re.search(r"\d+(\.\d+)+", line)
    return found[0] if found else "of unknown version"


def markdown(results: Results, verdicts: list[Verdict], origin: dict) -> str:
    met, missed = ([v for v in verdicts if v.met is met] for met in (True, False))
    parts = [
        f"# Beside others, {origin['date'][:10]}",
        circumstances(origin, results.others()),
        "Every value is a median over rounds; a ratio is the median of the ratios of each round. Only the half of the "
        "rounds counts, but at least three, in which other processes took least of the machine.",
        "![rate](compare-rate.svg)",
        "![CPU](compare-cpu.svg)",
        "## Overview",
        "Rate over that of a direct connection, and the proxy's CPU per command.",
        overview(results, main_cases()),
        f"## Targets: {len(met)} of {len(verdicts)} are met",
        f"In bold: the same in every round that counts; {sum(v.always for v in met)} are met and "
        f"{sum(v.always for v in missed)} missed in each. The rest changes from round to round.",
        verdicts_table(verdicts),
        "## Everything",
        table(results),
    ]
    return "\n\n".join(parts) + "\n"


def plots(results: Results) -> dict[str, str]:
    measured = results.cases()
    cases = [case for case in main_cases() if case in measured]
    series = results.targets()
    rates = [Group(c.name, {t: results.ratio(c, t, DIRECT, "rate") for t in series}) for c in cases]
    cpus = [Group(c.name, {t: results.median(c, t, "proxy_cpu") for t in series if t != DIRECT}) for c in cases]
    return {
        "compare-rate": bars("Commands per second, relative to a direct connection", rates, series, line=1),
        "compare-cpu": bars("µs CPU of the proxy per command", cpus, [t for t in series if t != DIRECT]),
    }


def compact_json(data: dict) -> str:
    """One line for each entry of a list."""
    lines = []
    for name, value in data.items():
        if isinstance(value, list):
            rows = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in value)
            lines.append(f'"{name}": [\n{rows}\n ]')
        else:
            lines.append(f'"{name}": {json.dumps(value)}')
    return "{\n " + ",\n ".join(lines) + "\n}\n"


def overview(results: Results, cases: list[Case]) -> str:
    """A line for each target: rate over direct, and the proxy's CPU per command."""
    measured = results.cases()
    cases = [case for case in cases if case in measured]
    lines = ["| | " + " | ".join(case.name for case in cases) + " |", "| --- |" + " ---: |" * len(cases)]
    for target in results.targets():
        if target == DIRECT or not any(results.median(case, target, "rate") for case in cases):
            continue
        cells = []
        for case in cases:
            rate, cpu = results.ratio(case, target, DIRECT, "rate"), results.median(case, target, "proxy_cpu")
            cells.append("" if rate is None else f"{rate:.2f}, {number(cpu)} µs")
        lines.append(f"| {target} | {' | '.join(cells)} |")
    return "\n".join(lines)


def table(results: Results) -> str:
    """Everything, a line for each case and target."""
    lines = [
        "| case | target | commands/s | × direct | × haproxy | p50 ms | p99 ms | p99.9 ms | proxy µs CPU "
        "| Redis µs CPU | proxy RSS MiB |",
        "| --- | --- |" + " ---: |" * 9,
    ]
    for case in results.cases():
        for target in results.targets(case):
            columns = [case.name, target, f"{results.median(case, target, 'rate'):,.0f}"]
            columns += [number(results.ratio(case, target, other, "rate")) for other in (DIRECT, HAPROXY)]
            columns += [number(results.median(case, target, m), 3) for m in ("p50", "p99", "p999")]
            columns += [number(results.median(case, target, m)) for m in ("proxy_cpu", "redis_cpu")]
            columns.append(number(results.peak_mib(case, target), 1))
            lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def verdicts_table(verdicts: list[Verdict]) -> str:
    lines = ["| case | measure | target | value | over the rounds | met |", "| --- | --- | ---: | ---: | --- | --- |"]
    for v in verdicts:
        spread = f"{v.least:.2f} to {v.most:.2f}"
        answer = "yes" if v.met else "no"
        answer = f"**{answer}**" if v.always else answer
        lines.append(f"| {v.case} | {v.what} | {v.limit} | {v.value:.2f} | {spread} | {answer} |")
    return "\n".join(lines)


def number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def main_cases() -> list[Case]:
    """What the overview shows."""
    plain = [case for case in CASES if case.size == VALUE_BYTES and not case.unix and not case.labelled]
    return [case for case in plain if case.command in ("GET", "SET")]

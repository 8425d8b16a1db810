#!/usr/bin/env python3
"""Counts the instructions of the hot path under valgrind and compares them with benches/instructions.json.

    python3 benches/instructions.py [--update] [--only TEXT]

A count does not depend on the clock or on the machine's load: it says what a change costs also where times say
nothing. A case that takes more than the tolerance beyond what is noted fails; one that takes less is reported, so that
the better count can be noted with `--update`.

The counts hold for one compiler and one kind of processor. With another one nothing is compared, which is said and is no
failure.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTED = ROOT / "benches/instructions.json"
# What is beyond it is a change of the code. The same code compiles a little differently when something else changes, of
# which small counts show more; hash seeds and the like make a difference of less than one percent.
TOLERANCE, FREE = 0.08, 30
# Each case runs twice. What both runs have in common, such as starting, is not counted.
FEW, MANY = 1600, 4800
# What takes little is done so many times as often, because starting is not the same each time.
OFTEN = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="note the counts in place of what is noted")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases with this in their name")
    options = parser.parse_args()
    noted = json.loads(NOTED.read_text()) if NOTED.exists() else {"origin": None, "counts": {}}
    here = origin()
    if not options.update and noted["origin"] != here:
        print(f"instructions are NOT compared: noted with {noted['origin']}, and this is {here}")
        print("after a change of the compiler: git stash, make instructions UPDATE=1, git stash pop")
        return 0
    counts = count(build(), options.only)
    if options.update:
        counts = {**noted["counts"], **counts} if noted["origin"] == here and options.only else counts
        NOTED.write_text(json.dumps({"origin": here, "counts": counts}, indent=2) + "\n")
        print("\n".join(f"{value:10,.0f}  {name}" for name, value in counts.items()))
        return 0
    return compare(counts, noted["counts"])


def origin() -> dict[str, str]:
    """What the counts depend on, besides the code."""
    compiler = output("rustc", "--version").strip()
    flags = Path("/proc/cpuinfo").read_text() if platform.system() == "Linux" else ""
    vectors = "avx2" if re.search(r"\bavx2\b", flags) else "no avx2"
    return {"compiler": compiler, "processor": f"{platform.machine()}, {vectors}"}


def build() -> str:
    """The benchmark's binary, as optimized as the one that users run."""
    arguments = "bench --locked --bench instructions --no-run --message-format json-render-diagnostics"
    for line in output("cargo", *arguments.split(), cwd=ROOT).splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == "instructions":
            return message["executable"]
    raise SystemExit("cargo built no benchmark")


def count(binary: str, only: str) -> dict[str, float]:
    """Instructions per repetition of each case."""
    cases = [name for name in output(binary).splitlines() if only in name]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(cases, pool.map(lambda name: per_repetition(binary, name), cases), strict=True))


def per_repetition(binary: str, case: str) -> float:
    times = 1 if case.startswith("relay") else OFTEN
    few, many = (total(binary, case, n * times) for n in (FEW, MANY))
    return round((many - few) / (MANY - FEW) / times, 1)


def total(binary: str, case: str, repetitions: int) -> int:
    tool = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    # valgrind counts each step of the one instruction with which libc copies much where the addresses suit it.
    calm = {**os.environ, "GLIBC_TUNABLES": "glibc.cpu.x86_rep_movsb_threshold=1000000000"}
    command = [*tool, binary, case, str(repetitions)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=calm)
    found = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    if done.returncode or not found:
        raise SystemExit(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    return int(found[1].replace(",", ""))


def compare(counts: dict[str, float], noted: dict[str, float]) -> int:
    worse = []
    for name, now in counts.items():
        before = noted.get(name)
        change = now / before - 1 if before else 0.0
        verdict = ""
        if before is None:
            verdict = "NOT NOTED"
        elif now > before * (1 + TOLERANCE) + FREE:
            verdict = "MORE"
        elif now < before * (1 - TOLERANCE) - FREE:
            verdict = "less"
        if verdict in ("MORE", "NOT NOTED"):
            worse.append(name)
        print(f"{now:10,.0f}  {change:+7.1%}  {name}  {verdict}".rstrip())
    print(f"instructions per repetition, and the change since they were noted (tolerance {TOLERANCE:.0%} and {FREE})")
    if worse:
        print(f"too many instructions: {', '.join(worse)}", file=sys.stderr)
        print("if that has a good reason: make instructions UPDATE=1", file=sys.stderr)
        return 1
    return 0


def output(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())

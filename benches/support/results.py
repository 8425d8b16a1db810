"""What the rounds measured, and what follows from it."""

import statistics
from dataclasses import dataclass, fields

from .cases import CASES, TARGETS, Case


@dataclass
class Cell:
    """One run of redis-benchmark. Latencies in milliseconds, CPU in microseconds per command."""

    rate: float
    p50: float
    p99: float
    p999: float
    redis_cpu: float
    proxy_cpu: float | None
    rss_kib: int | None


MEASURES = [field.name for field in fields(Cell)]


class Results:
    """Cells by case and target, one for each round."""

    def __init__(self) -> None:
        self.cells: dict[tuple[Case, str], list[Cell]] = {}

    def add(self, case: Case, target: str, cell: Cell) -> None:
        self.cells.setdefault((case, target), []).append(cell)

    def cases(self) -> list[Case]:
        measured = {case for case, _ in self.cells}
        return [case for case in CASES if case in measured]

    def targets(self, case: Case | None = None) -> list[str]:
        measured = {target for of, target in self.cells if case in (None, of)}
        return [target for target in TARGETS if target in measured]

    def median(self, case: Case, target: str, measure: str) -> float | None:
        """Over the rounds; none if it was not measured."""
        values = self.values(case, target, measure)
        return statistics.median(values) if values else None

    def values(self, case: Case, target: str, measure: str) -> list[float]:
        cells = self.cells.get((case, target), [])
        return [value for cell in cells if (value := getattr(cell, measure)) is not None]

    def ratio(self, case: Case, target: str, other: str, measure: str) -> float | None:
        """The median of the ratios of each round: what slows the machine down for a while slows both."""
        ratios = self.ratios(case, target, other, measure)
        return statistics.median(ratios) if ratios else None

    def ratios(self, case: Case, target: str, other: str, measure: str) -> list[float]:
        pairs = zip(self.values(case, target, measure), self.values(case, other, measure), strict=False)
        return [a / b for a, b in pairs if b]

    def best(self, case: Case, targets: tuple[str, ...], measure: str) -> str | None:
        """Of these targets the one with the highest rate, or the lowest of anything else."""
        known = {t: value for t in targets if (value := self.median(case, t, measure)) is not None}
        if not known:
            return None
        return max(known, key=known.__getitem__) if measure == "rate" else min(known, key=known.__getitem__)

    def raw(self) -> list[dict]:
        return [
            {"case": case.name, "target": target, **{m: self.values(case, target, m) for m in MEASURES}}
            for case in self.cases()
            for target in self.targets(case)
        ]

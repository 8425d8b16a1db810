"""What the rounds measured, and what follows from it."""

import statistics
from dataclasses import fields

from .cases import CASES, TARGETS, Case
from .cell import Cell

MEASURES = [field.name for field in fields(Cell)]


class Results:
    """Cells by case and target, one for each round.

    Other processes disturb some rounds more than others, so only the quieter half of them counts, if that leaves three.
    """

    def __init__(self) -> None:
        self.cells: dict[tuple[Case, str], list[Cell]] = {}

    @classmethod
    def of(cls, raw: list[dict]) -> "Results":
        """What `raw` gave earlier."""
        results, by_name = cls(), {case.name: case for case in CASES}
        for row in raw:
            for values in zip(*(row[measure] for measure in MEASURES), strict=True):
                results.add(by_name[row["case"]], row["target"], Cell(*values))
        return results

    def add(self, case: Case, target: str, cell: Cell) -> None:
        self.cells.setdefault((case, target), []).append(cell)

    def cases(self) -> list[Case]:
        measured = {case for case, _ in self.cells}
        return [case for case in CASES if case in measured]

    def targets(self, case: Case | None = None) -> list[str]:
        measured = {target for of, target in self.cells if case in (None, of)}
        return [target for target in TARGETS if target in measured]

    def median(self, case: Case, target: str, measure: str) -> float | None:
        """None if it was not measured."""
        values = [getattr(cells[0], measure) for cells in self.rounds(case, target)]
        known = [value for value in values if value is not None]
        return statistics.median(known) if known else None

    def ratio(self, case: Case, target: str, other: str, measure: str) -> float | None:
        """The median of the ratios of each round: what slows the machine down for a while slows both."""
        ratios = self.ratios(case, target, other, measure)
        return statistics.median(ratios) if ratios else None

    def ratios(self, case: Case, target: str, other: str, measure: str) -> list[float]:
        pairs = [(getattr(a, measure), getattr(b, measure)) for a, b in self.rounds(case, target, other)]
        return [a / b for a, b in pairs if a is not None and b]

    def rounds(self, case: Case, *targets: str) -> list[tuple[Cell, ...]]:
        """The cells of these targets in each round that counts."""
        together = list(zip(*(self.cells.get((case, target), []) for target in targets), strict=False))
        together.sort(key=lambda cells: max(cell.others for cell in cells))
        return together[: max(3, (len(together) + 1) // 2)]

    def best(self, case: Case, targets: tuple[str, ...], measure: str) -> str | None:
        """Of these targets the one with the highest rate, or the lowest of anything else."""
        known = {t: value for t in targets if (value := self.median(case, t, measure)) is not None}
        if not known:
            return None
        return max(known, key=known.__getitem__) if measure == "rate" else min(known, key=known.__getitem__)

    def peak_mib(self, case: Case, target: str) -> float | None:
        """The largest resident size in any round."""
        sizes = [cell.rss_kib for cell in self.cells.get((case, target), []) if cell.rss_kib is not None]
        return max(sizes) / 1024 if sizes else None

    def others(self) -> float:
        """The median over all cells."""
        return statistics.median(cell.others for cells in self.cells.values() for cell in cells)

    def raw(self) -> list[dict]:
        return [
            {
                "case": case.name,
                "target": target,
                **{m: [_rounded(getattr(cell, m)) for cell in self.cells[case, target]] for m in MEASURES},
            }
            for case in self.cases()
            for target in self.targets(case)
        ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")

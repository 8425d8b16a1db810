"""The targets that Rescind has set itself beside others, and whether a run meets them."""

from collections.abc import Iterator
from dataclasses import dataclass

from .cases import CLIENTS, DIRECT, HAPROXY, MANY, PEERS, RESCIND, Case
from .results import Results

RSS_LIMIT_MIB = 64


@dataclass
class Verdict:
    """One target in one case. `least` and `most`: over the rounds. `always`: every round says the same."""

    what: str
    case: str
    limit: str
    value: float
    least: float
    most: float
    met: bool
    always: bool


def judge(results: Results) -> list[Verdict]:
    verdicts = [verdict for case in results.cases() for verdict in _of_case(results, case)]
    peaks = {case: mib for case in results.cases() if (mib := results.peak_mib(case, RESCIND)) is not None}
    if peaks:
        case = max(peaks, key=peaks.__getitem__)
        largest = peaks[case]
        met = largest <= RSS_LIMIT_MIB
        where, limit = f"largest: {case.name}", f"≤ {RSS_LIMIT_MIB}"
        verdicts.append(Verdict("MiB of RSS", where, limit, largest, min(peaks.values()), largest, met, True))
    return verdicts


def _of_case(results: Results, case: Case) -> Iterator[Verdict]:
    """Large values are beside haproxy and the peers only: copying them is most of the work. One client is beside these
    only as well: Redis reads and answers its commands one by one, whatever is between."""

    def ratio(what: str, other: str | None, measure: str, limit: float) -> Iterator[Verdict]:
        ratios = results.ratios(case, RESCIND, other, measure) if other else []
        if ratios:
            yield _verdict(f"{what} / {other}", case, limit, ratios, at_least=measure == "rate")

    def peer(measure: str) -> str | None:
        return results.best(case, PEERS, measure)

    piped, alone = case.pipeline >= 16, case.clients == 1
    yield from ratio("rate", peer("rate"), "rate", 1.15 if piped else 1)
    if case.pipeline <= 16:
        yield from ratio("rate", HAPROXY, "rate", 1)
    if case.size <= 4096:
        if piped:
            yield from ratio("rate", DIRECT, "rate", 0.85)
        elif not alone:
            yield from ratio("rate", DIRECT, "rate", 1)
            yield from ratio("Redis CPU", DIRECT, "redis_cpu", 0.4)
    yield from ratio("CPU", peer("proxy_cpu"), "proxy_cpu", 0.7 if piped else 1)
    if alone:
        yield from ratio("p50", peer("p50"), "p50", 1)
    if alone or case.clients == CLIENTS:
        yield from ratio("p99", peer("p99"), "p99", 1)
    many = results.ratios(case, MANY, RESCIND, "proxy_cpu")
    if many:
        yield _verdict("CPU, 1,000 patterns / sample rules", case, 1.1, many, at_least=False)


def _verdict(what: str, case: Case, limit: float, ratios: list[float], *, at_least: bool) -> Verdict:
    ratios = sorted(ratios)
    middle = (ratios[(len(ratios) - 1) // 2] + ratios[len(ratios) // 2]) / 2
    each = [ratio >= limit if at_least else ratio <= limit for ratio in (middle, *ratios)]
    shown = [round(ratio, 4) for ratio in (middle, ratios[0], ratios[-1])]
    return Verdict(what, case.name, f"{'≥' if at_least else '≤'} {limit:g}", *shown, each[0], len(set(each)) == 1)

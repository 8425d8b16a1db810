"""Short runs one after the other, for every day."""

from dataclasses import replace
from typing import Any

from options import Options
from soak import soak

SMALL = ("pause-proxy", "pause-redis", "kill-connections", "kill-feeds", "flush", "script-flush", "evict", "reload")
DATA_LOST = ("kill-redis", "snapshot", "failover")


def quick(options: Options) -> bool:
    """Whether all phases did as they should."""
    # Few keys, so that little time finds much. Ended by the clock, unless the machine is so slow that hardly anything is done.
    base = replace(options, reads=500, triggers=30, posts=12, direct=1, apps=2)
    phases: list[tuple[str, float, dict[str, Any]]] = [
        ("no proxy: the oracle must find stale reads", 3, {"naive": True, "expect_violations": True}),
        ("no protection: likewise", 6, {"stale_fill": "off", "expect_violations": True}),
        ("no protection, and none needed: it must find none", 3, {"stale_fill": "off", "careful": True, "posts": 24}),
        ("no faults", 4, {}),
        # Nothing is known yet of how these clients use their connections.
        *[("busy from the first moment", 0.5, {"posts": 4, "seed": options.seed + n}) for n in range(3)],
        ("small faults", 6, {"faults": SMALL, "light_every": 0.2}),
        # Their fills are hardly believed for a fill window after each crash.
        ("proxies killed", 8, {"faults": ("kill-proxy", "stop-proxy"), "heavy_every": 1.5, "fill_window": 2}),
        ("data lost", 8, {"faults": DATA_LOST, "heavy_every": 0.5}),
    ]
    failed = []
    for name, seconds, what in phases:
        print(f"== {name}")
        if not soak(replace(base, seconds_min=seconds, seconds_max=seconds + 20, **what)):
            failed.append(name)
    print("== failed: " + "; ".join(failed) if failed else "== all phases passed")
    return not failed

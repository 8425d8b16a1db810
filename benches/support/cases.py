"""What is compared: the loads, the keys they need, and who takes part in them."""

from dataclasses import dataclass

from .load import CLIENTS, KEYS, RANDOM, VALUE_BYTES
from .process import Address, Connection

KIB = 1024
SIZES = {VALUE_BYTES: "100 B", 4 * KIB: "4 KiB", 256 * KIB: "256 KiB", 1024 * KIB: "1 MiB"}
# As many keys as hold some megabytes together.
KEYS_OF_SIZE = {VALUE_BYTES: KEYS, 4 * KIB: 2_000, 256 * KIB: 40, 1024 * KIB: 16}
# A rule of the sample proxy.toml names them.
LABELLED = "app:1:blog_posts_"

DIRECT, HAPROXY, TWEMPROXY, ENVOY, PREDIXY = "direct", "haproxy", "twemproxy", "Envoy", "predixy"
RESCIND, MANY, BARE = "rescind", "rescind, 1,000 patterns", "rescind, no rules"
TARGETS = (DIRECT, HAPROXY, TWEMPROXY, ENVOY, PREDIXY, RESCIND, MANY, BARE)
# They understand RESP, so they could do what Rescind does.
PEERS = (TWEMPROXY, ENVOY, PREDIXY)


@dataclass(frozen=True)
class Case:
    """One kind of load."""

    command: str
    pipeline: int = 1
    clients: int = CLIENTS
    size: int = VALUE_BYTES
    labelled: bool = False
    unix: bool = False

    @property
    def name(self) -> str:
        parts = [self.command, f"pipeline {self.pipeline}"]
        parts += [f"{self.clients} client{'s' * (self.clients > 1)}"] if self.clients != CLIENTS else []
        parts += [SIZES[self.size]] if self.size != VALUE_BYTES else []
        parts += ["labelled"] * self.labelled + ["Unix sockets"] * self.unix
        return ", ".join(parts)

    @property
    def targets(self) -> tuple[str, ...]:
        if self.labelled:
            return (DIRECT, HAPROXY, PREDIXY, RESCIND, MANY)
        plain = self.command in ("GET", "SET") and self.clients == CLIENTS and self.size == VALUE_BYTES
        return TARGETS if plain and not self.unix else TARGETS[:6]

    @property
    def large(self) -> bool:
        return self.size >= 256 * KIB

    @property
    def keys(self) -> int:
        return KEYS_OF_SIZE[self.size]

    @property
    def prefix(self) -> str:
        if self.labelled:
            return LABELLED
        return "key:" if self.size == VALUE_BYTES else f"key{self.size}:"

    def words(self) -> tuple[str, ...]:
        """The command without the value of a SET, which may be too long for a command line."""
        key = f"{self.prefix}{RANDOM}"
        if self.command == "MSET":
            return ("MSET", *(word for _ in range(10) for word in (key, "x" * self.size)))
        if self.command == "LRANGE_100":
            return ("LRANGE", "list", "0", "99")
        return (self.command, key)

    def value(self) -> bytes | None:
        return b"x" * self.size if self.command == "SET" else None

    def few(self) -> int:
        """Requests that are enough to guess the rate from, on any machine."""
        if self.large:
            return 2 * self.clients
        return self.clients * self.pipeline * 10 if self.clients > 1 else 1000


def _both(**options) -> list[Case]:
    return [Case("GET", **options), Case("SET", **options)]


CASES = [
    *(case for pipeline in (1, 16, 64) for case in _both(pipeline=pipeline)),
    *_both(clients=1),
    *_both(clients=500),
    *(Case(command, pipeline) for command in ("MSET", "LRANGE_100") for pipeline in (1, 16)),
    *(case for pipeline in (1, 16) for case in _both(size=4 * KIB, pipeline=pipeline)),
    *_both(size=256 * KIB),
    *_both(size=1024 * KIB),
    *(case for pipeline in (1, 16, 64) for case in _both(labelled=True, pipeline=pipeline)),
    *(case for pipeline in (1, 16) for case in _both(unix=True, pipeline=pipeline)),
]
QUICK = [
    *_both(),
    *_both(pipeline=16),
    Case("GET", clients=1),
    Case("GET", clients=500),
    Case("GET", size=256 * KIB),
    Case("SET", labelled=True, pipeline=16),
]


def fill(address: Address, cases: list[Case]) -> None:
    """Every key that the cases may ask for, so that each GET is a hit."""
    with Connection(address) as redis:
        redis.call("DEL", "list")
        redis.call("RPUSH", "list", *["x" * VALUE_BYTES] * 100)
        for prefix, size, keys in sorted({(c.prefix, c.size, c.keys) for c in cases}):
            redis.pipeline((("SET", f"{prefix}{n:012d}", "x" * size) for n in range(keys)), batch=200)

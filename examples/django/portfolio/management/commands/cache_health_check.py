"""`manage.py cache_health_check`: exit code 0 if the cache works, 1 if not."""

import json
import statistics
import time
import uuid
from dataclasses import asdict, dataclass
from typing import Any

from django.conf import settings
from django.core.cache import caches
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django_redis.client import DefaultClient
from redis import Redis
from redis.exceptions import ResponseError

PINGS = 5


@dataclass
class Report:
    alias: str
    healthy: bool = False
    server: str | None = None  # "rescind" or "redis"
    latency_ms: float | None = None
    round_trip: bool = False
    error: str | None = None


class Command(BaseCommand):
    help = "Checks the cache: ping, set/get/delete, and whether Rescind is in between."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--alias", default="default", choices=list(settings.CACHES))
        parser.add_argument("--json", action="store_true", help="print one JSON object")
        parser.add_argument(
            "--require-rescind",
            action="store_true",
            help="a plain Redis counts as unhealthy: it invalidates nothing",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        report = check(options["alias"], options["require_rescind"])
        if options["json"]:
            self.stdout.write(json.dumps(asdict(report)))
        else:
            self._print(report)
        if not report.healthy:
            raise CommandError(report.error or "the cache is unhealthy")

    def _print(self, report: Report) -> None:
        servers = {
            "rescind": "Rescind (TAG.INFO answers)",
            "redis": "plain Redis: nothing invalidates cached pages",
            None: "unreachable",
        }
        latency = "-" if report.latency_ms is None else f"{report.latency_ms:.2f} ms"
        style = self.style.SUCCESS if report.healthy else self.style.ERROR
        verdict = "healthy" if report.healthy else "UNHEALTHY"
        self.stdout.write(f"cache       {report.alias}")
        self.stdout.write(f"talks to    {servers[report.server]}")
        self.stdout.write(f"latency     {latency} (median of {PINGS} pings)")
        self.stdout.write(f"round trip  {'ok' if report.round_trip else 'failed'}")
        self.stdout.write(f"verdict     {style(verdict)}")


def check(alias: str, require_rescind: bool = False) -> Report:
    report = Report(alias)
    try:
        # The backend's client raises what IGNORE_EXCEPTIONS would hide.
        client: DefaultClient = caches[alias].client
        redis = client.get_client(write=True)
        report.latency_ms = round(measure_latency(redis), 3)
        report.server = "rescind" if is_rescind(redis) else "redis"
        report.round_trip = round_trip(client)
        if not report.round_trip:
            report.error = "a value came back changed, or stayed after its deletion"
        elif require_rescind and report.server != "rescind":
            report.error = "plain Redis, but Rescind is required"
    except Exception as error:  # a health check reports whatever is wrong
        report.error = f"{type(error).__name__}: {error}"
    report.healthy = report.error is None
    return report


def measure_latency(redis: Redis) -> float:
    """The median time of a PING in milliseconds, after one that connects."""
    redis.ping()
    times = []
    for _ in range(PINGS):
        start = time.perf_counter()
        redis.ping()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


def is_rescind(redis: Redis) -> bool:
    try:
        redis.execute_command("TAG.INFO")
    except ResponseError as error:
        # NOPERM: somebody knows the command and forbids it.
        return "unknown command" not in str(error)
    return True


def round_trip(client: DefaultClient) -> bool:
    key, value = f"health_check:{uuid.uuid4()}", {"sent": "x" * 100}
    client.set(key, value, timeout=30)
    try:
        same = client.get(key) == value
    finally:
        client.delete(key)
    return same and client.get(key) is None

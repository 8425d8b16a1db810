"""Servers that run for as long as a benchmark needs them, and connections to them."""

import contextlib
import itertools
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

# A port of the loopback interface, or the path of a Unix socket.
Address = int | str


@dataclass
class Daemon:
    """A process that listens at `address`: running inside `with`, stopped by pid at its end."""

    name: str
    command: list[str]
    directory: Path
    address: Address
    admin: int = 0
    env: dict[str, str] | None = None

    @property
    def port(self) -> int:
        assert isinstance(self.address, int), f"{self.name} listens at a Unix socket"
        return self.address

    @property
    def log(self) -> Path:
        return self.directory / f"{self.name}.out"

    def __enter__(self) -> "Daemon":
        # A session of its own: Ctrl-C reaches this script, which then stops the process.
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.directory, env=self.env, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            self.wait_for(lambda: connects(self.address), 10)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(12)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def wait_ready(self, seconds: float = 60, pause: float = 0.01) -> None:
        """Until /readyz answers 200: the index is complete."""
        self.wait_for(lambda: http_status(self.admin, "/readyz") == 200, seconds, pause)

    def wait_for(self, condition: Callable[[], bool], seconds: float, pause: float = 0.02) -> None:
        until = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None or time.monotonic() > until:
                tail = self.log.read_text(errors="replace")[-2000:]
                raise SystemExit(f"{self.name} is not ready: {' '.join(self.command)}\n{tail}")
            time.sleep(pause)

    def settle(self, seconds: float = 5) -> None:
        """Waits until it has done what it put off, so that this counts for what caused it, and for nothing else."""
        until = time.monotonic() + seconds
        pause = 0.05
        while time.monotonic() < until:
            before = self.cpu_seconds()
            time.sleep(pause)
            if self.cpu_seconds() - before < 0.04 * pause:
                break

    def cpu_seconds(self) -> float:
        """User and system time of all threads so far, by the clock of the process: /proc counts in ticks of 10 ms."""
        return time.clock_gettime((~self.process.pid << 3) | 2)

    def rss_kib(self, field: str = "VmRSS") -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{field}:"))

    def peak_kib(self) -> int:
        """The largest resident size since `reset_peak`, or ever."""
        return self.rss_kib("VmHWM")

    def reset_peak(self) -> None:
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")


class Connection:
    """A blocking RESP2 connection: as much of the protocol as the benchmarks need."""

    def __init__(self, address: Address, timeout: float = 120) -> None:
        self.socket = connect(address, timeout)
        self.replies = self.socket.makefile("rb", 1 << 16)

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.replies.close()
        self.socket.close()

    def call(self, *arguments: str | bytes):
        self.socket.sendall(encode(arguments))
        return self.reply()

    def pipeline(self, commands: Iterable[tuple], batch: int = 5000) -> None:
        """Send many commands, and read all replies; the first error ends it."""
        commands = iter(commands)
        while chunk := [encode(command) for command in itertools.islice(commands, batch)]:
            self.socket.sendall(b"".join(chunk))
            for _ in chunk:
                self.reply()

    def reply(self):
        line = self.replies.readline()
        if not line.endswith(b"\r\n"):
            raise SystemExit("the connection was closed")
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise SystemExit(f"error reply: {rest.decode()}")
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self.replies.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return [self.reply() for _ in range(int(rest))]
        return rest


def encode(arguments: tuple) -> bytes:
    parts = [a if isinstance(a, bytes) else str(a).encode() for a in arguments]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(p), p) for p in parts)


def connect(address: Address, timeout: float) -> socket.socket:
    if isinstance(address, int):
        connected = socket.create_connection(("127.0.0.1", address), timeout)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connected
    connected = socket.socket(socket.AF_UNIX)
    connected.settimeout(timeout)
    connected.connect(address)
    return connected


def connects(address: Address) -> bool:
    with contextlib.suppress(OSError), connect(address, 1):
        return True
    return False


def http_status(port: int, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def folder(text: str) -> Path:
    """As an option; what is started in another one finds it all the same."""
    return Path(text).resolve()


def found(program: str) -> str | None:
    """Where a program is, for what starts it in another directory; none if it is not there."""
    path = shutil.which(program)
    return path and os.path.abspath(path)


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def clean_environment() -> dict[str, str]:
    """Without what would override a configuration."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RESCIND_")}

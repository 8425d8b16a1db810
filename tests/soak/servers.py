"""The real things under test: a redis-server, now and then another one on its port, and processes of rescind."""

import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import redis

from access import connect

PATIENCE = 60
_WEB = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Trouble(Exception):
    """A server does not do what it must: not a stale read, but an error all the same."""


def free_ports(count: int) -> list[int]:
    """All at once, so that they differ."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def wait(what: str, check: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Until `check` neither fails nor says no."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if check():
                return
        except (OSError, redis.RedisError):
            pass
        time.sleep(0.02)
    raise Trouble(f"not in time: {what}")


class Server:
    """A process that may be paused, killed and started again."""

    def __init__(self, name: str, command: list[str], log: Path) -> None:
        self.name = name
        self.command = command
        self.log = log
        # Its end is the harness's doing.
        self.stopping = False
        self.peak_kib = 0
        # Between its end and its start it has not died by itself.
        self.lock = threading.Lock()
        self.process = self._spawn()

    def _spawn(self) -> subprocess.Popen[bytes]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("RESCIND_")}
        with self.log.open("ab") as output:
            return subprocess.Popen(
                self.command, env=env | {"NO_COLOR": "1"}, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def start(self) -> None:
        with self.lock:
            self.process = self._spawn()
            self.stopping = False

    def end(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Its exit code."""
        with self.lock:
            self.stopping = True
            self.process.send_signal(number)
            self.process.send_signal(signal.SIGCONT)
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise Trouble(f"{self.name} did not end after {number.name}") from None

    def pause(self, seconds: float) -> None:
        # The one that was stopped: there may be another one by then.
        process = self.process
        process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        process.send_signal(signal.SIGCONT)

    def died(self) -> int | None:
        """The exit code of a process that ended by itself."""
        with self.lock:
            return None if self.stopping else self.process.poll()

    def look_at_memory(self) -> None:
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return
        if found := re.search(r"VmRSS:\s+(\d+)", status):
            self.peak_kib = max(self.peak_kib, int(found[1]))


class Redis(Server):
    """On one port for the whole run, whoever serves there."""

    def __init__(self, folder: Path, port: int, master: int | None = None) -> None:
        folder.mkdir()
        self.folder = folder
        self.port = port
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(folder)]
        command += ["--enable-debug-command", "local", "--repl-diskless-sync-delay", "0"]
        if master is not None:
            command += ["--replicaof", "127.0.0.1", str(master)]
        super().__init__("redis", command, folder / "redis.log")
        # One connection per command: it may be killed, and so may the server.
        self.admin = connect(port)
        self.ready()

    def ready(self) -> None:
        wait("redis-server answers", self.admin.ping)

    def follows(self) -> bool:
        return self.admin.info("replication").get("master_link_status") == "up"

    def promote(self, port: int) -> None:
        """Takes over the port of a master that is dead."""
        self.port = port
        self.admin.config_set("port", port)
        self.admin = connect(port)
        self.command[self.command.index("--port") + 1] = str(port)
        if "--replicaof" in self.command:
            del self.command[self.command.index("--replicaof") :]

    def snapshot(self) -> Path:
        """The data of this moment."""
        self.admin.save()
        return Path(shutil.copy(self.folder / "dump.rdb", self.folder / "kept.rdb"))

    def restore(self, snapshot: Path | None) -> None:
        """What it starts with next: old data, or nothing."""
        current = self.folder / "dump.rdb"
        if snapshot:
            shutil.copy(snapshot, current)
        else:
            current.unlink(missing_ok=True)


class Proxy(Server):
    """One process of rescind."""

    def __init__(self, number: int, binary: Path, config: Path, listen: int, admin: int) -> None:
        self.number = number
        self.listen = listen
        self.admin = admin
        super().__init__(f"proxy {number}", [str(binary), "--config", str(config)], config.with_suffix(".log"))

    def fetch(self, path: str) -> str:
        with _WEB.open(f"http://127.0.0.1:{self.admin}{path}", timeout=5) as response:
            text: str = response.read().decode()
            return text

    def ready(self) -> None:
        try:
            wait(f"{self.name} is ready", lambda: self.died() is not None or self.fetch("/readyz"))
        except Trouble:
            tail = self.log.read_text(errors="replace").splitlines()[-15:]
            raise Trouble("\n".join([f"{self.name} did not become ready; its log ends:", *tail])) from None

    def metrics(self) -> dict[str, float]:
        """Each metric's sum over all its labels; nothing while it does not answer."""
        sums: dict[str, float] = {}
        try:
            text = self.fetch("/metrics")
        except OSError:
            return sums
        for name, value in re.findall(r"^(rescind_\w+)(?:\{.*\})? (\S+)$", text, re.MULTILINE):
            sums[name] = sums.get(name, 0) + float(value)
        return sums

    def has_none_pending(self) -> bool:
        return self.metrics().get("rescind_journal_pending") == 0

    def panics(self) -> list[str]:
        lines = self.log.read_text(errors="replace").splitlines()
        return [line for line in lines if "panicked" in line]

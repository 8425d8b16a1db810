"""Redis and the proxies, each with one worker and otherwise as their makers deliver them."""

import subprocess
import tempfile
from pathlib import Path

from .process import Address, Daemon, clean_environment, free_port

ROOT = Path(__file__).resolve().parents[2]

HAPROXY = """
global
    nbthread 1
    maxconn 8000
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen redis
    bind {listen}
    server redis {upstream}
"""

NUTCRACKER = """
redis:
  listen: {listen}
  redis: true
  hash: fnv1a_64
  distribution: ketama
  auto_eject_hosts: false
  preconnect: true
  servers:
    - {upstream}:1
"""

PREDIXY = """
Name bench
Bind {listen}
WorkerThreads 1
Authority {{
    Auth {{
        Mode write
    }}
}}
StandaloneServerPool {{
    Databases 16
    Hash crc16
    Distribution modula
    RefreshMethod fixed
    Group redis {{
        + {upstream}
    }}
}}
"""

ENVOY = """
static_resources:
  listeners:
    - name: redis
      address: {listen}
      filter_chains:
        - filters:
            - name: envoy.filters.network.redis_proxy
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.redis_proxy.v3.RedisProxy
                stat_prefix: redis
                settings: {{ op_timeout: 30s }}
                prefix_routes: {{ catch_all_route: {{ cluster: redis }} }}
  clusters:
    - name: redis
      type: STATIC
      connect_timeout: 5s
      load_assignment:
        cluster_name: redis
        endpoints:
          - lb_endpoints:
              - endpoint: {{ address: {upstream} }}
"""


def start_redis(directory: Path, name: str, socket: str | None = None) -> Daemon:
    """Its `address` is TCP; it may listen at a socket besides."""
    port = free_port()
    arguments = f"--bind 127.0.0.1 --port {port} --maxclients 10000 --appendonly no --dir {directory}".split()
    arguments += ["--unixsocket", socket] if socket else []
    return Daemon(name, ["redis-server", *arguments, "--save", ""], directory, port)


def start_haproxy(program: str, directory: Path, listen: Address, upstream: Address) -> Daemon:
    conf = directory / "haproxy.cfg"
    conf.write_text(HAPROXY.format(listen=_place(listen, "unix@"), upstream=_place(upstream, "unix@")))
    return Daemon("haproxy", [program, "-db", "-f", str(conf)], directory, listen)


def start_nutcracker(program: str, directory: Path, listen: Address, upstream: Address) -> Daemon:
    conf = directory / "nutcracker.yml"
    conf.write_text(NUTCRACKER.format(listen=_place(listen), upstream=_place(upstream)))
    arguments = f"-c {conf} -a 127.0.0.1 -s {free_port()} -p {directory}/nutcracker.pid -o {directory}/nutcracker.log"
    return Daemon("nutcracker", [program, *arguments.split()], directory, listen)


def start_predixy(program: str, directory: Path, listen: Address, upstream: Address) -> Daemon:
    conf = directory / "predixy.conf"
    conf.write_text(PREDIXY.format(listen=_place(listen), upstream=_place(upstream)))
    return Daemon("predixy", [program, str(conf)], directory, listen)


def start_envoy(program: str, directory: Path, listen: Address, upstream: Address) -> Daemon:
    conf = directory / "envoy.yaml"
    conf.write_text(ENVOY.format(listen=_envoy_place(listen), upstream=_envoy_place(upstream)))
    flags = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
    return Daemon("envoy", [program, "-c", str(conf), *flags], directory, listen)


def start_rescind(
    binary: str,
    config: Path,
    directory: Path,
    upstream: Address,
    listen: Address | None = None,
    name: str = "rescind",
    preload: Path | None = None,
) -> Daemon:
    """Its journal goes to the directory, and no override from outside reaches it."""
    listen, admin = listen or free_port(), free_port()
    url = f"redis://127.0.0.1:{upstream}" if isinstance(upstream, int) else f"unix://{upstream}"
    command = [str(Path(binary).resolve()), "--config", str(config.resolve())]
    command += ["--upstream", url, "--listen", _place(listen, "unix:"), "--admin", f"127.0.0.1:{admin}"]
    env = clean_environment()
    env["RESCIND_JOURNAL_PATH"] = tempfile.mkdtemp(prefix="journal-", dir=directory) + "/journal"
    if preload:
        env["LD_PRELOAD"] = str(preload)
    return Daemon(name, command, directory, listen, admin, env)


def build_slow_disk(directory: Path) -> Path:
    """What to preload so that syncs take a millisecond longer."""
    source, built = ROOT / "benches/support/slow_disk.c", directory / "slow_disk.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(built), str(source)], check=True)
    return built


def _place(address: Address, unix: str = "") -> str:
    return f"127.0.0.1:{address}" if isinstance(address, int) else f"{unix}{address}"


def _envoy_place(address: Address) -> str:
    if isinstance(address, int):
        return f"{{ socket_address: {{ address: 127.0.0.1, port_value: {address} }} }}"
    return f"{{ pipe: {{ path: {address} }} }}"

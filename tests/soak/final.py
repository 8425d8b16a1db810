"""What must hold when all is quiet again."""

from faults import Site
from keys import Keyspace, Value
from servers import Trouble, wait
from shared import Shared

# Of one proxy, in KiB; the application's data is a small part of it.
MOST_MEMORY = 400 * 1024


def settle(site: Site) -> list[str]:
    """Waits until no invalidation is pending."""
    problems = []
    for proxy in site.proxies:
        if proxy.died() is not None:
            continue
        try:
            wait(f"{proxy.name} has no pending invalidations", proxy.has_none_pending)
        except Trouble as trouble:
            problems.append(str(trouble))
    return problems


def stale_keys(site: Site, keyspace: Keyspace, shared: Shared) -> list[str]:
    """What is cached and not what the database has."""
    problems = []
    for key in keyspace.all:
        data = site.redis.admin.hget(key.name, "value") if key.is_hash else site.redis.admin.get(key.name)
        if data is None:
            continue
        value = Value.decode(data)
        committed = shared.committed[key.object]
        hidden = any(value.filled < end for _, end in site.blind)
        if value.key != key.name or (value.version != committed and not hidden):
            problems.append(f"left in the cache: {key.name}: {value}, the database has {committed}")
    return problems


def proxies(site: Site) -> list[str]:
    """Did they live, and within bounds?"""
    problems = []
    for proxy in site.proxies:
        problems += [f"{proxy.name}: {line}" for line in proxy.panics()]
        if (code := proxy.died()) is not None:
            problems.append(f"{proxy.name} ended by itself with {code}, see {proxy.log}")
        if proxy.peak_kib > MOST_MEMORY:
            problems.append(f"{proxy.name} took {proxy.peak_kib} KiB")
    return problems

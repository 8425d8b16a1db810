"""Many threads on one pool, names, killed connections, client-side caching."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from redis.backoff import NoBackoff
from redis.cache import CacheConfig
from redis.connection import CacheProxyConnection
from redis.exceptions import ConnectionError
from redis.retry import Retry
from support import PATIENCE, URL, blocked, eventually, options


def test_threads_get_their_own_replies(variant, key, fire):
    """Each value says whose it is; one reply in the wrong place fails an assertion. Connections change hands."""
    threads = 24
    pool = redis.BlockingConnectionPool.from_url(URL, max_connections=10, timeout=PATIENCE, **options(variant))
    # Who listens and publishes holds two connections: with few of them that would be a deadlock.
    r, other = redis.Redis.from_pool(pool), redis.Redis.from_url(URL, **options(variant))
    together = threading.Barrier(threads)

    def work(thread: int) -> None:
        chance = random.Random(thread)
        together.wait(PATIENCE)
        for turn in range(15):
            mine = f"{thread}/{turn}/" + "x" * chance.choice([0, 10, 5000, 70_000])
            name = key(f"{thread}:{turn}")
            assert r.echo(mine) == mine
            assert r.set(name, mine) is True
            pipe = r.pipeline(transaction=chance.random() < 0.5)
            got = pipe.get(name).hset(name + "h", mine, turn).hgetall(name + "h").strlen(name).execute()
            assert got == [mine, 1, {mine: str(turn)}, len(mine)]
            assert r.eval("return {ARGV[1], KEYS[1]}", 1, name, mine) == [mine, name]
            if turn % 5 == 0:
                assert r.set(fire, mine) is True
                r.rpush(name + "l", mine)
                assert list(r.blpop(name + "l", timeout=PATIENCE)) == [name + "l", mine]
                assert r.blpop(name + "none", timeout=0.001) is None
            if turn % 7 == 0:
                with other.pubsub(ignore_subscribe_messages=True) as pubsub:
                    pubsub.subscribe(name)
                    assert pubsub.get_message(timeout=PATIENCE) is None
                    assert r.publish(name, mine) == 1
                    assert pubsub.get_message(timeout=PATIENCE)["data"] == mine
                with r.pipeline() as pipe:
                    pipe.watch(name)
                    assert pipe.get(name) == mine
                    pipe.multi()
                    assert pipe.delete(name).execute() == [1]

    with r, other, ThreadPoolExecutor(threads) as executor:
        for done in [executor.submit(work, thread) for thread in range(threads)]:
            done.result()


def test_names(r, connect, key):
    with r.client() as single:
        assert not single.client_getname()
        assert single.client_setname("first") is True
        assert single.client_getname() == "first"
        single.set(key("a"), 1)
        assert single.client_getname() == "first"
    assert connect(client_name="by-option").client_getname() == "by-option"
    assert not connect().client_getname()


def test_the_name_in_a_transaction(connect, token):
    pipe = connect(client_name=token).pipeline().execute_command("CLIENT", "GETNAME")
    assert pipe.execute() == [token]


def test_a_name_is_nobody_elses(connect, token):
    with connect().client() as single:
        single.execute_command("WATCH", "k:none")
        assert single.client_setname(token) is True
        single.execute_command("UNWATCH")
        assert single.client_getname() == token
    # Whoever comes after it has no name.
    for _ in range(10):
        other = connect()
        assert other.pipeline().execute_command("CLIENT", "GETNAME").execute() == [None]
        assert other.client_info()["name"] == ""


def test_redis_shows_the_name(connect, direct, token):
    r = connect(client_name=token)
    with r.client() as single:
        number = single.client_id()
        assert single.client_info()["name"] == token
        (shown,) = (c for c in direct.client_list() if c["name"] == token)
        assert (shown["id"], shown["db"]) == (str(number), "1")
        assert [c["id"] for c in single.client_list(client_id=[number])] == [str(number)]


def test_redis_shows_the_name_of_who_blocks(connect, direct, token, key):
    """By it operators find out who waits for what."""
    with ThreadPoolExecutor(1) as pool:
        popped = pool.submit(connect(client_name=token).blpop, key("q"), PATIENCE)
        blocked(direct)
        shown = [c for c in direct.client_list() if c["name"] == token]
        direct.rpush(key("q"), 1)
        assert popped.result(PATIENCE)
    assert [(c["cmd"], "b" in c["flags"]) for c in shown] == [("blpop", True)]


def test_what_redis_knows_of_a_client(connect, variant):
    with connect(db=3).client() as single:
        info = single.client_info()
        assert (info["db"], info["resp"], info["user"]) == (3, str(variant.protocol), "default")
        assert info["id"] == single.client_id() == single.client_info()["id"]
        assert single.client_no_evict("ON") in ("OK", True)
        single.execute_command("SELECT", 4)
        assert single.client_info()["db"] == 4
        assert single.client_info()["id"] == info["id"]
        assert single.client_getredir() == -1


def test_a_killed_client_is_told(connect, direct):
    """Redis ends the connection; the client must see that, and not a silence."""
    with connect().client() as single:
        assert direct.client_kill_filter(_id=single.client_id()) == 1
        with pytest.raises(ConnectionError):
            single.ping()
        # It connects anew, as another client.
        assert single.ping() is True


def test_a_killed_client_tries_again(connect, direct, key):
    r = connect(retry=Retry(NoBackoff(), 3))
    with r.client() as single:
        first = single.client_id()
        assert direct.client_kill_filter(_id=first) == 1
        assert single.set(key("a"), 1) is True
        assert single.client_id() != first
    assert r.get(key("a")) == "1"


def test_killed_while_it_blocks(connect, direct, key):
    with connect().client() as single, ThreadPoolExecutor(1) as pool:
        number = single.client_id()
        popped = pool.submit(single.blpop, key("q"), PATIENCE)
        blocked(direct)
        assert connect().client_kill_filter(_id=number) == 1
        assert isinstance(popped.exception(PATIENCE), ConnectionError)
    eventually(lambda: direct.info("clients")["blocked_clients"] == 0)
    direct.rpush(key("q"), "kept")
    assert connect().lrange(key("q"), 0, -1) == ["kept"]


def test_killed_while_it_listens(connect, direct, token):
    """A subscriber comes back, and has its subscriptions again."""
    r = connect(retry=Retry(NoBackoff(), 3))
    with r.pubsub() as pubsub:
        pubsub.execute_command("CLIENT", "ID")
        number = pubsub.parse_response()
        pubsub.subscribe(token)
        assert pubsub.get_message(timeout=PATIENCE)["type"] == "subscribe"
        assert direct.client_kill_filter(_id=number) == 1
        assert pubsub.get_message(timeout=PATIENCE)["type"] == "subscribe"
        assert r.publish(token, "again") == 1
        assert pubsub.get_message(timeout=PATIENCE)["data"] == "again"


@pytest.fixture
def cached(connect, variant, monkeypatch) -> redis.Redis:
    """redis-py asks for a newer server than it needs."""
    if variant.protocol == 2:
        pytest.skip("client-side caching takes RESP3")
    monkeypatch.setattr(CacheProxyConnection, "MIN_ALLOWED_VERSION", "7.0.0")
    return connect(cache_config=CacheConfig())


def test_cached_values_are_invalidated(cached, connect, direct, key):
    cache = cached.get_cache()
    for writer in (connect(), direct):
        writer.set(key("a"), "old")
        eventually(lambda: cached.get(key("a")) == "old")
        assert cached.get(key("a")) == "old"
        assert [k.redis_keys for k in cache.collection] == [(key("a"),)]
        writer.set(key("a"), "new")
        eventually(lambda: cached.get(key("a")) == "new")
    assert cached.set(key("a"), "own") is True
    eventually(lambda: cached.get(key("a")) == "own")
    assert cached.mget(key("a"), key("b")) == ["own", None]
    direct.mset({key("a"): 1, key("b"): 2})
    eventually(lambda: cached.mget(key("a"), key("b")) == ["1", "2"])


@pytest.mark.proxy
def test_fan_outs_reach_the_cache(cached, connect, direct, token):
    direct.set(f"page:{token}:1", "old")
    assert cached.get(f"page:{token}:1") == "old"
    connect().set(f"post:{token}", 1)
    eventually(lambda: cached.get(f"page:{token}:1") is None)

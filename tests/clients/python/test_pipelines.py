"""Pipelines, transactions and optimistic locking."""

import threading

import pytest
from redis.exceptions import ExecAbortError, ResponseError, WatchError


@pytest.mark.parametrize("transaction", [False, True], ids=["plain", "multi"])
def test_long_pipelines(r, key, fire, transaction):
    pipe = r.pipeline(transaction=transaction)
    expected = []
    for n in range(1000):
        pipe.set(key(n), n).incr(key("count")).get(key(n))
        expected += [True, n + 1, str(n)]
    pipe.set(fire, "x").get(fire)
    assert pipe.execute() == [*expected, True, "x"]
    assert pipe.execute() == []


@pytest.mark.parametrize("transaction", [False, True], ids=["plain", "multi"])
def test_errors_have_their_place(r, key, transaction):
    pipe = r.pipeline(transaction=transaction)
    pipe.set(key("a"), "word").incr(key("a")).get(key("a")).lpush(key("a"), 1).set(key("b"), 2)
    done, error, value, other, last = pipe.execute(raise_on_error=False)
    assert (done, value, last) == (True, "word", True)
    assert "not an integer" in str(error)
    assert "WRONGTYPE" in str(other)
    with pytest.raises(ResponseError, match="Command # 2"):
        r.pipeline(transaction=transaction).get(key("a")).incr(key("a")).execute()
    assert r.get(key("b")) == "2"


def test_what_cannot_be_queued_aborts(r, key):
    pipe = r.pipeline()
    pipe.set(key("a"), 1)
    pipe.execute_command("SET", key("a"))
    with pytest.raises(ResponseError, match="wrong number of arguments"):
        pipe.execute()
    assert r.get(key("a")) is None
    with r.client() as single:
        single.execute_command("MULTI")
        with pytest.raises(ResponseError):
            single.execute_command("NO.SUCH")
        with pytest.raises(ExecAbortError):
            single.execute_command("EXEC")
        assert single.ping() is True


def test_a_conflict_is_noticed(r, connect, direct, key):
    """Once with another client of the proxy, once with one of Redis."""
    r.set(key("n"), 1)
    for other in (connect(), direct):
        with r.pipeline() as pipe:
            pipe.watch(key("n"))
            value = int(pipe.get(key("n")))
            other.incr(key("n"))
            pipe.multi()
            pipe.set(key("n"), value + 100)
            with pytest.raises(WatchError):
                pipe.execute()
            # The same connection tries again, and succeeds.
            pipe.watch(key("n"))
            value = int(pipe.get(key("n")))
            pipe.multi()
            pipe.set(key("n"), value + 100).get(key("n"))
            assert pipe.execute() == [True, str(value + 100)]
    assert r.get(key("n")) == "203"


def test_what_is_not_watched_does_not_conflict(r, direct, key):
    with r.pipeline() as pipe:
        pipe.watch(key("a"), key("b"))
        pipe.unwatch()
        direct.set(key("a"), 1)
        pipe.multi()
        assert pipe.get(key("a")).execute() == ["1"]
        pipe.watch(key("a"))
        direct.set(key("c"), 1)
        pipe.multi()
        assert pipe.get(key("c")).execute() == ["1"]
        # The transaction ended the watch.
        direct.set(key("a"), 2)
        assert pipe.get(key("a")).execute() == ["2"]


def test_discard(r, key):
    with r.client() as single:
        single.execute_command("MULTI")
        assert single.execute_command("INCR", key("a")) == "QUEUED"
        assert single.execute_command("DISCARD") == "OK"
        assert single.get(key("a")) is None
        with pytest.raises(ResponseError, match="DISCARD without MULTI"):
            single.execute_command("DISCARD")
        with pytest.raises(ResponseError, match="EXEC without MULTI"):
            single.execute_command("EXEC")


def test_counting_with_conflicts(connect, key, fire):
    """Eight clients count with WATCH; each addition must count once. The key is a trigger, too."""
    failures, threads = [], []

    def count() -> None:
        try:
            client = connect()
            for _ in range(10):
                client.transaction(add, fire)
        except Exception as error:
            failures.append(error)

    def add(pipe) -> None:
        value = int(pipe.get(fire) or 0)
        pipe.multi()
        pipe.set(fire, value + 1).rpush(key("log"), value)

    for _ in range(8):
        threads.append(threading.Thread(target=count))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert failures == []
    r = connect()
    assert r.get(fire) == "80"
    assert r.lrange(key("log"), 0, -1) == [str(n) for n in range(80)]

"""Blocking commands: with a time-out, with a producer, and many at once on one pool."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from redis.exceptions import TimeoutError
from support import PATIENCE, blocked, eventually


def test_time_outs(r, key):
    assert r.blpop(key("a"), timeout=0.01) is None
    assert r.brpop([key("a"), key("b")], timeout=0.01) is None
    assert r.blmove(key("a"), key("b"), 0.01) is None
    assert r.brpoplpush(key("a"), key("b"), timeout=0.01) is None
    assert r.bzpopmin(key("a"), timeout=0.01) is None
    assert r.blmpop(0.01, 2, key("a"), key("b"), direction="LEFT") is None
    assert not r.xread({key("a"): "$"}, block=10)
    assert r.ping() is True


def test_what_is_there_is_taken_at_once(r, key):
    r.rpush(key("a"), 1, 2, 3, 4)
    r.zadd(key("z"), {"x": 1, "y": 2})
    assert list(r.blpop([key("none"), key("a")], timeout=0)) == [key("a"), "1"]
    assert list(r.brpop(key("a"), timeout=0)) == [key("a"), "4"]
    assert r.blmove(key("a"), key("b"), 0) == "2"
    assert r.blmpop(0, 1, key("a"), direction="LEFT", count=5) == [key("a"), ["3"]]
    name, member, score = r.bzpopmax(key("z"), timeout=0)
    assert (name, member, float(score)) == (key("z"), "y", 2.0)


@pytest.mark.parametrize("push", ["client", "direct", "pipeline", "transaction", "script"])
def test_a_producer_wakes_the_consumer(connect, direct, key, push):
    consumer, producer = connect(), connect()
    with ThreadPoolExecutor(1) as pool:
        popped = pool.submit(consumer.blpop, [key("x"), key("q")], PATIENCE)
        blocked(direct)
        if push == "script":
            assert producer.eval("return redis.call('RPUSH', KEYS[1], 'job')", 1, key("q")) == 1
        elif push in ("pipeline", "transaction"):
            pipe = producer.pipeline(transaction=push == "transaction")
            assert pipe.rpush(key("q"), "job").ping().execute() == [1, True]
        else:
            (producer if push == "client" else direct).rpush(key("q"), "job")
        assert list(popped.result(PATIENCE)) == [key("q"), "job"]
    assert consumer.exists(key("q")) == 0


def test_others_are_not_held_up(connect, direct, key):
    """One client blocks in many threads, and works in others."""
    r = connect()
    with ThreadPoolExecutor(20) as pool:
        waiting = [pool.submit(r.blpop, key("q"), PATIENCE) for _ in range(20)]
        blocked(direct, 20)
        for n in range(200):
            assert r.set(key(n), n) is True
            assert r.get(key(n)) == str(n)
        assert r.rpush(key("q"), *range(20)) == 20
        # One of them takes each.
        assert sorted(int(w.result(PATIENCE)[1]) for w in waiting) == list(range(20))


def test_a_trigger_wakes_the_consumer(connect, direct, fire):
    """The write is a trigger and what the consumer pops is one, too."""
    consumer, producer = connect(), connect()
    with ThreadPoolExecutor(1) as pool:
        for n in range(20):
            popped = pool.submit(consumer.brpop, fire, PATIENCE)
            blocked(direct)
            assert producer.lpush(fire, n) == 1
            assert list(popped.result(PATIENCE)) == [fire, str(n)]


def test_a_chain_of_moves(connect, direct, key):
    r = connect()
    with ThreadPoolExecutor(3) as pool:
        hops = [pool.submit(r.blmove, key(n), key(n + 1), PATIENCE) for n in range(3)]
        blocked(direct, 3)
        r.rpush(key(0), "parcel")
        assert [hop.result(PATIENCE) for hop in hops] == ["parcel"] * 3
    assert r.lrange(key(3), 0, -1) == ["parcel"]


def test_unblocked_by_another_client(connect, direct, key):
    consumer = connect()
    with consumer.client() as single, ThreadPoolExecutor(1) as pool:
        number = single.client_id()
        popped = pool.submit(single.blpop, key("q"), PATIENCE)
        blocked(direct)
        assert connect().client_unblock(number) == 1
        assert popped.result(PATIENCE) is None
        popped = pool.submit(single.blpop, key("q"), PATIENCE)
        blocked(direct)
        assert connect().client_unblock(number, error=True) == 1
        assert "UNBLOCKED" in str(popped.exception(PATIENCE))
        assert single.ping() is True


def test_a_consumer_that_goes_away_takes_nothing(connect, direct, key):
    with pytest.raises(TimeoutError):
        connect(socket_timeout=0.05).blpop(key("q"), timeout=PATIENCE)
    eventually(lambda: direct.info("clients")["blocked_clients"] == 0)
    direct.rpush(key("q"), "job")
    assert connect().lrange(key("q"), 0, -1) == ["job"]


def test_in_transactions_nothing_blocks(r, key):
    r.rpush(key("b"), 1)
    pipe = r.pipeline().blpop(key("a"), timeout=0).blpop(key("b"), timeout=0).ping()
    none, popped, pong = pipe.execute()
    assert (none, list(popped), pong) == (None, [key("b"), "1"], True)


def test_wait_for_replicas(r, key):
    r.set(key("a"), 1)
    assert r.wait(0, 0) == 0
    assert r.wait(1, 10) == 0
    assert r.get(key("a")) == "1"

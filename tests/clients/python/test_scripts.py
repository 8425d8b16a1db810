"""Lua scripts, and the locks that redis-py makes of them."""

import threading

import pytest
from redis.exceptions import LockError, LockNotOwnedError, NoScriptError, ResponseError


def test_registered_scripts(r, direct, key, fire):
    script = r.register_script("redis.call('SET', KEYS[1], ARGV[1]); return {KEYS[1], ARGV[2], 7, false}")
    # The server does not know it: redis-py gets NOSCRIPT, loads it, and runs it again.
    for _ in range(2):
        direct.script_flush()
        for name in (key("a"), fire):
            assert script(keys=[name], args=["v", "w"]) == [name, "w", 7, None]
            assert script(keys=[name], args=["v", "w"]) == [name, "w", 7, None]
    assert r.get(key("a")) == "v"
    assert r.script_exists(script.sha, "0" * 40) == [True, False]


def test_scripts_in_pipelines(r, direct, key):
    script = r.register_script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
    for transaction in (False, True):
        direct.script_flush()
        pipe = r.pipeline(transaction=transaction)
        pipe.set(key("n"), 0)
        for n in range(100):
            script(keys=[key("n")], args=[n], client=pipe)
        pipe.get(key("n"))
        expected = [sum(range(n + 1)) for n in range(100)]
        assert pipe.execute() == [True, *expected, "4950"]


def test_errors_of_scripts(r, key):
    with pytest.raises(NoScriptError):
        r.evalsha("f" * 40, 0)
    with pytest.raises(ResponseError, match="my words"):
        r.eval("return redis.error_reply('ERR my words')", 0)
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        r.eval("redis.call('SET', KEYS[1], 1); return redis.call('LPUSH', KEYS[1], 1)", 1, key("a"))
    with pytest.raises(ResponseError, match="compiling"):
        r.eval("return (", 0)
    with pytest.raises(ResponseError, match="Write commands are not allowed"):
        r.eval_ro("return redis.call('SET', KEYS[1], 2)", 1, key("a"))
    assert r.eval("return pcall(redis.call, 'NO.SUCH') and 1 or 0", 0) in (0, 1)
    assert r.get(key("a")) == "1"


def test_values_of_scripts(r, variant):
    assert r.eval("return {1, 'two', {3, {4}}, false, true, 5.9}", 0) == [1, "two", [3, [4]], None, 1, 5]
    assert r.eval("return redis.status_reply('FINE')", 0) == "FINE"
    assert r.eval("return {}", 0) == []
    assert r.eval("return ARGV", 0, *map(str, range(3000))) == [str(n) for n in range(3000)]
    answer = r.eval("redis.setresp(3); return redis.call('HGETALL', KEYS[1])", 1, "k:none")
    assert answer in ({}, [])
    if variant.protocol == 3:
        assert r.eval("return {double = 1.5}", 0) == 1.5
        assert r.eval("return {map = {a = 1}}", 0) == {"a": 1}
        assert r.eval("redis.setresp(3); return true", 0) is True


def test_lock(connect, key):
    one, two = connect(), connect()
    lock = one.lock(key("lock"), timeout=60)
    rival = two.lock(key("lock"), timeout=60, blocking=False)
    assert lock.acquire() is True
    assert lock.owned() and lock.locked() and rival.locked() and not rival.owned()
    assert rival.acquire() is False
    assert lock.extend(60) is True
    assert 60 < one.ttl(key("lock")) <= 120
    assert lock.reacquire() is True
    assert one.ttl(key("lock")) <= 60
    lock.release()
    assert rival.acquire() is True
    lock.local.token = b"not the owner's"
    with pytest.raises(LockNotOwnedError):
        lock.extend(1)
    with pytest.raises(LockNotOwnedError):
        lock.release()
    rival.release()
    with pytest.raises(LockError):
        rival.release()


def test_a_lock_expires_and_is_waited_for(connect, key):
    one, two = connect(), connect()
    assert one.lock(key("lock"), timeout=0.2).acquire() is True
    with two.lock(key("lock"), timeout=60, sleep=0.01):
        assert two.exists(key("lock")) == 1
    assert two.exists(key("lock")) == 0


def test_a_lock_excludes(connect, key):
    """What is read and written back under the lock loses nothing."""
    failures, threads = [], []
    connect().set(key("n"), 0)

    def count() -> None:
        try:
            client = connect()
            for _ in range(10):
                with client.lock(key("lock"), timeout=60, sleep=0.001):
                    client.set(key("n"), int(client.get(key("n"))) + 1)
        except Exception as error:
            failures.append(error)

    for _ in range(6):
        threads.append(threading.Thread(target=count))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert connect().get(key("n")) == "60"

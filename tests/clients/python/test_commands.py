"""Commands of every data type, errors, big values, and iterators."""

import hashlib
import random
import time

import pytest
from redis.exceptions import DataError, ResponseError


def test_strings(r, key):
    a, b = key("a"), key("b")
    assert r.set(a, "1", ex=100) is True
    assert r.set(a, "2", nx=True) is None
    assert r.set(a, "2", xx=True, get=True, keepttl=True) == "1"
    assert 0 < r.ttl(a) <= 100 < r.expiretime(a)
    assert r.incrby(a, 5) == 7
    assert r.incrbyfloat(a, 0.5) == 7.5
    assert r.append(a, "x") == 4
    assert r.getrange(a, 1, 2) == ".5"
    assert r.setrange(a, 6, "y") == 7
    assert r.get(a) == "7.5x\0\0y"
    assert r.mset({a: "A", b: ""}) is True
    assert r.mget(a, b, key("none")) == ["A", "", None]
    assert r.getex(a, persist=True) == "A"
    assert r.getdel(a) == "A"
    assert r.exists(a, b, b) == 2
    assert r.ttl(a) == -2
    assert r.ttl(b) == -1
    assert r.delete(a, b) == 1
    assert r.get(b) is None


def test_hashes(r, key):
    h = key("h")
    assert r.hset(h, mapping={"a": 1, "b": "zwei", "": ""}) == 3
    assert r.hgetall(h) == {"a": "1", "b": "zwei", "": ""}
    assert r.hmget(h, "b", "none") == ["zwei", None]
    assert r.hincrbyfloat(h, "a", 1.5) == 2.5
    assert r.hexists(h, "b") is True
    assert r.hexists(h, "c") is False
    assert r.hdel(h, "", "none") == 1
    assert set(r.hrandfield(h, 5)) == {"a", "b"}
    assert r.hlen(h) == 2


def test_lists(r, key):
    one, two = key("one"), key("two")
    assert r.rpush(one, *"abcabc") == 6
    assert r.lpos(one, "c", count=0) == [2, 5]
    assert r.lrem(one, -1, "a") == 1
    assert r.linsert(one, "before", "c", "X") == 6
    assert r.lrange(one, 0, -1) == ["a", "b", "X", "c", "b", "c"]
    assert r.lmove(one, two, "RIGHT", "LEFT") == "c"
    assert r.lpop(one, 2) == ["a", "b"]
    assert r.lmpop(2, one, two, direction="RIGHT", count=10) == [one, ["b", "c", "X"]]
    assert r.lpop(one) is None
    assert r.llen(two) == 1


def test_sets_and_sorted_sets(r, key):
    s, t, z = key("s"), key("t"), key("z")
    assert r.sadd(s, "a", "b", "c") == 3
    assert r.sadd(t, "b", "c", "d") == 3
    assert r.sinter(s, t) == {"b", "c"}
    assert r.sdiffstore(t, s, t) == 1
    assert r.smismember(s, ["a", "x"]) == [1, 0]
    assert r.zadd(z, {"one": 1, "two": 2, "pi": 3.14159, "inf": float("inf")}) == 4
    assert r.zscore(z, "pi") == 3.14159
    assert r.zscore(z, "inf") == float("inf")
    assert r.zscore(z, "none") is None
    assert r.zrange(z, 0, 1) == ["one", "two"]
    assert [(name, float(score)) for name, score in r.zrange(z, 0, 0, withscores=True)] == [("one", 1.0)]
    assert r.zrangebyscore(z, "(1", 4) == ["two", "pi"]
    assert r.zrank(z, "pi") == 2
    assert r.zincrby(z, 0.5, "one") == 1.5
    assert "inf" in r.zpopmax(z)[0]
    assert r.zcount(z, "-inf", "+inf") == 3
    assert sorted(r.zunion([z, s])) == ["a", "b", "c", "one", "pi", "two"]


def test_more_types(r, key):
    bits, hll, geo = key("bits"), key("hll"), key("geo")
    assert r.setbit(bits, 7, 1) == 0
    assert r.bitcount(bits) == 1
    assert r.bitfield(bits).set("u8", 8, 200).incrby("u8", 8, 100, "SAT").get("i8", 0).execute() == [0, 255, 1]
    assert r.pfadd(hll, *range(100)) == 1
    assert 95 <= r.pfcount(hll) <= 105
    assert r.geoadd(geo, (13.361389, 38.115556, "Palermo", 15.087269, 37.502669, "Catania")) == 2
    assert abs(r.geodist(geo, "Palermo", "Catania", unit="km") - 166.27) < 0.1
    assert r.geosearch(geo, longitude=15, latitude=37, radius=100, unit="km") == ["Catania"]
    (place,) = r.geopos(geo, "Palermo")
    assert abs(place[0] - 13.361389) < 0.001


def test_keys_and_server(r, key):
    a, b = key("a"), key("b")
    r.rpush(a, 3, 1, 2)
    assert r.type(a) == "list"
    assert r.object("encoding", a) in ("listpack", "quicklist")
    assert r.sort(a, desc=True) == ["3", "2", "1"]
    assert r.sort(a, store=b) == 3
    assert r.copy(a, b) is False
    assert r.copy(a, b, replace=True) is True
    assert r.rename(b, key("c")) is True
    assert r.pexpire(a, 60000, nx=True) == 1
    assert r.pexpireat(a, int(time.time() * 1000) + 50000, gt=True) == 0
    assert r.touch(a, b) == 1
    assert r.memory_usage(a) > 0
    assert r.unlink(a, key("c")) == 2
    assert r.echo("ümlaut") == "ümlaut"
    assert r.ping() is True
    assert r.time()[0] > 1_600_000_000
    assert r.info("server")["redis_version"]
    assert r.config_get("maxmem*")["maxmemory"] == "0"
    assert r.command_count() > 200
    assert r.command_getkeys("MSET", "a", 1, "b", 2) == ["a", "b"]
    assert r.acl_whoami() == "default"
    assert isinstance(r.slowlog_get(1), list)


def test_bytes_are_kept(connect, key):
    r = connect(decode_responses=False)
    every = bytes(range(256))
    name = key("\r\n$3\r\nfoo\r\n ").encode() + every
    assert r.set(name, every + b"\r\n+OK\r\n") is True
    assert r.get(name) == every + b"\r\n+OK\r\n"
    assert r.hset(key("h"), every, b"") == 1
    assert r.hgetall(key("h")) == {every: b""}
    assert r.dump(name)
    assert r.restore(key("copy"), 0, r.dump(name)) == b"OK"
    assert r.get(key("copy")) == every + b"\r\n+OK\r\n"


def test_errors_leave_the_connection_usable(connect, key):
    r = connect(max_connections=1)
    r.set(key("s"), "no number")
    for call, text in [
        (lambda: r.incr(key("s")), "value is not an integer"),
        (lambda: r.lpush(key("s"), 1), "WRONGTYPE"),
        (lambda: r.execute_command("NO.SUCH", "a"), "unknown command"),
        (lambda: r.execute_command("GET"), "wrong number of arguments"),
        (lambda: r.execute_command("SET", "a", "b", "EX", "0"), "invalid expire"),
        (lambda: r.xadd(key("s"), {"a": 1}), "WRONGTYPE"),
        (lambda: r.execute_command("SELECT", "99999"), "out of range"),
    ]:
        with pytest.raises(ResponseError, match=text):
            call()
        assert r.get(key("s")) == "no number"
    with pytest.raises(DataError):
        r.set(key("s"), object())
    assert len(r.connection_pool._get_in_use_connections()) == 0


def test_databases_are_apart(connect, token):
    one, two = connect(db=1), connect(db=2)
    one.set(token, "one")
    assert two.get(token) is None
    assert one.move(token, 2) is True
    assert two.getdel(token) == "one"
    with one.client() as single:
        single.execute_command("SELECT", 2)
        single.set(token, "in two")
    assert two.get(token) == "in two"
    two.delete(token)


@pytest.mark.parametrize("size", [0, 1, 16 << 10, 255 << 10, (256 << 10) + 1, 8 << 20])
def test_big_values(connect, key, fire, size):
    r = connect(decode_responses=False)
    value = random.Random(size).randbytes(size)
    digest = hashlib.sha256(value).digest()
    for name in (key("v"), fire):
        assert r.set(name, value) is True
        assert hashlib.sha256(r.get(name)).digest() == digest
        assert r.strlen(name) == size
    big, small, same = r.pipeline(transaction=False).get(key("v")).ping().get(fire).execute()
    assert small is True
    assert hashlib.sha256(big).digest() == hashlib.sha256(same).digest() == digest
    r.delete(key("v"), fire)


def test_many_elements(r, key):
    numbers = [str(n) for n in range(20_000)]
    assert r.rpush(key("l"), *numbers) == 20_000
    assert r.lrange(key("l"), 0, -1) == numbers
    assert r.sadd(key("s"), *numbers) == 20_000
    assert r.smembers(key("s")) == set(numbers)
    assert r.mset({key(n): n for n in numbers[:5000]}) is True
    assert r.mget([key(n) for n in numbers[:5000]]) == numbers[:5000]


def test_iterators(r, key, token):
    names = {key(f"scan:{n}") for n in range(2000)}
    r.mset(dict.fromkeys(names, 1))
    r.rpush(key("scan:list"), 1)
    assert set(r.scan_iter(match=key("scan:*"), count=100, _type="string")) == names
    assert list(r.scan_iter(match=key("scan:*"), count=5000, _type="list")) == [key("scan:list")]
    members = {f"m{n}": float(n) for n in range(1000)}
    r.hset(key("h"), mapping=members)
    r.sadd(key("s"), *members)
    r.zadd(key("z"), members)
    assert {name: float(value) for name, value in r.hscan_iter(key("h"), count=50)} == members
    assert set(r.sscan_iter(key("s"), match="m*", count=50)) == set(members)
    assert dict(r.zscan_iter(key("z"), count=50)) == members
    cursor, found = r.scan(cursor=0, match=f"*{token}*", count=10)
    assert isinstance(cursor, int)
    assert all(token in name for name in found)


def test_functions(r, key, token):
    code = f"""#!lua name=l{token}
        redis.register_function("put{token}", function(keys, args) return redis.call("SET", keys[1], args[1]) end)
        redis.register_function{{function_name = "look{token}", flags = {{"no-writes"}},
            callback = function(keys) return redis.call("GET", keys[1]) end}}"""
    assert r.function_load(code) == f"l{token}"
    try:
        assert r.fcall(f"put{token}", 1, key("a"), "x") == "OK"
        assert r.fcall_ro(f"look{token}", 1, key("a")) == "x"
        with pytest.raises(ResponseError, match="Can not execute a script with write flag"):
            r.fcall_ro(f"put{token}", 1, key("a"), "y")
    finally:
        r.function_delete(f"l{token}")


def test_monitor_shows_the_commands(r, key):
    with r.monitor() as monitor:
        r.set(key("seen"), "ä\n")
        for command in monitor.listen():
            if key("seen") in command["command"]:
                break
    assert command["command"].startswith(f"SET {key('seen')}")
    assert command["db"] == 1


@pytest.mark.proxy
@pytest.mark.parametrize("write", ["plain", "pipeline", "transaction", "script", "expired", "big"])
def test_dependents_are_gone_when_the_write_is_answered(connect, direct, token, write):
    """The proxy's own promise, kept for every way that this client writes."""
    r = connect()
    pages = {f"page:{token}:{n}": "old" for n in range(50)}
    direct.mset(pages)
    direct.set(f"page:other{token}:1", "stays")
    post = f"post:{token}"
    if write == "plain":
        assert r.hset(post, "a", 1) == 1
    elif write in ("pipeline", "transaction"):
        pipe = r.pipeline(transaction=write == "transaction")
        pipe.get(f"page:{token}:1").set(post, 1).get(post).exists(*pages)
        before, done, value, _ = pipe.execute()
        assert (before, done, value) == ("old", True, "1")
    elif write == "script":
        assert r.eval("return redis.call('SET', KEYS[1], ARGV[1])", 1, post, "x") == "OK"
    elif write == "expired":
        assert r.set(post, 1, px=60000) is True
    else:
        assert r.set(post, "x" * (1 << 20)) is True
    assert direct.exists(*pages) == 0
    assert direct.get(f"page:other{token}:1") == "stays"


def test_replies_keep_their_order(r, key, fire):
    """Triggers, whose replies wait, among commands that need not wait."""
    pipe = r.pipeline(transaction=False)
    expected = []
    for n in range(300):
        if n % 7 == 0:
            pipe.set(fire, n)
            expected.append(True)
        elif n % 50 == 1:
            pipe.execute_command("BLPOP", key("none"), "0.001")
            expected.append(None)
        else:
            pipe.echo(str(n))
            expected.append(str(n))
    assert pipe.execute() == expected

"""Streams and consumer groups, with blocking reads."""

from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from redis.exceptions import ResponseError
from support import PATIENCE, blocked


def entries(reply) -> dict:
    """XREAD's reply, which is a list in RESP2 and a map in RESP3: stream -> [(id, fields)]."""
    if not isinstance(reply, dict):
        return {name: [tuple(entry) for entry in found] for name, found in reply}
    # In RESP3 redis-py puts the entries of each stream into one more list.
    return {name: [tuple(entry) for part in parts for entry in part] for name, parts in reply.items()}


def test_adding_and_reading(r, key):
    ids = [r.xadd(key("s"), {"n": n, "text": "ä"}) for n in range(100)]
    assert r.xlen(key("s")) == 100
    assert [i for i, _ in r.xrange(key("s"))] == ids
    assert [i for i, _ in r.xrevrange(key("s"), count=2)] == [ids[99], ids[98]]
    assert entries(r.xread({key("s"): ids[97]})) == {
        key("s"): [(ids[n], {"n": str(n), "text": "ä"}) for n in (98, 99)]
    }
    assert r.xdel(key("s"), ids[0], ids[1]) == 2
    assert r.xtrim(key("s"), maxlen=10, approximate=False) == 88
    assert r.xinfo_stream(key("s"))["length"] == 10
    with pytest.raises(ResponseError, match="equal or smaller"):
        r.xadd(key("s"), {"a": 1}, id="1-1")


def test_a_group_shares_the_work(r, key):
    assert r.xgroup_create(key("s"), "g", id="0", mkstream=True) is True
    with pytest.raises(ResponseError, match="BUSYGROUP"):
        r.xgroup_create(key("s"), "g")
    ids = [r.xadd(key("s"), {"n": n}) for n in range(6)]
    (one,) = entries(r.xreadgroup("g", "anna", {key("s"): ">"}, count=4)).values()
    (two,) = entries(r.xreadgroup("g", "bert", {key("s"): ">"}, count=4)).values()
    assert [i for i, _ in one + two] == ids
    assert r.xack(key("s"), "g", ids[0], ids[5]) == 2
    pending = r.xpending(key("s"), "g")
    assert (pending["pending"], pending["min"], pending["max"]) == (4, ids[1], ids[4])
    assert [p["consumer"] for p in r.xpending_range(key("s"), "g", "-", "+", 10)] == ["anna"] * 3 + ["bert"]
    assert [i for i, _ in r.xclaim(key("s"), "g", "bert", 0, [ids[1]])] == [ids[1]]
    claimed = r.xautoclaim(key("s"), "g", "carl", 0, "0-0", count=10)
    assert [i for i, _ in claimed[1]] == ids[1:5]
    assert r.xinfo_groups(key("s"))[0]["pending"] == 4
    assert {c["name"]: c["pending"] for c in r.xinfo_consumers(key("s"), "g")}["carl"] == 4
    assert r.xgroup_delconsumer(key("s"), "g", "carl") == 4
    assert r.xgroup_destroy(key("s"), "g") == 1
    with pytest.raises(ResponseError, match="NOGROUP"):
        r.xreadgroup("g", "anna", {key("s"): ">"})


def test_blocking_reads(connect, direct, key):
    reader, writer = connect(), connect()
    with ThreadPoolExecutor(1) as pool:
        for n in range(5):
            read = pool.submit(reader.xread, {key("s"): "$", key("t"): "$"}, block=PATIENCE * 1000)
            blocked(direct)
            added = writer.xadd(key("s"), {"n": n})
            assert entries(read.result(PATIENCE)) == {key("s"): [(added, {"n": str(n)})]}
        read = pool.submit(reader.xread, {key("s"): "$"}, block=0)
        blocked(direct)
        assert not writer.xread({key("s"): "$"}, block=10)
        assert writer.pipeline().xadd(key("s"), {"last": 1}).xlen(key("s")).execute()[1] == 6
        ((_, fields),) = entries(read.result(PATIENCE))[key("s")]
        assert fields == {"last": "1"}


@pytest.mark.parametrize("trigger", [False, True], ids=["plain", "trigger"])
def test_a_blocking_group_takes_each_entry_once(connect, direct, key, fire, trigger):
    r, stream = connect(), fire if trigger else key("s")
    r.xgroup_create(stream, "g", mkstream=True)

    def consume(name: str) -> list[str]:
        seen, client = [], connect()
        while True:
            reply = client.xreadgroup("g", name, {stream: ">"}, count=3, block=PATIENCE * 1000)
            for number, fields in entries(reply)[stream]:
                client.xack(stream, "g", number)
                if fields["n"] == "end":
                    return seen
                seen.append(fields["n"])

    with ThreadPoolExecutor(4) as pool:
        consumers = [pool.submit(consume, name) for name in ("a", "b", "c", "d")]
        blocked(direct, 4)
        for n in range(60):
            r.xadd(stream, {"n": n})
        # A consumer that gets several of these at once stops at the first; the others need theirs.
        while wait(consumers, timeout=0.01).not_done:
            r.xadd(stream, {"n": "end"})
        seen = [n for c in consumers for n in c.result()]
    assert sorted(map(int, seen)) == list(range(60))
    assert r.xlen(stream) >= 64

"""redis-py's asyncio client."""

import asyncio

import pytest
import redis.asyncio
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, LockNotOwnedError, ResponseError, WatchError
from support import PATIENCE, URL, async_options


async def blocked(r, count: int = 1) -> None:
    """Waits until so many clients are blocked in Redis."""
    while (await r.info("clients"))["blocked_clients"] < count:
        await asyncio.sleep(0.01)


async def test_commands(aconnect, key, fire):
    async with aconnect() as r:
        assert await r.set(key("a"), "ü", ex=60) is True
        assert await r.get(key("a")) == "ü"
        assert await r.hset(key("h"), mapping={"a": 1, "b": 2}) == 2
        assert await r.hgetall(key("h")) == {"a": "1", "b": "2"}
        assert await r.zadd(key("z"), {"x": 1.5}) == 1
        assert await r.zscore(key("z"), "x") == 1.5
        assert await r.set(fire, "x") is True
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await r.incr(key("h"))
        assert await r.mget(key("a"), key("none")) == ["ü", None]
        assert sorted([name async for name in r.scan_iter(match=key("*"), count=1000)]) == [
            key("a"),
            key("h"),
            key("z"),
        ]
        big = "x" * (4 << 20)
        assert await r.set(key("big"), big) is True
        assert await r.get(key("big")) == big


@pytest.mark.parametrize("transaction", [False, True], ids=["plain", "multi"])
async def test_pipelines(aconnect, key, fire, transaction):
    async with aconnect() as r, r.pipeline(transaction=transaction) as pipe:
        for n in range(1000):
            pipe.set(key(n), n).get(key(n))
        pipe.incr(fire).lpush(fire, 1).get(fire)
        replies = await pipe.execute(raise_on_error=False)
        assert replies[:2000:2] == [True] * 1000
        assert replies[1:2000:2] == [str(n) for n in range(1000)]
        assert (replies[2000], replies[2002]) == (1, "1")
        assert "WRONGTYPE" in str(replies[2001])


async def test_a_conflict_is_noticed(aconnect, key):
    async with aconnect() as r, aconnect() as other, r.pipeline() as pipe:
        await pipe.watch(key("n"))
        await other.set(key("n"), 5)
        pipe.multi()
        pipe.set(key("n"), 1)
        with pytest.raises(WatchError):
            await pipe.execute()

        async def double(pipe):
            value = int(await pipe.get(key("n")))
            pipe.multi()
            pipe.set(key("n"), 2 * value)

        assert await r.transaction(double, key("n")) == [True]
        assert await r.get(key("n")) == "10"


async def test_tasks_get_their_own_replies(variant, key, fire):
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        URL, max_connections=10, timeout=PATIENCE, **async_options(variant)
    )
    r = redis.asyncio.Redis.from_pool(pool)

    async def work(task: int) -> None:
        for turn in range(10):
            mine, name = f"{task}/{turn}", key(f"{task}:{turn}")
            assert await r.echo(mine) == mine
            async with r.pipeline(transaction=turn % 2 == 0) as pipe:
                pipe.set(name, mine).get(name).incr(fire)
                done, value, _ = await pipe.execute()
            assert (done, value) == (True, mine)
            assert await r.eval("return {KEYS[1], ARGV[1]}", 1, name, mine) == [name, mine]
            await r.rpush(name + "l", mine)
            assert list(await r.blpop(name + "l", timeout=PATIENCE)) == [name + "l", mine]

    async with r:
        await asyncio.gather(*(work(task) for task in range(50)))
        assert int(await r.get(fire)) == 500


async def test_blocking(aconnect, key):
    async with aconnect() as r:
        assert await r.blpop(key("q"), timeout=0.01) is None
        assert not await r.xread({key("s"): "$"}, block=10)
        waiting = [asyncio.create_task(r.brpop([key("q"), key("r")], timeout=PATIENCE)) for _ in range(10)]
        await blocked(r, 10)
        assert await r.lpush(key("r"), *range(10)) == 10
        assert sorted(int(value) for _, value in await asyncio.gather(*waiting)) == list(range(10))
        read = asyncio.create_task(r.xread({key("s"): "$"}, block=PATIENCE * 1000))
        await blocked(r)
        number = await r.xadd(key("s"), {"a": "1"})
        assert number in str(await read)


async def test_a_cancelled_call_takes_nothing(aconnect, key):
    async with aconnect() as r:
        popped = asyncio.create_task(r.blpop(key("q"), timeout=PATIENCE))
        await blocked(r)
        popped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await popped
        while (await r.info("clients"))["blocked_clients"]:
            await asyncio.sleep(0.01)
        assert await r.rpush(key("q"), "kept") == 1
        assert await r.lpop(key("q")) == "kept"


async def test_pubsub(aconnect, token):
    async with aconnect() as r, r.pubsub() as pubsub:
        await pubsub.subscribe(token)
        await pubsub.psubscribe(f"{token}*")
        await pubsub.ssubscribe(token)
        kinds = [(await pubsub.get_message(timeout=PATIENCE))["type"] for _ in range(3)]
        assert kinds == ["subscribe", "psubscribe", "ssubscribe"]

        async def publish() -> None:
            for n in range(100):
                assert await r.publish(token, n) == 2
            assert await r.spublish(token, "end") == 1

        publishing = asyncio.create_task(publish())
        got = []
        async for message in pubsub.listen():
            if message["type"] == "smessage":
                break
            got.append((message["type"], int(message["data"])))
        await publishing
        assert got == [(kind, n) for n in range(100) for kind in ("message", "pmessage")]
        await pubsub.unsubscribe()
        await pubsub.punsubscribe()
        await pubsub.sunsubscribe()
        kinds = [(await pubsub.get_message(timeout=PATIENCE))["type"] for _ in range(3)]
        assert sorted(kinds) == ["punsubscribe", "sunsubscribe", "unsubscribe"]


async def test_scripts_and_locks(aconnect, direct, key, fire):
    async with aconnect() as r:
        script = r.register_script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
        direct.script_flush()
        assert await script(keys=[fire], args=[2]) == 2
        assert await script(keys=[fire], args=[3]) == 5
        await r.set(key("n"), 0)

        async def count() -> None:
            async with r.lock(key("lock"), timeout=60, sleep=0.001):
                await r.set(key("n"), int(await r.get(key("n"))) + 1)

        await asyncio.gather(*(count() for _ in range(20)))
        assert await r.get(key("n")) == "20"
        lock = r.lock(key("lock"), timeout=60)
        assert await lock.acquire() is True
        await r.set(key("lock"), "another's")
        with pytest.raises(LockNotOwnedError):
            await lock.release()


async def test_groups(aconnect, key):
    async with aconnect() as r:
        await r.xgroup_create(key("s"), "g", mkstream=True)
        read = asyncio.create_task(r.xreadgroup("g", "me", {key("s"): ">"}, block=PATIENCE * 1000))
        await blocked(r)
        number = await r.xadd(key("s"), {"a": "1"})
        assert number in str(await read)
        assert (await r.xpending(key("s"), "g"))["pending"] == 1
        assert await r.xack(key("s"), "g", number) == 1


async def test_killed_connections(aconnect, direct, key):
    async with aconnect(single_connection_client=True) as r:
        direct.client_kill_filter(_id=await r.client_id())
        with pytest.raises(ConnectionError):
            await r.ping()
        assert await r.ping() is True
    again = redis.asyncio.retry.Retry(NoBackoff(), 3)
    async with aconnect(single_connection_client=True, retry=again) as r:
        direct.client_kill_filter(_id=await r.client_id())
        assert await r.set(key("a"), 1) is True


@pytest.mark.proxy
async def test_dependents_are_gone_when_the_write_is_answered(aconnect, direct, token):
    async with aconnect() as r:
        for n in range(20):
            direct.mset({f"page:{token}:{n}:{m}": 1 for m in range(20)})
            assert await r.set(f"post:{token}", n) is True
            assert direct.exists(*(f"page:{token}:{n}:{m}" for m in range(20))) == 0

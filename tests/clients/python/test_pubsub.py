"""Pub/Sub: channels, patterns, shard channels; polled, listened to, in a thread."""

import queue

import pytest
from support import PATIENCE, eventually


def read(pubsub) -> tuple:
    message = pubsub.get_message(timeout=PATIENCE)
    assert message is not None, "no message"
    return message["type"], message["pattern"], message["channel"], message["data"]


def test_channels_and_patterns(r, connect, direct, token):
    a, b, pattern = f"{token}:a", f"{token}:b", f"{token}:*"
    with r.pubsub() as pubsub:
        pubsub.subscribe(a, b)
        pubsub.psubscribe(pattern)
        assert [read(pubsub) for _ in range(3)] == [
            ("subscribe", None, a, 1),
            ("subscribe", None, b, 2),
            ("psubscribe", None, pattern, 3),
        ]
        for publisher in (r, connect(), direct):
            assert publisher.publish(a, "héllo") == 2
            assert read(pubsub) == ("message", None, a, "héllo")
            assert read(pubsub) == ("pmessage", pattern, a, "héllo")
        assert r.publish(f"{token}:c", "x") == 1
        assert read(pubsub) == ("pmessage", pattern, f"{token}:c", "x")
        assert r.pubsub_numsub(a, b) == [(a, 1), (b, 1)]
        assert sorted(r.pubsub_channels(pattern)) == [a, b]
        assert r.pubsub_numpat() >= 1
        pubsub.unsubscribe(a)
        pubsub.punsubscribe()
        assert read(pubsub) == ("unsubscribe", None, a, 2)
        assert read(pubsub) == ("punsubscribe", None, pattern, 1)
        assert r.publish(a, "nobody listens") == 0
        pubsub.unsubscribe()
        assert read(pubsub) == ("unsubscribe", None, b, 0)
        assert pubsub.subscribed is False
    eventually(lambda: r.publish(b, "nobody listens") == 0)


def test_shard_channels(r, direct, token):
    with r.pubsub() as pubsub:
        pubsub.ssubscribe(token, f"{token}2")
        assert read(pubsub) == ("ssubscribe", None, token, 1)
        assert read(pubsub) == ("ssubscribe", None, f"{token}2", 2)
        assert r.publish(token, "not for shard channels") == 0
        for publisher in (r, direct):
            assert publisher.spublish(token, "m") == 1
            assert read(pubsub) == ("smessage", None, token, "m")
        assert r.pubsub_shardnumsub(token) == [(token, 1)]
        assert token in r.pubsub_shardchannels()
        pubsub.sunsubscribe()
        assert {read(pubsub)[:3] for _ in range(2)} == {
            ("sunsubscribe", None, token),
            ("sunsubscribe", None, f"{token}2"),
        }


def test_many_messages_in_order(r, connect, token):
    publisher, count = connect(), 1500
    with r.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(token)
        assert pubsub.get_message(timeout=PATIENCE) is None
        pipe = publisher.pipeline(transaction=False)
        for n in range(count):
            pipe.publish(token, n)
        assert pipe.execute() == [1] * count
        assert [int(read(pubsub)[3]) for _ in range(count)] == list(range(count))


def test_ping_and_big_messages(connect, token):
    r = connect(decode_responses=False)
    payload = bytes(range(256)) * 8192
    with r.pubsub() as pubsub:
        pubsub.subscribe(token)
        assert read(pubsub)[0] == "subscribe"
        pubsub.ping("are you there")
        assert read(pubsub)[0] == "pong"
        assert r.publish(token, payload) == 1
        assert read(pubsub) == ("message", None, token.encode(), payload)


def test_handlers_in_a_thread(r, token):
    got, failures = queue.Queue(), []
    pubsub = r.pubsub(ignore_subscribe_messages=True)
    pubsub.subscribe(**{token: got.put})
    pubsub.psubscribe(**{f"{token}:*": got.put})
    thread = pubsub.run_in_thread(sleep_time=0.1, exception_handler=lambda error, *_: failures.append(error))
    try:
        eventually(lambda: r.publish(token, "first") == 1)
        assert got.get(timeout=PATIENCE)["data"] == "first"
        eventually(lambda: r.publish(f"{token}:x", "second") == 1)
        message = got.get(timeout=PATIENCE)
        assert (message["channel"], message["data"]) == (f"{token}:x", "second")
    finally:
        thread.stop()
        thread.join(PATIENCE)
    assert not thread.is_alive()
    assert failures == []


def test_many_subscribers(connect, token):
    r = connect()
    subscribers = [r.pubsub(ignore_subscribe_messages=True) for _ in range(30)]
    for number, pubsub in enumerate(subscribers):
        pubsub.subscribe(token, f"{token}:{number}")
        for _ in range(2):
            assert pubsub.get_message(timeout=PATIENCE) is None
    assert r.publish(token, "to all") == 30
    for number in range(30):
        assert r.publish(f"{token}:{number}", f"only {number}") == 1
    for number, pubsub in enumerate(subscribers):
        assert read(pubsub)[3] == "to all"
        assert read(pubsub)[3] == f"only {number}"
        pubsub.close()


def test_events_of_the_server(r, direct, key):
    """Keyspace events reach clients as those of Redis do."""
    before = direct.config_get("notify-keyspace-events")["notify-keyspace-events"]
    direct.config_set("notify-keyspace-events", before + "KEA")
    try:
        with r.pubsub(ignore_subscribe_messages=True) as pubsub:
            pubsub.psubscribe(f"__keyspace@1__:{key('*')}")
            assert pubsub.get_message(timeout=PATIENCE) is None
            r.set(key("a"), 1)
            r.delete(key("a"))
            events = [read(pubsub)[2:] for _ in range(2 + ("n" in before))]
        assert [what for _, what in events if what != "new"] == ["set", "del"]
        assert {channel for channel, _ in events} == {f"__keyspace@1__:{key('a')}"}
    finally:
        direct.config_set("notify-keyspace-events", before)

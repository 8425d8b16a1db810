"""django-redis as Django's cache, without a project."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.conf import settings
from support import DIRECT_URL, PATIENCE, URL

BACKEND = {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": f"{URL}/1", "KEY_PREFIX": "app"}


def cache(**options) -> dict:
    return BACKEND | {"OPTIONS": options}


settings.configure(
    CACHES={
        "default": cache(),
        "zlib-json": cache(
            COMPRESSOR="django_redis.compressors.zlib.ZlibCompressor",
            SERIALIZER="django_redis.serializers.json.JSONSerializer",
            CONNECTION_POOL_KWARGS={"protocol": 2},
        ),
        "herd": cache(CLIENT_CLASS="django_redis.client.HerdClient"),
        "direct": BACKEND | {"LOCATION": f"{DIRECT_URL}/1"},
    },
    CACHE_HERD_TIMEOUT=60,
)

from django.core.cache import caches  # noqa: E402
from django_redis import get_redis_connection  # noqa: E402


@pytest.fixture(params=["default", "zlib-json", "herd"])
def c(request):
    return caches[request.param]


def test_values(c, token):
    value = {"text": "ü" * 1000, "list": [1, 2.5, None, True]}
    assert c.set(token, value, timeout=60) is True
    assert c.get(token) == value
    assert token in c
    assert c.get("none" + token, "default") == "default"
    assert c.add(token, 1) is False
    assert c.add(token + "2", 1, timeout=None) is True
    assert c.get_or_set(token + "3", lambda: "made", timeout=60) == "made"
    assert c.get_or_set(token + "3", lambda: "made again") == "made"
    assert c.delete(token) is True
    assert c.delete(token) is False
    assert c.get(token) is None


def test_many(c, token):
    values = {f"{token}:{n}": n for n in range(200)}
    c.set_many(values, timeout=60)
    assert c.get_many([*values, "none"]) == values
    assert c.delete_many(list(values)[:50]) == 50
    assert len(c.get_many(values)) == 150


def test_times_to_live(token):
    c = caches["default"]  # a herd client lets everything live longer
    c.set(token, 1, timeout=100)
    assert 0 < c.ttl(token) <= 100
    assert 0 < c.pttl(token) <= 100_000
    assert c.touch(token, 500) is True
    assert c.ttl(token) > 100
    assert c.persist(token) is True
    assert c.ttl(token) is None
    assert c.expire(token, 50) is True
    assert 0 < c.ttl(token) <= 50
    assert not c.ttl("none" + token)
    c.set(token, 1, timeout=0)
    assert c.get(token) is None


def test_counting(token):
    c = caches["default"]
    c.set(token, 5, timeout=60)
    assert c.incr(token) == 6
    assert c.incr(token, 10) == 16
    assert c.decr(token, 3) == 13
    assert c.get(token) == 13
    assert 0 < c.ttl(token) <= 60
    with pytest.raises(ValueError, match="not found"):
        c.incr("none" + token)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: c.incr(token), range(200)))
    assert c.get(token) == 213


def test_patterns_and_versions(c, token):
    c.set_many({f"{token}:a:{n}": n for n in range(100)} | {f"{token}:b": 1})
    assert len(c.keys(f"{token}:*")) == 101
    found = set(c.iter_keys(f"{token}:a:*", itersize=30))
    assert found == {f"{token}:a:{n}" for n in range(100)}
    assert c.delete_pattern(f"{token}:a:*", itersize=30) == 100
    assert list(c.iter_keys(f"{token}:*")) == [f"{token}:b"]
    c.set(token, "two", version=2)
    assert c.get(token) is None
    assert c.get(token, version=2) == "two"
    assert c.incr_version(token, version=2) == 3
    assert c.get(token, version=3) == "two"


def test_locks(token):
    c, inside, counted = caches["default"], threading.Lock(), []

    def count(_: int) -> None:
        with c.lock(token, timeout=60, sleep=0.001, blocking_timeout=PATIENCE):
            assert inside.acquire(blocking=False), "two have the lock"
            counted.append(c.get(token + "n", 0))
            c.set(token + "n", counted[-1] + 1)
            inside.release()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(count, range(30)))
    assert counted == list(range(30))


def test_the_client_below(token):
    r = get_redis_connection("default")
    assert r.set(f"app:1:{token}", 7) is True
    assert caches["default"].get(token) == 7
    with r.pipeline() as pipe:
        assert pipe.hset(f"app:1:{token}h", "a", 1).hgetall(f"app:1:{token}h").execute() == [1, {b"a": b"1"}]


@pytest.mark.proxy
def test_dependents_are_gone_when_the_model_is_saved(token):
    c, direct = caches["default"], caches["direct"]
    direct.set_many({f"page:{token}:{n}": "old" for n in range(30)} | {f"other:{token}": "stays"})
    assert c.get(f"page:{token}:1") == "old"
    c.set(f"post:{token}", 1, timeout=60)
    assert direct.get_many([f"page:{token}:{n}" for n in range(30)]) == {}
    assert direct.get(f"other:{token}") == "stays"

"""The cache API of Django and django-redis, and what it wrote being invalidated."""

from django.core.cache import cache
from django.test import tag
from django_redis import get_redis_connection

from portfolio.models import Post, Tool

from .base import CacheTestCase


class CacheApi(CacheTestCase):
    def test_set_get_delete(self) -> None:
        for value in (0, -5, 2**70, "", "é" * 50, b"\0\r\n", None, [1, {"a": (2,)}]):
            cache.set("value", value)
            self.assertEqual(cache.get("value", "default"), value)
        self.assertTrue(cache.delete("value"))
        self.assertFalse(cache.delete("value"))
        self.assertEqual(cache.get("value", "default"), "default")

    def test_incr_and_decr(self) -> None:
        cache.set("counter", 5)
        self.assertEqual(cache.incr("counter"), 6)
        self.assertEqual(cache.incr("counter", 10), 16)
        self.assertEqual(cache.decr("counter", 20), -4)
        with self.assertRaises(ValueError):
            cache.incr("no such counter")

    def test_touch_and_ttl(self) -> None:
        cache.set("value", 1, timeout=10)
        self.assertTrue(cache.touch("value", 1000))
        self.assertTrue(990 < cache.ttl("value") <= 1000)
        self.assertFalse(cache.touch("no such value", 1000))
        cache.persist("value")
        self.assertIsNone(cache.ttl("value"))

    def test_many(self) -> None:
        values = {f"value {n}": "x" * n for n in range(200)}
        cache.set_many(values, timeout=60)
        self.assertEqual(cache.get_many([*values, "no such value"]), values)
        self.assertEqual(cache.delete_many(values), 200)
        self.assertEqual(cache.get_many(values), {})

    def test_add(self) -> None:
        self.assertTrue(cache.add("value", "first"))
        self.assertFalse(cache.add("value", "second"))
        self.assertEqual(cache.get("value"), "first")

    def test_get_or_set(self) -> None:
        self.assertEqual(cache.get_or_set("value", lambda: "first", 60), "first")
        self.assertEqual(cache.get_or_set("value", lambda: "second", 60), "first")

    def test_has_key_and_versions(self) -> None:
        cache.set("value", 1)
        self.assertIn("value", cache)
        self.assertNotIn("value", cache.keys("other*"))
        self.assertEqual(cache.incr_version("value"), 2)
        self.assertNotIn("value", cache)
        self.assertEqual(cache.get("value", version=2), 1)

    def test_lock(self) -> None:
        with cache.lock("lock", timeout=10):
            self.assertIn("lock", self.cached())
            self.assertFalse(cache.lock("lock").acquire(blocking=False))
        self.assertNotIn("lock", self.cached())
        self.assertTrue(cache.lock("lock", timeout=10).acquire(blocking=False))

    def test_delete_pattern(self) -> None:
        self.fill()
        before = self.cached()
        self.assertEqual(cache.delete_pattern("home_page_data_*"), 2)
        gone = {"home_page_data_en", "home_page_data_de"}
        self.assertEqual(self.cached(), before - gone)
        cache.set_many({f"row_{n}": n for n in range(500)})
        self.assertEqual(cache.delete_pattern("row_*", itersize=100), 500)

    def test_keys(self) -> None:
        cache.set_many({"row_1": 1, "row_2": 2})
        self.assertEqual(sorted(cache.keys("row_*")), ["row_1", "row_2"])
        self.assertEqual(sorted(cache.iter_keys("row_*")), ["row_1", "row_2"])

    def test_clear(self) -> None:
        self.fill()
        cache.clear()
        self.assertEqual(self.cached(), set())

    def test_raw_client(self) -> None:
        with get_redis_connection("default").pipeline() as pipe:
            pipe.watch("app:1:raw")
            pipe.multi()
            pipe.hset("app:1:raw", mapping={"a": 1})
            pipe.expire("app:1:raw", 60)
            self.assertEqual(pipe.execute(), [1, True])
        self.assertEqual(self.redis.hgetall("app:1:raw"), {"a": "1"})


@tag("rescind")
class WrittenInAnyWay(CacheTestCase):
    """Whichever command made or changed a page, the next save deletes it."""

    def assert_deleted_with(self, model: type) -> None:
        instance = model.objects.first()
        instance.save()
        self.assertEqual(self.cached(), {f"model:{model.__name__}:{instance.pk}"})

    def test_set_many(self) -> None:
        cache.set_many({f"tools_{n}": n for n in range(100)}, timeout=60)
        self.assert_deleted_with(Tool)

    def test_add(self) -> None:
        cache.add("tools_1", "x")
        self.assert_deleted_with(Tool)

    def test_get_or_set(self) -> None:
        self.assertEqual(cache.get_or_set("tools_1", lambda: "x", 60), "x")
        self.assert_deleted_with(Tool)

    def test_incr(self) -> None:
        cache.incr("tools_visits", ignore_key_check=True)
        cache.incr("tools_visits")
        self.assert_deleted_with(Tool)

    def test_touch(self) -> None:
        cache.set("blog_posts_1", "x", timeout=1)
        cache.touch("blog_posts_1", 1000)
        self.assert_deleted_with(Post)

    def test_without_timeout(self) -> None:
        cache.set("blog_posts_1", "x", timeout=None)
        self.assert_deleted_with(Post)

    def test_deleted_and_written_again(self) -> None:
        cache.set("blog_posts_1", "x")
        cache.delete("blog_posts_1")
        cache.set("blog_posts_1", "y")
        self.assert_deleted_with(Post)

    def test_raw_client(self) -> None:
        redis = get_redis_connection("default")
        redis.hset("app:1:blog_posts_1", "field", "x")
        redis.rpush("app:1:blog_posts_2", "x", "y")
        redis.rename("app:1:blog_posts_2", "app:1:blog_posts_3")
        redis.copy("app:1:blog_posts_1", "app:1:blog_posts_4")
        self.assert_deleted_with(Post)

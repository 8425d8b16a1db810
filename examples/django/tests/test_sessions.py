"""Sessions live in database 2, where no rule applies."""

from django.contrib.auth.models import User
from django.core.cache import cache
from django_redis import get_redis_connection

from portfolio.models import PersonalInfo, Post

from .base import NEW_OBJECT, PREFIX, CacheTestCase, direct


class Sessions(CacheTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.sessions = direct(2)
        self.addCleanup(self.sessions.close)
        self.log_everybody_out()
        self.addCleanup(self.log_everybody_out)
        self.client.force_login(User.objects.create_superuser("root"))

    def log_everybody_out(self) -> None:
        if keys := self.sessions.keys("session:*"):
            self.sessions.delete(*keys)

    def assert_logged_in(self) -> None:
        self.assertEqual(self.client.get("/admin/").status_code, 200)

    def test_a_session_is_one_key_in_database_2(self) -> None:
        (key,) = self.sessions.keys("session:*")
        self.assertTrue(key.startswith("session:1:django.contrib.sessions.cache"))
        self.assertEqual(self.redis.keys("session:*"), [])
        self.assert_logged_in()

    def test_a_session_survives_every_invalidation(self) -> None:
        before = self.sessions.keys("session:*")
        self.fill()
        for model, fields in NEW_OBJECT.items():
            model.objects.create(**fields)
            after = self.sessions.keys("session:*")
            self.assertEqual(after, before, model.__name__)
        PersonalInfo.objects.all().delete()
        self.assert_logged_in()

    def test_a_session_survives_a_cleared_cache(self) -> None:
        self.fill()
        cache.clear()
        self.assertEqual(self.cached(), set())
        self.assert_logged_in()

    def test_the_same_key_in_database_2_is_left_alone(self) -> None:
        self.sessions.set(f"{PREFIX}blog_posts_1", "kept", ex=60)
        self.addCleanup(self.sessions.delete, f"{PREFIX}blog_posts_1")
        Post.objects.first().save()
        self.assertEqual(self.sessions.get(f"{PREFIX}blog_posts_1"), "kept")

    def test_a_trigger_key_in_database_2_triggers_nothing(self) -> None:
        self.fill()
        before = self.cached()
        redis = get_redis_connection("sessions")
        redis.set(f"{PREFIX}model:Post:1", 1, ex=60)
        self.addCleanup(redis.delete, f"{PREFIX}model:Post:1")
        self.assertEqual(self.cached(), before)

    def test_logging_out_removes_the_session(self) -> None:
        self.client.logout()
        self.assertEqual(self.sessions.keys("session:*"), [])

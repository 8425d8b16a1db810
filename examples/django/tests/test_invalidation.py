"""Through Rescind: once save() returns, exactly the mapped pages are gone."""

from unittest import mock

from django.core.cache import cache
from django.db import connection, transaction
from django.test import tag

from portfolio.models import (
    AITool,
    ContactMessage,
    PersonalInfo,
    Post,
    SocialLink,
    Tool,
)

from .base import CHANGED_FIELD, NEW_OBJECT, PREFIX, CacheTestCase, dependents


@tag("rescind")
class EachModel(CacheTestCase):
    def check(self, model: type) -> None:
        with self.subTest("create"):
            self.fill()
            created = model.objects.create(**NEW_OBJECT[model])
            self.assert_invalidated(model, created.pk)
            self.assert_pages_are_current()
        with self.subTest("update"):
            self.forget()
            self.fill()
            setattr(created, CHANGED_FIELD[model], "Changed")
            created.save()
            self.assert_invalidated(model, created.pk)
            self.assert_pages_are_current()
        with self.subTest("delete"):
            self.forget()
            self.fill()
            pk = created.pk
            created.delete()
            self.assert_invalidated(model, pk)
            self.assert_pages_are_current()

    def test_personal_info(self) -> None:
        self.check(PersonalInfo)

    def test_social_link(self) -> None:
        self.check(SocialLink)

    def test_post(self) -> None:
        self.check(Post)

    def test_tool(self) -> None:
        self.check(Tool)

    def test_ai_tool(self) -> None:
        self.check(AITool)

    def test_contact_message(self) -> None:
        self.check(ContactMessage)


@tag("rescind")
class Details(CacheTestCase):
    def test_the_patterns_are_anchored(self) -> None:
        self.assertNotIn("ai_tools_1", dependents(Tool))
        self.fill()
        Tool.objects.first().save()
        self.assertNotIn("tools_1", self.cached())
        self.assertIn("ai_tools_1", self.cached())

    def test_the_next_visit_shows_the_change(self) -> None:
        self.fill()
        Post.objects.create(title="News", body="Today")
        state, blog = self.visit("/blog/")
        self.assertEqual((state, blog["items"][0]["title"]), ("miss", "News"))
        state, home = self.visit("/")
        self.assertEqual((state, home["posts"][0]["title"]), ("miss", "News"))
        self.assertEqual(self.visit("/tools/")[0], "hit")

    def test_every_one_of_many_saves_in_a_row(self) -> None:
        post = Post.objects.first()
        for number in range(30):
            self.visit("/blog/")
            post.title = f"Edit {number}"
            post.save()
            self.assertNotIn("blog_posts_1", self.cached())
            self.assertEqual(
                self.visit("/blog/")[1]["items"][0]["title"], f"Edit {number}"
            )

    def test_the_contact_form_changes_the_statistics(self) -> None:
        self.fill()
        message = {"name": "Eve", "email": "eve@example.com", "body": "Hello"}
        pk = self.client.post("/contact/", message).json()["id"]
        self.assert_invalidated(ContactMessage, pk)
        self.assertEqual(self.visit("/statistics/")[1]["messages"], 2)

    def test_a_rollback_invalidates_nothing(self) -> None:
        self.fill()
        before = self.cached()
        with self.assertRaises(ZeroDivisionError), transaction.atomic():
            Post.objects.first().save()
            raise ZeroDivisionError
        self.assertEqual(self.cached(), before)

    def test_keys_of_one_post(self) -> None:
        first, second = Post.objects.all()[:2]
        for post in (first, second):
            cache.set(f"post:{post.pk}:card", post.title)
            cache.set(f"feed:atom:{post.pk}", post.title)
        first.save()
        self.assertEqual(
            self.cached(),
            {
                f"post:{second.pk}:card",
                f"feed:atom:{second.pk}",
                f"model:Post:{first.pk}",
            },
        )

    def test_pages_written_past_the_proxy_are_deleted_too(self) -> None:
        self.redis.set(f"{PREFIX}blog_posts_77", "from somewhere else", ex=60)
        Post.objects.first().save()
        self.assertNotIn("blog_posts_77", self.cached())

    def test_pages_of_all_sizes_are_deleted(self) -> None:
        for number, size in enumerate((0, 1, 14, 1_000, 1_000_000), start=100):
            cache.set(f"blog_posts_{number}", "x" * size)
            self.assertEqual(len(cache.get(f"blog_posts_{number}")), size)
        Post.objects.first().save()
        self.assertEqual({k for k in self.cached() if k.startswith("blog")}, set())

    def test_other_versions_and_prefixes_are_left_alone(self) -> None:
        cache.set("blog_posts_1", "next version", version=2)
        self.redis.set("blog_posts_1", "no prefix", ex=60)
        self.addCleanup(self.redis.delete, "blog_posts_1")
        Post.objects.first().save()
        self.assertEqual(self.redis.get("blog_posts_1"), "no prefix")
        self.assertEqual(cache.get("blog_posts_1", version=2), "next version")

    def test_the_database_was_not_asked_for_a_cached_page(self) -> None:
        self.fill()
        Tool.objects.first().save()
        with self.assertNumQueries(0, using=connection.alias):
            self.assertEqual(self.visit("/blog/")[0], "hit")

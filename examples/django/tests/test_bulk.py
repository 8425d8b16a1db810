"""Bulk edits: with signals, without them, and in one transaction."""

from django.contrib.auth.models import User
from django.db import transaction
from django.test import tag

from portfolio.invalidation import announce_many
from portfolio.models import AITool, Post, Tool

from .base import PAGES, CacheTestCase, dependents


@tag("rescind")
class BulkEdits(CacheTestCase):
    def test_many_models_in_one_transaction(self) -> None:
        self.fill()
        with transaction.atomic():
            for model in (Post, Tool):
                for instance in model.objects.all():
                    instance.save()
            self.assertEqual(self.cached(), set(PAGES.values()))
        gone = dependents(Post) | dependents(Tool)
        self.assertEqual(
            self.cached() & set(PAGES.values()), set(PAGES.values()) - gone
        )
        self.assert_pages_are_current()

    def test_delete_of_a_query_set(self) -> None:
        self.fill()
        pks = list(AITool.objects.values_list("pk", flat=True)[:5])
        AITool.objects.filter(pk__in=pks).delete()
        self.assert_invalidated(AITool, *pks)

    def test_update_sends_no_signals(self) -> None:
        """Django's rule, not Rescind's: an update() nobody announces is not seen."""
        self.fill()
        Post.objects.update(title="Same")
        self.assertEqual(self.cached(), set(PAGES.values()))

    def test_announced_update(self) -> None:
        self.fill()
        pks = list(Post.objects.values_list("pk", flat=True))
        Post.objects.update(title="Same")
        announce_many(Post, pks)
        self.assert_invalidated(Post, *pks)
        self.assert_pages_are_current()

    def test_announced_bulk_create(self) -> None:
        self.fill()
        tools = [Tool(name=f"T{n}", url="https://example.com") for n in range(50)]
        pks = [tool.pk for tool in Tool.objects.bulk_create(tools)]
        announce_many(Tool, pks)
        self.assert_invalidated(Tool, *pks)

    def test_an_empty_announcement_does_nothing(self) -> None:
        self.fill()
        announce_many(Post, [])
        self.assertEqual(self.cached(), set(PAGES.values()))

    def test_admin_action(self) -> None:
        self.client.force_login(User.objects.create_superuser("root"))
        self.fill()
        pks = list(Post.objects.values_list("pk", flat=True)[:2])
        form = {"action": "unpublish", "_selected_action": pks}
        self.client.post("/admin/portfolio/post/", form)
        self.assert_invalidated(Post, *pks)
        self.assertEqual(len(self.visit("/blog/")[1]["items"]), 5)
        self.assertEqual(Post.objects.filter(published=True).count(), 5)

    def test_admin_form(self) -> None:
        self.client.force_login(User.objects.create_superuser("root"))
        self.fill()
        tool = Tool.objects.first()
        form = {"name": "Renamed", "url": tool.url, "description": ""}
        self.client.post(f"/admin/portfolio/tool/{tool.pk}/change/", form)
        self.assert_invalidated(Tool, tool.pk)
        self.assertIn("Renamed", str(self.visit("/tools/")[1]))

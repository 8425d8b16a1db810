"""With the cache down, pages come from the database and saving works."""

import copy
import logging
import socket
import time

from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from django.core.cache import cache
from django.core.management import call_command
from django.test import RequestFactory, TransactionTestCase, override_settings

from portfolio.admin import PostAdmin
from portfolio.models import Post

from .base import NEW_OBJECT, PAGES


def closed_port_caches() -> tuple[dict, socket.socket]:
    """CACHES that point at a port which refuses every connection. The socket keeps
    it from being given to anybody else: it is bound, but does not listen."""
    holder = socket.socket()
    holder.bind(("127.0.0.1", 0))
    caches = copy.deepcopy(settings.CACHES)
    for database, alias in enumerate(caches, start=1):
        port = holder.getsockname()[1]
        caches[alias]["LOCATION"] = f"redis://127.0.0.1:{port}/{database}"
    return caches, holder


class CacheIsDown(TransactionTestCase):
    def setUp(self) -> None:
        caches, holder = closed_port_caches()
        self.addCleanup(holder.close)
        self.enterContext(override_settings(CACHES=caches))
        self.logs = self.enterContext(self.assertLogs("portfolio", logging.ERROR))
        call_command("seed", verbosity=0)

    def test_pages_come_from_the_database(self) -> None:
        for path in PAGES:
            response = self.client.get(path)
            self.assertEqual(response.status_code, 200, path)
            self.assertEqual(response["X-Cache"], "miss")
        Post.objects.create(title="News", body="Today")
        self.assertEqual(self.client.get("/blog/").json()["items"][0]["title"], "News")

    def test_every_change_is_saved(self) -> None:
        for model, fields in NEW_OBJECT.items():
            instance = model.objects.create(**fields)
            instance.save()
            pk = instance.pk
            self.assertTrue(model.objects.filter(pk=pk).exists())
            instance.delete()
            self.assertFalse(model.objects.filter(pk=pk).exists())

    def test_bulk_edits_are_saved(self) -> None:
        request = RequestFactory().post("/")
        request.user = AnonymousUser()
        PostAdmin(Post, None).unpublish(request, Post.objects.all())
        self.assertFalse(Post.objects.filter(published=True).exists())

    def test_the_contact_form_works(self) -> None:
        message = {"name": "Eve", "email": "eve@example.com", "body": "Hello"}
        self.assertEqual(self.client.post("/contact/", message).status_code, 201)

    def test_it_is_not_slow(self) -> None:
        start = time.monotonic()
        for path in PAGES:
            self.client.get(path)
        self.assertLess(time.monotonic() - start, 10)

    def test_it_is_logged(self) -> None:
        self.logs.records.clear()
        post = Post.objects.create(title="News", body="Today")
        errors = {record.name: record.getMessage() for record in self.logs.records}
        self.assertEqual(errors["portfolio.cache"], "Exception ignored")
        self.assertIn(
            f"model:Post:{post.pk} not announced", errors["portfolio.invalidation"]
        )

    def test_reads_answer_as_misses(self) -> None:
        self.assertEqual(cache.get("value", "default"), "default")
        self.assertEqual(cache.get_many(["value"]), {})
        self.assertFalse(cache.add("value", 1))

import zlib

from django.core.management import call_command
from django.test import Client

from portfolio.models import ContactMessage, Post, Tool

from .base import PAGES, PREFIX, CacheTestCase, direct


class Views(CacheTestCase):
    def test_every_page_is_cached_under_its_key(self) -> None:
        for path, key in PAGES.items():
            with self.subTest(path):
                self.assertNotIn(key, self.cached())
                first = self.visit(path)
                self.assertIn(key, self.cached())
                second = self.visit(path)
                self.assertEqual((first[0], second[0]), ("miss", "hit"))
                self.assertEqual(first[1], second[1])

    def test_cached_pages_expire(self) -> None:
        self.fill()
        for key in PAGES.values():
            self.assertTrue(0 < self.redis.ttl(PREFIX + key) <= 300, key)

    def test_pages_are_compressed(self) -> None:
        self.visit("/blog/")
        with direct(decode=False) as redis:
            stored = redis.get(f"{PREFIX}blog_posts_1")
        self.assertIn(b"Text 7.", zlib.decompress(stored))
        self.assertLess(len(stored), len(zlib.decompress(stored)) / 4)

    def test_content(self) -> None:
        self.assertEqual(self.visit("/")[1]["headline"], "I build fast web sites")
        self.assertEqual(
            self.visit("/de/")[1]["headline"], "Ich baue schnelle Webseiten"
        )
        self.assertEqual(len(self.visit("/about/")[1]["links"]), 2)
        self.assertEqual(self.visit("/statistics/")[1]["messages"], 1)
        for path, sizes in {
            "blog": (5, 2),
            "tools": (5, 1),
            "ai-tools": (5, 1),
        }.items():
            pages = [self.visit(f"/{path}/{number}/")[1] for number in (1, 2)]
            self.assertEqual(tuple(len(page["items"]) for page in pages), sizes)

    def test_drafts_are_not_shown(self) -> None:
        Post.objects.create(title="Draft", body="…", published=False)
        for path in ("/", "/blog/"):
            self.assertNotIn("Draft", str(self.visit(path)[1]))

    def test_what_does_not_exist_is_not_cached(self) -> None:
        for path in ("/fr/", "/blog/0/", "/blog/99/", "/tools/99/", "/ai-tools/x/"):
            self.assertEqual(self.client.get(path).status_code, 404, path)
        self.assertEqual(self.cached(), set())

    def test_contact_form(self) -> None:
        self.assertEqual(self.client.post("/contact/", {"name": "x"}).status_code, 400)
        message = {"name": "Eve", "email": "eve@example.com", "body": "Hello"}
        self.assertEqual(self.client.post("/contact/", message).status_code, 201)
        self.assertTrue(ContactMessage.objects.filter(**message).exists())

    def test_only_the_contact_form_takes_posts(self) -> None:
        for path in PAGES:
            self.assertEqual(Client().post(path).status_code, 405, path)
        self.assertEqual(self.client.get("/contact/").status_code, 405)

    def test_seed_may_be_run_again(self) -> None:
        counts = Post.objects.count(), Tool.objects.count()
        call_command("seed", verbosity=0)
        self.assertEqual((Post.objects.count(), Tool.objects.count()), counts)

"""What the tests share: sample objects, all pages cached, a look past the proxy."""

from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from django.conf import settings
from django.core.cache import cache
from django.core.management import call_command
from django.db.models import Model
from django.test import TransactionTestCase
from redis import Redis

from portfolio import models
from portfolio.invalidation import trigger_key

PREFIX = "app:1:"

PAGES = {
    "/": "home_page_data_en",
    "/de/": "home_page_data_de",
    "/about/": "personal_page_data",
    "/statistics/": "portfolio_statistics",
    "/blog/": "blog_posts_1",
    "/blog/2/": "blog_posts_2",
    "/tools/": "tools_1",
    "/tools/2/": "tools_2",
    "/ai-tools/": "ai_tools_1",
    "/ai-tools/2/": "ai_tools_2",
}

# Said again, not read from proxy.toml: the tests are what holds the two together.
DEPENDENTS: dict[type[Model], list[str]] = {
    models.PersonalInfo: [
        "home_page_data_*",
        "personal_page_data",
        "portfolio_statistics",
    ],
    models.SocialLink: ["home_page_data_*", "personal_page_data"],
    models.Post: ["home_page_data_*", "blog_posts_*"],
    models.Tool: ["home_page_data_*", "tools_*"],
    models.AITool: ["home_page_data_*", "ai_tools_*"],
    models.ContactMessage: ["portfolio_statistics"],
}

NEW_OBJECT = {
    models.PersonalInfo: {
        "name": "Bo",
        "headline_en": "Hello",
        "headline_de": "Hallo",
        "working_since": 2001,
    },
    models.SocialLink: {"label": "Blog", "url": "https://example.com/blog"},
    models.Post: {"title": "Fresh", "body": "From the press."},
    models.Tool: {"name": "Awk", "url": "https://example.com/awk"},
    models.AITool: {"name": "Agent", "url": "https://example.com/agent"},
    models.ContactMessage: {"name": "Cy", "email": "cy@example.com", "body": "Hi"},
}

CHANGED_FIELD = {
    models.PersonalInfo: "name",
    models.SocialLink: "label",
    models.Post: "title",
    models.Tool: "name",
    models.AITool: "name",
    models.ContactMessage: "name",
}


def direct_url(database: int = 1) -> str:
    url = getattr(settings, "REDIS_DIRECT_URL", settings.REDIS_URL)
    return urlsplit(url)._replace(path=f"/{database}").geturl()


def direct(database: int = 1, decode: bool = True) -> Redis:
    """A connection to Redis itself, past the proxy."""
    return Redis.from_url(direct_url(database), decode_responses=decode)


def dependents(model: type[Model]) -> set[str]:
    """The page keys that a change of `model` makes stale."""
    patterns = DEPENDENTS[model]
    return {k for k in PAGES.values() if any(fnmatchcase(k, p) for p in patterns)}


class CacheTestCase(TransactionTestCase):
    """Starts with the sample content and an empty cache.

    It commits for real: in a TestCase on_commit would never run.
    """

    def setUp(self) -> None:
        self.redis = direct()
        self.addCleanup(self.redis.close)
        call_command("seed", verbosity=0)
        models.ContactMessage.objects.create(
            name="Di", email="di@example.com", body="?"
        )
        self.forget()
        self.addCleanup(self.forget)

    def forget(self) -> None:
        """Removes what this project cached, and nothing that is the proxy's own.

        Through the proxy: this deletes trigger keys too, and past the proxy their
        fan-out would come when it comes, into the next test."""
        if keys := self.redis.keys("app:*"):
            with Redis.from_url(settings.REDIS_URL) as through:
                through.delete(*keys)

    def visit(self, path: str) -> tuple[str, dict]:
        """Whether the page was a hit or a miss, and what it says."""
        response = self.client.get(path)
        self.assertEqual(response.status_code, 200, path)
        return response["X-Cache"], response.json()

    def fill(self) -> None:
        """Visits every page, so that each is cached."""
        for path in PAGES:
            self.assertEqual(self.visit(path)[0], "miss", path)
        self.assertEqual(self.cached(), set(PAGES.values()))

    def cached(self) -> set[str]:
        """The keys that exist in Redis, without prefix. Asked past the proxy, whose
        metrics count reads."""
        return {key.removeprefix(PREFIX) for key in self.redis.keys("app:*")}

    def assert_invalidated(self, model: type[Model], *pks: object) -> None:
        """Of all pages exactly those of `model` are gone; nothing else is new but
        the trigger keys of the objects."""
        triggers = {trigger_key(model, pk) for pk in pks}
        pages = set(PAGES.values()) - dependents(model)
        self.assertEqual(self.cached(), pages | triggers)

    def assert_pages_are_current(self) -> None:
        """What the cached pages say is what the database says now."""
        for path in PAGES:
            served = self.visit(path)[1]
            cache.delete(PAGES[path])
            self.assertEqual(served, self.visit(path)[1], path)

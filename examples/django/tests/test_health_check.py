import copy
import json
from io import StringIO
from unittest import mock

from django.conf import settings
from django.core.management import CommandError, call_command
from django.test import SimpleTestCase, override_settings, tag
from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError

from portfolio.management.commands import cache_health_check as command

from .base import direct, direct_url
from .test_fallback import closed_port_caches


def run(*args: str) -> tuple[str, str | None]:
    """What the command printed, and why it failed, if it did."""
    out, error = StringIO(), None
    try:
        call_command("cache_health_check", *args, stdout=out, no_color=True)
    except CommandError as raised:
        error = str(raised)
        assert raised.returncode == 1
    return out.getvalue(), error


class Healthy(SimpleTestCase):
    def test_text(self) -> None:
        for alias in ("default", "sessions"):
            text, error = run("--alias", alias)
            self.assertIsNone(error)
            self.assertRegex(text, rf"cache +{alias}\n")
            self.assertRegex(text, r"latency +\d+\.\d\d ms")
            self.assertRegex(text, r"round trip +ok")
            self.assertRegex(text, r"verdict +healthy")

    def test_json(self) -> None:
        text, error = run("--json")
        self.assertIsNone(error)
        report = json.loads(text)
        self.assertTrue(report["healthy"] and report["round_trip"])
        self.assertGreater(report["latency_ms"], 0)
        self.assertIsNone(report["error"])

    def test_it_leaves_nothing_behind(self) -> None:
        run()
        with direct() as redis:
            self.assertEqual(redis.keys("*health_check*"), [])

    @tag("rescind")
    def test_it_knows_rescind(self) -> None:
        text, error = run("--require-rescind")
        self.assertIsNone(error)
        self.assertIn("Rescind (TAG.INFO answers)", text)
        self.assertEqual(json.loads(run("--json")[0])["server"], "rescind")


class PlainRedis(SimpleTestCase):
    def setUp(self) -> None:
        caches = copy.deepcopy(settings.CACHES)
        caches["default"]["LOCATION"] = direct_url()
        self.enterContext(override_settings(CACHES=caches))

    def test_it_is_healthy_but_named(self) -> None:
        text, error = run()
        self.assertIsNone(error)
        self.assertIn("plain Redis: nothing invalidates", text)
        self.assertEqual(json.loads(run("--json")[0])["server"], "redis")

    def test_it_may_be_refused(self) -> None:
        text, error = run("--require-rescind")
        self.assertIn("UNHEALTHY", text)
        self.assertEqual(error, "plain Redis, but Rescind is required")


class Unhealthy(SimpleTestCase):
    def test_closed_port(self) -> None:
        caches, holder = closed_port_caches()
        self.addCleanup(holder.close)
        with override_settings(CACHES=caches):
            text, error = run()
            report, json_error = run("--json")
        self.assertIn("unreachable", text)
        self.assertIn("UNHEALTHY", text)
        self.assertIn("Connection refused", error)
        report = json.loads(report)
        self.assertFalse(report["healthy"] or report["round_trip"])
        self.assertIsNone(report["latency_ms"])
        self.assertEqual(report["error"], json_error)

    def test_a_cache_that_forgets(self) -> None:
        with mock.patch.object(command, "round_trip", return_value=False):
            text, error = run()
        self.assertRegex(text, r"round trip +failed")
        self.assertIn("came back changed", error)


class TagInfo(SimpleTestCase):
    def test_who_answers(self) -> None:
        redis = mock.create_autospec(Redis, instance=True)
        redis.execute_command.return_value = b"index_keys:0"
        self.assertTrue(command.is_rescind(redis))
        redis.execute_command.side_effect = NoPermissionError("NOPERM")
        self.assertTrue(command.is_rescind(redis))
        redis.execute_command.side_effect = ResponseError("unknown command 'TAG.INFO'")
        self.assertFalse(command.is_rescind(redis))

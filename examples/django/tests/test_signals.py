"""One cache write per changed object, after the commit, never in the way of it."""

from unittest import mock

from django.contrib.auth.models import Group
from django.core.cache import cache
from django.db import transaction
from django.test import TestCase, TransactionTestCase

from portfolio.invalidation import announce_many
from portfolio.models import Post, Tool

from .base import NEW_OBJECT


def new_post(**fields: object) -> Post:
    return Post.objects.create(title="Title", body="Body", **fields)


class CommittedChanges(TransactionTestCase):
    def setUp(self) -> None:
        self.set = self.enterContext(mock.patch.object(cache, "set", return_value=True))

    def assert_written(self, *keys: str) -> None:
        self.assertEqual(
            self.set.mock_calls, [mock.call(key, 1, timeout=60) for key in keys]
        )
        self.set.reset_mock()

    def test_each_change_of_each_model_is_one_write(self) -> None:
        for model, fields in NEW_OBJECT.items():
            with self.subTest(model.__name__):
                instance = model.objects.create(**fields)
                key = f"model:{model.__name__}:{instance.pk}"
                self.assert_written(key)
                instance.save()
                self.assert_written(key)
                instance.delete()
                self.assert_written(key)

    def test_reading_writes_nothing(self) -> None:
        pk = new_post().pk
        self.set.reset_mock()
        list(Post.objects.filter(pk=pk))
        self.assert_written()

    def test_models_of_other_apps_are_not_announced(self) -> None:
        Group.objects.create(name="editors").delete()
        self.assert_written()

    def test_nothing_is_written_before_the_commit(self) -> None:
        with transaction.atomic():
            first, second = new_post(), new_post()
            self.assert_written()
        self.assert_written(f"model:Post:{first.pk}", f"model:Post:{second.pk}")

    def test_nothing_is_written_after_a_rollback(self) -> None:
        with self.assertRaises(ZeroDivisionError), transaction.atomic():
            new_post()
            raise ZeroDivisionError
        self.assert_written()

    def test_a_rolled_back_savepoint_is_not_announced(self) -> None:
        with transaction.atomic():
            kept = new_post()
            with self.assertRaises(ZeroDivisionError), transaction.atomic():
                new_post()
                raise ZeroDivisionError
        self.assert_written(f"model:Post:{kept.pk}")

    def test_a_deleted_query_set_announces_each_object(self) -> None:
        pks = [new_post().pk for _ in range(3)]
        self.set.reset_mock()
        Post.objects.filter(pk__in=pks).delete()
        written = {call.args[0] for call in self.set.mock_calls}
        self.assertEqual(written, {f"model:Post:{pk}" for pk in pks})
        self.assertEqual(self.set.call_count, 3)

    def test_a_failing_cache_does_not_break_saving(self) -> None:
        self.set.side_effect = RuntimeError("cache is broken")
        with self.assertLogs("django.db.backends.base", "ERROR") as logs:
            post = new_post()
        self.assertIn("cache is broken", logs.output[0])
        self.assertTrue(Post.objects.filter(pk=post.pk).exists())

    def test_one_failure_does_not_silence_the_rest(self) -> None:
        self.set.side_effect = [RuntimeError("once"), True]
        failed = self.assertLogs("django.db.backends.base", "ERROR")
        with failed, transaction.atomic():
            new_post()
            new_post()
        self.assertEqual(self.set.call_count, 2)

    def test_an_undelivered_write_is_logged(self) -> None:
        self.set.return_value = None  # what IGNORE_EXCEPTIONS makes of a failure
        with self.assertLogs("portfolio.invalidation", "ERROR") as logs:
            post = new_post()
        self.assertIn(f"model:Post:{post.pk} not announced", logs.output[0])


class ChangesInATestCase(TestCase):
    """A TestCase never commits, so its changes are announced only when it asks."""

    def test_capture_on_commit_callbacks(self) -> None:
        with mock.patch.object(cache, "set", return_value=True) as write:
            with self.captureOnCommitCallbacks(execute=True) as callbacks:
                tool = Tool.objects.create(name="Sed", url="https://example.com")
                write.assert_not_called()
        self.assertEqual(len(callbacks), 1)
        write.assert_called_once_with(f"model:Tool:{tool.pk}", 1, timeout=60)

    def test_many_objects_are_one_round_trip(self) -> None:
        with mock.patch.object(cache, "set_many") as write:
            with self.captureOnCommitCallbacks(execute=True):
                announce_many(Post, [1, 2])
        write.assert_called_once_with(
            {"model:Post:1": 1, "model:Post:2": 1}, timeout=60
        )

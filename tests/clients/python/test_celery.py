"""Celery: broker and results in Redis, a worker in a process of its own."""

import uuid

import pytest
from celery import chain, chord, group
from jobs import app, celery_add, celery_fail, celery_lucky, celery_total
from support import PATIENCE, eventually
from workers import worker


@pytest.fixture(scope="module", autouse=True)
def running(tmp_path_factory):
    name = f"w-{uuid.uuid4().hex}@localhost"
    command = ["celery", "-A", "jobs", "worker", "--pool", "threads", "--concurrency", "4", "--hostname", name]
    with worker(tmp_path_factory.mktemp("celery"), *command, "--loglevel", "INFO") as process:

        def answers() -> list:
            assert process.poll() is None, "the worker is gone"
            return app.control.ping(destination=[name], timeout=1, limit=1)

        assert eventually(answers) == [{name: {"ok": "pong"}}]
        yield name
        assert process.poll() is None, "the worker is gone"


def test_tasks():
    results = [celery_add.delay(n, 1) for n in range(50)]
    assert [result.get(timeout=PATIENCE) for result in results] == list(range(1, 51))
    assert results[0].state == "SUCCESS"
    results[0].forget()
    assert app.AsyncResult(results[0].id).state == "PENDING"


def test_one_after_the_other():
    """The worker waits in BRPOP each time, and the client for a message."""
    for n in range(20):
        assert celery_add.delay(n, n).get(timeout=PATIENCE) == 2 * n


def test_failures():
    result = celery_fail.delay("my words")
    with pytest.raises(ValueError, match="my words"):
        result.get(timeout=PATIENCE)
    assert result.state == "FAILURE"


def test_retries(token):
    assert celery_lucky.delay(f"k:{token}:celery").get(timeout=PATIENCE) == 3


def test_groups_chords_chains():
    assert group(celery_add.s(n, n) for n in range(20))().get(timeout=PATIENCE) == [2 * n for n in range(20)]
    assert chord((celery_add.s(n, 1) for n in range(20)), celery_total.s())().get(timeout=PATIENCE) == 210
    assert chain(celery_add.s(1, 2), celery_add.s(3), celery_add.s(4))().get(timeout=PATIENCE) == 10
    nested = chord([group(celery_add.s(n, 0) for n in range(3)), celery_add.s(10, 0)], celery_total.s())
    assert nested().get(timeout=PATIENCE) == 13


def test_later():
    assert celery_add.apply_async((1, 1), countdown=0.2).get(timeout=PATIENCE) == 2


def test_the_worker_can_be_asked(running):
    inspect = app.control.inspect([running], timeout=PATIENCE, limit=1)
    assert inspect.active_queues()[running][0]["name"] == "celery"
    assert set(inspect.registered()[running]) >= {"add", "fail", "lucky", "total"}
    assert inspect.stats()[running]["pool"]["max-concurrency"] == 4


def test_revoked(running):
    task = celery_add.apply_async((1, 1), task_id=str(uuid.uuid4()), countdown=3600)
    inspect = app.control.inspect([running], timeout=PATIENCE, limit=1)
    eventually(lambda: task.id in str(inspect.scheduled()))
    replies = app.control.revoke(task.id, reply=True, timeout=PATIENCE, limit=1, destination=[running])
    assert "ok" in replies[0][running]
    assert task.id in inspect.revoked()[running]

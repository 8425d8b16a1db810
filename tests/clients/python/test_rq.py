"""RQ: a worker in a process of its own takes jobs from queues."""

import jobs
import pytest
from redis import Redis
from rq import Queue, Retry
from rq.command import send_shutdown_command
from rq.exceptions import DuplicateJobError
from rq.registry import FailedJobRegistry, FinishedJobRegistry
from support import PATIENCE, URL, blocked, eventually
from workers import worker

DATABASE = f"{URL}/3"


@pytest.fixture
def connection():
    with Redis.from_url(DATABASE) as r:
        yield r


@pytest.fixture
def queue(connection, token):
    return Queue(token, connection=connection)


def rq_worker(folder, token, *more):
    # One process each: no fork for each job.
    simple = ["--worker-class", "rq.SimpleWorker"]
    return worker(folder, "rq.cli", "worker", "--url", DATABASE, "--name", token, *simple, *more, token)


def test_a_burst(queue, token, tmp_path):
    sums = [queue.enqueue(jobs.add, n, 1) for n in range(20)]
    after = queue.enqueue(jobs.add, 100, 1, depends_on=sums)
    failing = queue.enqueue(jobs.fail, "my words")
    lucky = queue.enqueue(jobs.third_time_lucky, f"k:{token}:rq", retry=Retry(max=3))
    unlucky = queue.enqueue(jobs.fail, "again and again", retry=Retry(max=2))
    once = queue.enqueue(jobs.add, 1, 1, job_id=f"once-{token}", unique=True)
    with pytest.raises(DuplicateJobError):
        queue.enqueue(jobs.add, 1, 1, job_id=f"once-{token}", unique=True)
    assert queue.count == 24
    with rq_worker(tmp_path, token, "--burst") as process:
        assert process.wait(2 * PATIENCE) == 0
    assert [job.return_value() for job in sums] == list(range(1, 21))
    assert after.return_value() == 101
    assert once.return_value() == 2
    assert lucky.return_value() == 3
    assert failing.is_failed
    assert "ValueError: my words" in failing.latest_result().exc_string
    assert "again and again" in unlucky.latest_result().exc_string
    unlucky.refresh()
    assert unlucky.retries_left == 0
    assert set(FailedJobRegistry(queue=queue).get_job_ids()) == {failing.id, unlucky.id}
    assert len(FinishedJobRegistry(queue=queue).get_job_ids()) == 23
    assert queue.count == 0


def test_a_worker_that_waits(queue, connection, direct, token, tmp_path):
    with rq_worker(tmp_path, token) as process:
        for n in range(5):
            blocked(direct)
            job = queue.enqueue(jobs.add, n, n)
            eventually(lambda: job.get_status(refresh=True) == "finished")
            assert job.return_value() == 2 * n
        blocked(direct)
        # It listens for commands, too.
        eventually(lambda: connection.pubsub_numsub(f"rq:pubsub:{token}")[0][1] == 1)
        send_shutdown_command(connection, token)
        assert process.wait(PATIENCE) == 0

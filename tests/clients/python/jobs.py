"""What the workers of RQ and Celery run. Celery's application is here too, as its worker needs it."""

import os

from celery import Celery
from redis import Redis

URL = os.environ["REDIS_URL"]

app = Celery(
    broker=f"{URL}/4",
    backend=f"{URL}/5",
    task_default_queue="celery",
    broker_connection_retry_on_startup=True,
    broker_transport_options={"visibility_timeout": 600},
    worker_hijack_root_logger=False,
    result_extended=True,
)


def add(a: int, b: int) -> int:
    return a + b


def total(numbers: list[int]) -> int:
    return sum(numbers)


def fail(text: str) -> None:
    raise ValueError(text)


def third_time_lucky(key: str) -> int:
    """Fails twice."""
    with Redis.from_url(f"{URL}/3") as r:
        times = r.incr(key)
    if times < 3:
        raise ValueError(f"attempt {times}")
    return times


celery_add = app.task(name="add")(add)
celery_fail = app.task(name="fail")(fail)
celery_total = app.task(name="total")(total)


@app.task(name="lucky", bind=True, max_retries=5)
def celery_lucky(self, key: str) -> int:
    try:
        return third_time_lucky(key)
    except ValueError as error:
        raise self.retry(exc=error, countdown=0) from error

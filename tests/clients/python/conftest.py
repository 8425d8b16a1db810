"""What every test gets: clients with and without hiredis, of RESP2 and RESP3, and keys of its own."""

import asyncio
import inspect
import uuid
from collections.abc import Callable, Iterator

import pytest
import redis
import redis.asyncio
from support import DIRECT_URL, PATIENCE, THROUGH_PROXY, URL, VARIANTS, Variant, async_options, eventually, options


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "proxy: about what Redis alone does not do")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("proxy") and not THROUGH_PROXY:
        pytest.skip("there is no proxy")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs coroutines, each in a loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    asyncio.run(asyncio.wait_for(pyfuncitem.obj(**arguments), 2 * PATIENCE))
    return True


@pytest.fixture(scope="module", autouse=True)
def clean() -> Iterator[None]:
    """Leaves no keys, as SCAN would take long, and no blocked clients, as tests wait for theirs."""
    yield
    with redis.Redis.from_url(URL, **options()) as r:
        eventually(lambda: r.info("clients")["blocked_clients"] == 0)
        assert r.flushdb() is True


@pytest.fixture
def token() -> str:
    """Unique to the test."""
    return uuid.uuid4().hex


@pytest.fixture
def key(token: str) -> Callable[[str], str]:
    """Makes keys of the test's own; in the rules of the proxy they are dependents."""
    return lambda name: f"k:{token}:{name}"


@pytest.fixture
def fire(token: str) -> str:
    """A key whose writes are triggers: their replies wait for a fan-out."""
    return f"fire:{token}"


@pytest.fixture(params=VARIANTS, ids=str)
def variant(request: pytest.FixtureRequest) -> Variant:
    return request.param


@pytest.fixture
def connect(variant: Variant) -> Iterator[Callable[..., redis.Redis]]:
    """Makes clients of the proxy, which are closed at the end."""
    clients = []

    def make(**more) -> redis.Redis:
        clients.append(redis.Redis.from_url(URL, **options(variant, **more)))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def r(connect: Callable[..., redis.Redis]) -> redis.Redis:
    return connect()


@pytest.fixture
def aconnect(variant: Variant) -> Callable[..., redis.asyncio.Redis]:
    """The same for asyncio; the test closes them."""
    return lambda **more: redis.asyncio.Redis.from_url(URL, **async_options(variant, **more))


@pytest.fixture
def direct() -> Iterator[redis.Redis]:
    """A client of Redis itself."""
    with redis.Redis.from_url(DIRECT_URL, **options()) as client:
        yield client

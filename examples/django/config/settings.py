"""Settings. The part that concerns Rescind is `CACHES`, and in it only the URL."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from redis.backoff import NoBackoff
from redis.retry import Retry

BASE_DIR = Path(__file__).resolve().parent.parent

SECRET_KEY = os.environ.get("DJANGO_SECRET_KEY", "for-local-use-only")
DEBUG = os.environ.get("DJANGO_DEBUG", "1") == "1"
ALLOWED_HOSTS = os.environ.get("DJANGO_ALLOWED_HOSTS", "127.0.0.1,localhost").split(",")

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "portfolio",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]

ROOT_URLCONF = "config.urls"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": BASE_DIR / "db.sqlite3",
    }
}

# Rescind listens here. A plain Redis works too, it just invalidates nothing.
REDIS_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6380/1")
SESSION_REDIS_URL = os.environ.get(
    "SESSION_REDIS_URL", urlsplit(REDIS_URL)._replace(path="/2").geturl()
)


def redis_cache(url: str, prefix: str, **options: object) -> dict[str, object]:
    """One `CACHES` entry. redis-py takes its hiredis parser when that is installed."""
    return {
        "BACKEND": "django_redis.cache.RedisCache",
        "LOCATION": url,
        "KEY_PREFIX": prefix,
        "VERSION": 1,
        "TIMEOUT": 300,
        "OPTIONS": {
            "COMPRESSOR": "django_redis.compressors.zlib.ZlibCompressor",
            "SOCKET_CONNECT_TIMEOUT": 2,
            "SOCKET_TIMEOUT": 5,
            # A pool made from a URL does not retry on its own. The write that
            # invalidates may be repeated safely, and is worth a second attempt.
            "CONNECTION_POOL_KWARGS": {"retry": Retry(NoBackoff(), 1)},
            **options,
        },
    }


CACHES = {
    # Keys look like app:1:home_page_data_en; `prefix` in proxy.toml says the same.
    "default": redis_cache(REDIS_URL, "app", IGNORE_EXCEPTIONS=True),
    # No IGNORE_EXCEPTIONS: SessionStore.create() takes an ignored error for a key
    # collision and would try ten thousand times.
    "sessions": redis_cache(SESSION_REDIS_URL, "session"),
}

SESSION_ENGINE = "django.contrib.sessions.backends.cache"
SESSION_CACHE_ALIAS = "sessions"

# IGNORE_EXCEPTIONS turns an unreachable cache into misses; this leaves a trace.
DJANGO_REDIS_LOG_IGNORED_EXCEPTIONS = True
DJANGO_REDIS_LOGGER = "portfolio.cache"

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "loggers": {"portfolio": {"handlers": ["console"], "level": "INFO"}},
}

LANGUAGE_CODE = "en"
LANGUAGES = [("en", "English"), ("de", "Deutsch")]
USE_TZ = True
STATIC_URL = "static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

"""Settings of run_tests.sh: a database in memory and a second way to Redis."""

import os

from .settings import *  # noqa: F403
from .settings import DATABASES, REDIS_URL

DEBUG = False
DATABASES["default"]["NAME"] = ":memory:"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

# Past the proxy, to see what Redis really holds.
REDIS_DIRECT_URL = os.environ.get("REDIS_DIRECT_URL", REDIS_URL)

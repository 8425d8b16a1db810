"""The application's keys, and what it keeps in them."""

import time
from dataclasses import dataclass
from enum import Enum
from typing import Any

PREFIX = "app:1:"
# The size of big values: the proxy passes such requests through as they arrive.
BIG = 300 * 1024


class Kind(Enum):
    """How a key is read and filled."""

    STRING = "string"
    # Read with MGET, and filled with MSET if both are missing.
    PAIR = "pair"
    HASH = "hash"
    # Read and filled inside MULTI.
    TRANSACTION = "transaction"
    # No rule names it: the fill gives it its label.
    LABELLED = "labelled"


@dataclass(frozen=True)
class Key:
    name: str
    kind: Kind
    # What it was computed from.
    object: int
    # The label of a key that no rule names.
    tag: str = ""

    @property
    def short(self) -> str:
        """Its name among the keys of its object."""
        return "widget" if self.kind is Kind.LABELLED else self.name.rsplit(":", 1)[1]

    @property
    def is_hash(self) -> bool:
        return self.kind is Kind.HASH


class Keyspace:
    """Posts, each with its keys; some that only direct writers change; the front pages, made from all posts."""

    def __init__(self, posts: int, direct: int, labels: bool, pages: int = 3) -> None:
        self.posts = posts
        self._labels = labels
        self.direct = range(posts, posts + direct)
        # Its version moves with each change of a post that concerns the front pages.
        self.home = posts + direct
        self.objects = self.home + 1
        self.of = [self._of_post(post) for post in range(posts + direct)]
        self.pages = [Key(f"{PREFIX}home_{page}", Kind.STRING, self.home) for page in range(pages)]
        self.of.append(self.pages)
        self.all = [key for keys in self.of for key in keys]
        self.by_name = {key.name: key for key in self.all}

    def pair(self, post: int) -> list[Key]:
        return [key for key in self.of[post] if key.kind is Kind.PAIR]

    def _of_post(self, post: int) -> list[Key]:
        start = f"{PREFIX}post:{post}:"
        keys = [
            Key(start + "card", Kind.STRING, post),
            Key(start + "title", Kind.PAIR, post),
            Key(start + "body", Kind.PAIR, post),
            Key(start + "stats", Kind.HASH, post),
            Key(start + "basket", Kind.TRANSACTION, post),
        ]
        if self._labels:
            keys.append(Key(f"{PREFIX}widget:{post}", Kind.LABELLED, post, f"post:{post}"))
        return keys


@dataclass(frozen=True)
class Value:
    """What is cached: the version that the database had, and who read it when."""

    key: str
    version: int
    actor: int
    filled: float
    # It was filled together with a big one.
    big: bool = False

    def encode(self, size: int) -> str:
        return f"{self.key}|{self.version}|{self.actor}|{self.filled:.6f}|{int(self.big)}|" + "x" * size

    @staticmethod
    def decode(data: Any) -> "Value":
        key, version, actor, filled, big, _ = data.split(b"|", 5)
        return Value(key.decode(), int(version), int(actor), float(filled), big == b"1")

    def __str__(self) -> str:
        age = time.monotonic() - self.filled
        return f"version {self.version}, being read by actor {self.actor} {age:.3f} s ago"

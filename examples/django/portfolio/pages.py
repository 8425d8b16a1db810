"""What each page shows, read from the database. Nothing here knows of a cache."""

from typing import Any

from django.core.paginator import Paginator
from django.db.models import Model, QuerySet

from .models import AITool, ContactMessage, PersonalInfo, Post, SocialLink, Tool

PAGE_SIZE = 5
Data = dict[str, Any]


def home(language: str) -> Data:
    owner = PersonalInfo.objects.first()
    return {
        "name": owner.name if owner else "",
        "headline": owner.headline(language) if owner else "",
        "links": _values(SocialLink.objects.all(), "label", "url"),
        "posts": _values(Post.objects.filter(published=True)[:3], "id", "title"),
        "tools": _values(Tool.objects.all()[:3], "name", "url"),
        "ai_tools": _values(AITool.objects.all()[:3], "name", "url"),
    }


def personal() -> Data:
    owner = PersonalInfo.objects.first()
    return {
        "name": owner.name if owner else "",
        "bio": owner.bio if owner else "",
        "links": _values(SocialLink.objects.all(), "label", "url"),
    }


def statistics() -> Data:
    owner = PersonalInfo.objects.first()
    return {
        "working_since": owner.working_since if owner else None,
        "messages": ContactMessage.objects.count(),
        "unanswered": ContactMessage.objects.filter(answered=False).count(),
    }


def blog(page: int) -> Data:
    return _page(Post.objects.filter(published=True), page, "id", "title", "body")


def tools(page: int) -> Data:
    return _page(Tool.objects.all(), page, "id", "name", "url", "description")


def ai_tools(page: int) -> Data:
    return _page(AITool.objects.all(), page, "id", "name", "url", "description")


def _page(rows: QuerySet[Model], number: int, *fields: str) -> Data:
    """Raises `EmptyPage` for a page that does not exist."""
    paginator = Paginator(rows, PAGE_SIZE)
    items = _values(paginator.page(number).object_list, *fields)
    return {"page": number, "pages": paginator.num_pages, "items": items}


def _values(rows: QuerySet[Model], *fields: str) -> list[Data]:
    return list(rows.values(*fields))

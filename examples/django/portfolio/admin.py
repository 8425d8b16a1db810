from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from . import models
from .invalidation import announce_many


@admin.register(models.Post)
class PostAdmin(admin.ModelAdmin):
    list_display = ["title", "published", "created_at"]
    list_filter = ["published"]
    actions = ["publish", "unpublish"]

    @admin.action(description="Publish selected posts")
    def publish(self, request: HttpRequest, posts: QuerySet[models.Post]) -> None:
        self._set_published(posts, True)

    @admin.action(description="Unpublish selected posts")
    def unpublish(self, request: HttpRequest, posts: QuerySet[models.Post]) -> None:
        self._set_published(posts, False)

    def _set_published(self, posts: QuerySet[models.Post], published: bool) -> None:
        pks = list(posts.values_list("pk", flat=True))
        models.Post.objects.filter(pk__in=pks).update(published=published)
        announce_many(models.Post, pks)


@admin.register(models.PersonalInfo)
class PersonalInfoAdmin(admin.ModelAdmin):
    list_display = ["name", "headline_en", "working_since"]


@admin.register(models.SocialLink)
class SocialLinkAdmin(admin.ModelAdmin):
    list_display = ["label", "url", "position"]


@admin.register(models.Tool, models.AITool)
class CatalogueAdmin(admin.ModelAdmin):
    list_display = ["name", "url"]
    search_fields = ["name", "description"]


@admin.register(models.ContactMessage)
class ContactMessageAdmin(admin.ModelAdmin):
    list_display = ["name", "email", "answered", "created_at"]
    list_filter = ["answered"]

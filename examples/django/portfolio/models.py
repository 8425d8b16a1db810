from django.db import models


class PersonalInfo(models.Model):
    name = models.CharField(max_length=100)
    headline_en = models.CharField(max_length=200)
    headline_de = models.CharField(max_length=200, blank=True)
    bio = models.TextField(blank=True)
    working_since = models.PositiveSmallIntegerField()

    class Meta:
        verbose_name_plural = "personal info"

    def __str__(self) -> str:
        return self.name

    def headline(self, language: str) -> str:
        return getattr(self, f"headline_{language}") or self.headline_en


class SocialLink(models.Model):
    label = models.CharField(max_length=50)
    url = models.URLField()
    position = models.PositiveSmallIntegerField(default=0)

    class Meta:
        ordering = ["position", "pk"]

    def __str__(self) -> str:
        return self.label


class Post(models.Model):
    title = models.CharField(max_length=200)
    body = models.TextField()
    published = models.BooleanField(default=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-created_at", "-pk"]

    def __str__(self) -> str:
        return self.title


class CatalogueEntry(models.Model):
    name = models.CharField(max_length=100)
    url = models.URLField()
    description = models.TextField(blank=True)

    class Meta:
        abstract = True
        ordering = ["name", "pk"]

    def __str__(self) -> str:
        return self.name


class Tool(CatalogueEntry):
    pass


class AITool(CatalogueEntry):
    class Meta(CatalogueEntry.Meta):
        verbose_name = "AI tool"


class ContactMessage(models.Model):
    name = models.CharField(max_length=100)
    email = models.EmailField()
    body = models.TextField()
    answered = models.BooleanField(default=False)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-created_at", "-pk"]

    def __str__(self) -> str:
        return f"{self.name}: {self.body[:40]}"

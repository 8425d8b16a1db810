from typing import Any

from django.core.management.base import BaseCommand
from django.db import transaction

from portfolio.models import AITool, PersonalInfo, Post, SocialLink, Tool

TOOLS = ["Django", "PostgreSQL", "Redis", "Rust", "Vim", "nginx"]
AI_TOOLS = ["Autocomplete", "Captions", "Outliner", "Reviewer", "Search", "Summaries"]


class Command(BaseCommand):
    help = "Creates sample content, two pages of everything. May be run again."

    @transaction.atomic
    def handle(self, *args: Any, **options: Any) -> None:
        PersonalInfo.objects.update_or_create(
            name="Ada Example",
            defaults={
                "headline_en": "I build fast web sites",
                "headline_de": "Ich baue schnelle Webseiten",
                "bio": "Writes Python by day and Rust by night.",
                "working_since": 2012,
            },
        )
        for position, label in enumerate(["GitHub", "Mastodon"]):
            SocialLink.objects.update_or_create(
                label=label,
                defaults={
                    "url": f"https://example.com/{label.lower()}",
                    "position": position,
                },
            )
        for number in range(1, 8):
            Post.objects.update_or_create(
                title=f"Post {number}", defaults={"body": f"Text {number}. " * 40}
            )
        for model, names in ((Tool, TOOLS), (AITool, AI_TOOLS)):
            for name in names:
                model.objects.update_or_create(
                    name=name, defaults={"url": f"https://example.com/{name.lower()}"}
                )
        if options["verbosity"] > 0:
            self.stdout.write(self.style.SUCCESS("Seeded."))

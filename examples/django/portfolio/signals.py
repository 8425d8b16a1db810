from typing import Any

from django.db.models import Model
from django.db.models.signals import post_delete, post_save
from django.dispatch import receiver

from .invalidation import announce


@receiver([post_save, post_delete])
def object_changed(
    sender: type[Model], instance: Model, using: str, **kwargs: Any
) -> None:
    """All the invalidation code of this project: one cache write per changed object."""
    if sender._meta.app_label == "portfolio":
        announce(sender, instance.pk, using)

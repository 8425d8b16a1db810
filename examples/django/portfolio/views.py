from collections.abc import Callable

from django.conf import settings
from django.core.cache import cache
from django.core.paginator import EmptyPage
from django.forms import modelform_factory
from django.http import Http404, HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST, require_safe

from . import pages
from .models import ContactMessage

ContactForm = modelform_factory(ContactMessage, fields=["name", "email", "body"])


def cached(key: str, build: Callable[[], pages.Data]) -> JsonResponse:
    data = cache.get(key)
    hit = data is not None
    if not hit:
        try:
            data = build()
        except EmptyPage as error:
            raise Http404(str(error)) from error
        cache.set(key, data)
    return JsonResponse(data, headers={"X-Cache": "hit" if hit else "miss"})


@require_safe
def home(request: HttpRequest, language: str = settings.LANGUAGE_CODE) -> JsonResponse:
    if language not in dict(settings.LANGUAGES):
        raise Http404(f"no language {language}")
    return cached(f"home_page_data_{language}", lambda: pages.home(language))


@require_safe
def personal(request: HttpRequest) -> JsonResponse:
    return cached("personal_page_data", pages.personal)


@require_safe
def statistics(request: HttpRequest) -> JsonResponse:
    return cached("portfolio_statistics", pages.statistics)


@require_safe
def blog(request: HttpRequest, page: int = 1) -> JsonResponse:
    return cached(f"blog_posts_{page}", lambda: pages.blog(page))


@require_safe
def tools(request: HttpRequest, page: int = 1) -> JsonResponse:
    return cached(f"tools_{page}", lambda: pages.tools(page))


@require_safe
def ai_tools(request: HttpRequest, page: int = 1) -> JsonResponse:
    return cached(f"ai_tools_{page}", lambda: pages.ai_tools(page))


@csrf_exempt  # a JSON API without cookies
@require_POST
def contact(request: HttpRequest) -> JsonResponse:
    form = ContactForm(request.POST)
    if not form.is_valid():
        return JsonResponse({"errors": form.errors}, status=400)
    return JsonResponse({"id": form.save().pk}, status=201)

from django.urls import path

from . import views

urlpatterns = [
    path("", views.home),
    path("about/", views.personal),
    path("statistics/", views.statistics),
    path("contact/", views.contact),
    path("blog/", views.blog),
    path("blog/<int:page>/", views.blog),
    path("tools/", views.tools),
    path("tools/<int:page>/", views.tools),
    path("ai-tools/", views.ai_tools),
    path("ai-tools/<int:page>/", views.ai_tools),
    path("<slug:language>/", views.home),
]

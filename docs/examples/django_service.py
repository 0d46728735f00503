"""A service with Django in one file: gunicorn django_service:app."""

import os

import django
import leadprotect
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.db import connection as db
from django.http import HttpRequest, JsonResponse
from django.urls import path
from psycopg.conninfo import conninfo_to_dict
from leadprotect.integrations.django import connection

way = conninfo_to_dict(os.environ["SERVICE_URL"].replace("+psycopg", ""))
settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": way["dbname"],
            "USER": way["user"],
            "HOST": way["host"],
            "ATOMIC_REQUESTS": True,
        }
    },
    INSTALLED_APPS=["leadprotect.integrations.django.LeadProtect"],
    MIDDLEWARE=["leadprotect.integrations.django.LeadProtectMiddleware"],
    LEADPROTECT={"WHO": f"{__name__}.who"},
)


def who(request: HttpRequest) -> tuple[str, str]:
    """Your own authentication; headers stand for it here."""
    return request.headers["X-User"], request.headers["X-Territory"]


def leads(_: HttpRequest) -> JsonResponse:
    """The leads that row security shows."""
    with db.cursor() as cursor:
        cursor.execute("SELECT id::text FROM leads ORDER BY id")
        return JsonResponse({"leads": [lead for (lead,) in cursor.fetchall()]})


def rename(request: HttpRequest, lead_id: str) -> JsonResponse:
    """Assert and edit, in the transaction of the request."""
    leadprotect.assert_edit(connection(), lead_id)
    with db.cursor() as cursor:
        cursor.execute("UPDATE leads SET company = %s WHERE id = %s", [request.GET["company"], lead_id])
        return JsonResponse({"changed": cursor.rowcount})


urlpatterns = [path("leads", leads), path("leads/<lead_id>", rename)]
django.setup()
app = WSGIHandler()

"""The settings and the views of a Django site with one page, which streams an answer."""

from __future__ import annotations

import json
from typing import Any

from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from chanstream import relay

ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "tests.servers.site"
SECRET_KEY = "of-no-worth"
WSGI_APPLICATION = "tests.servers.apps.application"  # what `runserver` serves


@csrf_exempt
def chat(request: Any) -> Any:
    """Stream the answer to a request."""
    from .apps import HEARTBEAT, stream_of

    return relay.django.stream_response(stream_of(json.loads(request.body)), heartbeat=HEARTBEAT)


urlpatterns = [path("", chat)]

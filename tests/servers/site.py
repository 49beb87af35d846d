"""The settings and the views of a Django site with one page, which streams an answer."""

from __future__ import annotations

import json
from typing import Any

from django.http import HttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from chanstream import StreamCancelledError, relay
from chanstream.relay.wsgi import caller_context

ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "tests.servers.site"
SECRET_KEY = "of-no-worth"
WSGI_APPLICATION = "tests.servers.apps.application"  # what `runserver` serves


@csrf_exempt
def chat(request: Any) -> Any:
    """Stream the answer to a request."""
    from .apps import HEARTBEAT, stream_of

    with caller_context(request.environ, HEARTBEAT) as context:
        try:
            stream = stream_of(json.loads(request.body), context=context)
        except StreamCancelledError:
            return HttpResponse(status=499)  # nobody is there to read it
    return relay.django.stream_response(stream, heartbeat=HEARTBEAT)


urlpatterns = [path("", chat)]

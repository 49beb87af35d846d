"""Streams as responses of a web application, and a proxy that keeps the key: what goes between a model and a browser.

::

    from chanstream import relay

    @app.post("/chat")
    def chat():
        request = ChatCompletionRequest(model, flask.request.json["messages"])
        return relay.flask.stream_response(client.chat_completion_stream(request))

`sse` and `text` make the body of a response, for any WSGI server; `relay.flask`, `relay.django` and `relay.bottle`
make the response, each of the framework that is installed; `relay.wsgi.proxy` is an application of its own.
"""

from . import bottle, django, flask, wsgi
from .body import Relay, sse, text
from .public import PublicError, public_error

__all__ = ["PublicError", "Relay", "bottle", "django", "flask", "public_error", "sse", "text", "wsgi"]

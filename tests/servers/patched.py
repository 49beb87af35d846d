"""gunicorn's configuration for greenlets: patch before anything of the application is imported."""

from gevent import monkey

monkey.patch_all()

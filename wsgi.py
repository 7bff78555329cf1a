"""The WSGI application, for gunicorn, waitress and IIS: `gunicorn wsgi:app`."""

from app import create_app

app = create_app()

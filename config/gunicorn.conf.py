"""For those who start gunicorn themselves: gunicorn -c config/gunicorn.conf.py wsgi:app

The values are those of `python -m dicomcloud serve`, from the same settings; wsgi.py migrates the database.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dicomcloud import server, settings

globals().update(server.gunicorn_options(settings.load()))

"""Django's own migrations, there and back, run by a test in a process of its own, since Django's settings are global."""

import sys
from urllib.parse import unquote, urlsplit

import django
from django.conf import settings
from django.core.management import call_command

url = urlsplit(sys.argv[1])
settings.configure(
    USE_TZ=True,
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth"],
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": url.path[1:],
            "USER": url.username,
            "PASSWORD": unquote(url.password or ""),
            "HOST": url.hostname,
            "PORT": url.port,
        }
    },
)
django.setup()

from django.contrib.auth.models import Permission, User  # noqa: E402 - models need the settings
from django.db import connection  # noqa: E402

for _ in range(2):
    call_command("migrate", verbosity=0)
User.objects.create_user("ann", password="x")
assert User.objects.get(username="ann").has_perm is not None and Permission.objects.count() == 16
call_command("migrate", "auth", "0005", verbosity=0)
call_command("migrate", "auth", verbosity=0)
assert User.objects.get(username="ann").first_name == ""
call_command("migrate", "auth", "zero", verbosity=0)
assert "auth_user" not in connection.introspection.table_names()
print("done", flush=True)

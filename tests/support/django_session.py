"""A Django program with one model, run by a test in a process of its own, since Django's settings are global."""

import sys
from urllib.parse import unquote, urlsplit

import django
from django.conf import settings

url = urlsplit(sys.argv[1])
settings.configure(
    USE_TZ=True,
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": url.path[1:],
            "USER": url.username,
            "PASSWORD": unquote(url.password or ""),
            "HOST": url.hostname,
            "PORT": url.port,
            "OPTIONS": {"server_side_binding": True},
        }
    },
)
django.setup()

from django.db import connection, models, transaction  # noqa: E402 - models need the settings


class Book(models.Model):  # type: ignore[misc]  # Django has no types
    title = models.CharField(max_length=100)
    pages = models.IntegerField()

    class Meta:
        app_label = "library"


with connection.schema_editor() as editor:
    editor.create_model(Book)
Book.objects.create(title="Moby-Dick", pages=635)
assert Book.objects.get(title="Moby-Dick").pages == 635
with transaction.atomic():
    Book.objects.create(title="Walden", pages=352)
    print("ready", flush=True)
    sys.stdin.readline()
    assert sorted(Book.objects.filter(pages__gt=300).values_list("title", flat=True)) == ["Moby-Dick", "Walden"]
assert Book.objects.aggregate(total=models.Sum("pages")) == {"total": 987}
print("done", flush=True)

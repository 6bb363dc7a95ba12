"""A Django project in one file, with its schedule in a database: for ``celery -A tests.signals.django_beat beat``."""

from __future__ import annotations

import os

import django
from celery import Celery
from django.conf import settings
from django.core.management import call_command

settings.configure(
    SECRET_KEY="for tests",
    INSTALLED_APPS=["django_celery_beat", "celery_lookout_signals"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["DJANGO_DATABASE"]}},
    USE_TZ=True,
)
django.setup()
call_command("migrate", verbosity=0)

from django_celery_beat.models import IntervalSchedule, PeriodicTask  # noqa: E402  # models need the set-up

for name, task, seconds in (("often", "sample.noop", 1), ("rare", "sample.add", 3600)):
    # Django's metaclass adds "objects".
    every, _ = IntervalSchedule.objects.get_or_create(  # pyright: ignore[reportAttributeAccessIssue]
        every=seconds, period=IntervalSchedule.SECONDS
    )
    PeriodicTask.objects.get_or_create(name=name, defaults={"task": task, "interval": every})

app = Celery("sample", broker=os.environ["SAMPLE_BROKER"])
app.conf.beat_scheduler = "django_celery_beat.schedulers:DatabaseScheduler"

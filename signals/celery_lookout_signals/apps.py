"""For Django: ``INSTALLED_APPS = [..., "celery_lookout_signals"]`` is enough."""

from django.apps import AppConfig

from . import install


class SignalsConfig(AppConfig):
    """Connects when Django is set up, which Celery does before a worker forks."""

    name = "celery_lookout_signals"
    label = "celery_lookout_signals"
    verbose_name = "celery-lookout signals"

    def ready(self) -> None:
        install()

"""A worker that loads this has Sentry's own SDK, set up as docs/sentry.md has it."""

from __future__ import annotations

import os

import sentry_sdk
from sentry_sdk.integrations.celery import CeleryIntegration
from sentry_sdk.integrations.logging import ignore_logger

#: Where the SDK sends to; and what is set if it shall send log messages of Celery as well.
DSN, WITH_LOGGERS = "SAMPLE_SDK_DSN", "SAMPLE_SDK_LOGGERS"

if DSN in os.environ:
    sentry_sdk.init(os.environ[DSN], integrations=[CeleryIntegration()])
    if WITH_LOGGERS not in os.environ:
        ignore_logger("celery.worker.consumer.consumer")
        ignore_logger("celery.worker.request")
        ignore_logger("multiprocessing")

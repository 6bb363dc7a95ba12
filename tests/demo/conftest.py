"""
The demo's shop, in the process of the tests.

It installs ``celery_lookout_signals`` when it is imported. Here it must not: other tests look at what Celery does
without it.
"""

from __future__ import annotations

import importlib

import pytest

from celery_lookout_signals import SWITCH

with pytest.MonkeyPatch.context() as switched_off:
    switched_off.setenv(SWITCH, "0")
    importlib.import_module("celery_lookout.demo.tasks")

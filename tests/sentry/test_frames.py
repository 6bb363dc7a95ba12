"""Whose code a file is, and what is shown of its path."""

from __future__ import annotations

import pytest

from celery_lookout.sentry.frames import Place, Places

PACKAGES = "/venv/lib/python3.11/site-packages"


def place(file: str, *strip_prefixes: str, task: str = "shop.tasks.resize", also: str = "") -> Place:
    return Places(task, [also, file], strip_prefixes).of(file)


@pytest.mark.parametrize(
    ("file", "filename"),
    [
        (f"{PACKAGES}/requests/api.py", "requests/api.py"),
        (f"{PACKAGES}/celery/app/trace.py", "celery/app/trace.py"),
        ("/usr/lib/python3/dist-packages/yaml/__init__.py", "yaml/__init__.py"),
        ("/usr/local/lib/python3.11/json/decoder.py", "json/decoder.py"),
        ("/usr/lib64/python3.9/json/decoder.py", "json/decoder.py"),
        ("/opt/lib/python3.13t/json/decoder.py", "json/decoder.py"),
        ("/usr/lib/pypy3.10/json/decoder.py", "json/decoder.py"),
        ("C:\\Python311\\Lib\\json\\decoder.py", "json/decoder.py"),
        ("C:\\venv\\Lib\\site-packages\\requests\\api.py", "requests/api.py"),
        ("/src/celery/celery/app/trace.py", "/src/celery/celery/app/trace.py"),
        ("/src/billiard/billiard/pool.py", "/src/billiard/billiard/pool.py"),
        ("/src/kombu/connection.py", "/src/kombu/connection.py"),
        ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap>"),
        ("<string>", "<string>"),
        ("<attrs generated init shop.Item>", "<attrs generated init shop.Item>"),
        ("src/lxml/etree.pyx", "src/lxml/etree.pyx"),
        ("stringsource", "stringsource"),
        ("...", "..."),
    ],
)
def test_code_of_others(file: str, filename: str) -> None:
    assert place(file) == Place(filename, is_app=False)


@pytest.mark.parametrize(
    "file",
    [
        "/srv/shop/images.py",
        "/srv/celery/app/tasks.py",
        "/srv/celery/worker/jobs.py",
        "shop/images.py",
        "/srv/shop/templates/mail.html",
        "/srv/lib/python/own.py",
    ],
)
def test_code_of_the_application(file: str) -> None:
    assert place(file) == Place(file, is_app=True)


def test_folder_of_the_application_is_found_by_the_name_of_the_task() -> None:
    """Deployments into a folder per release then make one issue."""
    also = "/srv/releases/17/shop/tasks.py"
    assert place(also) == Place("shop/tasks.py", is_app=True, module="shop.tasks")
    assert place("/srv/releases/17/shop/images/__init__.py", also=also) == Place(
        "shop/images/__init__.py", is_app=True, module="shop.images"
    )
    assert place("/srv/releases/17/manage.py", also=also) == Place("manage.py", is_app=True)
    assert place("/srv/other/shop/tasks2.py", also=also) == Place("/srv/other/shop/tasks2.py", is_app=True)


def test_module_that_is_a_package() -> None:
    assert place("/srv/shop/tasks/__init__.py") == Place("shop/tasks/__init__.py", is_app=True, module="shop.tasks")
    assert place("/srv/tasks.py", task="tasks.add") == Place("tasks.py", is_app=True, module="tasks")


@pytest.mark.parametrize("task", ["", "resize", ".", "..a", "shop.other.resize"])
def test_name_of_the_task_that_tells_nothing(task: str) -> None:
    assert place("/srv/shop/tasks.py", task=task) == Place("/srv/shop/tasks.py", is_app=True)


def test_package_of_the_task_is_the_application_wherever_it_is_installed() -> None:
    assert place(f"{PACKAGES}/shop/images.py") == Place("shop/images.py", is_app=True, module="shop.images")
    assert not place(f"{PACKAGES}/shopping/images.py").is_app
    assert not place(f"{PACKAGES}/celery/app/builtins.py", task="celery.backend_cleanup").is_app


@pytest.mark.parametrize(
    ("prefixes", "filename"),
    [
        (["/srv"], "releases/17/shop/images.py"),
        (["/srv/", "/srv/releases/17", "/srv/releases/1"], "shop/images.py"),
        (["/srv/rel", "/other", ""], "/srv/releases/17/shop/images.py"),
        (["/srv/releases/17/shop/images.py"], "/srv/releases/17/shop/images.py"),
    ],
)
def test_longest_prefix_is_stripped(prefixes: list[str], filename: str) -> None:
    assert place("/srv/releases/17/shop/images.py", *prefixes) == Place(filename, is_app=True)


def test_prefixes_change_no_module() -> None:
    assert place("/srv/shop/tasks.py", "/srv/shop") == Place("tasks.py", is_app=True, module="shop.tasks")

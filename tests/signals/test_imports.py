"""What the package asks of a worker's environment: nothing but Celery, and an old Python."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent

import pytest

from tests.conftest import Broker
from tests.servers.celery_versions import ROOT
from tests.servers.process import Server, wait_until
from tests.signals.snapshots import Reader

PACKAGE = ROOT / "signals" / "celery_lookout_signals"
FILES = sorted(PACKAGE.glob("*.py"))


def python(code: str, *arguments: str) -> list[str]:
    """Run *code* in a new interpreter that finds the package; return the words that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\nsys.path.insert(0, {str(PACKAGE.parent)!r})\n{dedent(code)}", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


#: Does everything in one process that workers and publishers do: installs, publishes, runs a task, tells snapshots.
_WORK = """
from celery import Celery
from celery.contrib.testing.worker import start_worker

app = Celery("app", broker="memory://", backend="cache+memory://")
app.conf.worker_hijack_root_logger = False
app.conf.broker_transport_options = {"polling_interval": 0.05}

@app.task(name="add")
def add(x, y):
    return x + y

if "install" in sys.argv:
    import celery_lookout_signals
    celery_lookout_signals.install(interval=0.5)
with start_worker(app, pool="solo", perform_ping_check=False):
    assert add.delay(1, 2).get(timeout=20) == 3
if "install" in sys.argv:
    # It was at work, and not only there.
    assert celery_lookout_signals._hooks._State.worker.tasks.totals.row("add", "celery").totals["succeeded"] == 1
print(*sys.modules)
"""


def of_celery() -> set[str]:
    """Return the top-level names that Celery and what it requires install, whatever their depth."""
    distributions, todo = set(), ["celery"]
    while todo:
        name = re.split(r"[^\w.-]", todo.pop())[0].lower().replace("_", "-")
        if name in distributions:
            continue
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        distributions.add(name)
        todo += [one for one in required if "extra ==" not in one]
    return {
        top
        for top, names in importlib.metadata.packages_distributions().items()
        if distributions & {name.lower().replace("_", "-") for name in names}
    }


def test_a_worker_with_the_package_loads_nothing_that_celery_does_not() -> None:
    with ThreadPoolExecutor() as both:  # a worker on this transport mostly waits
        plain, watched = (set(words) for words in both.map(python, [_WORK] * 2, ("plain", "install")))
    own = {name for name in watched if name.partition(".")[0] == "celery_lookout_signals"}
    assert {f"celery_lookout_signals.{file.stem}" for file in FILES} - own == {
        "celery_lookout_signals.__init__", "celery_lookout_signals.apps", "celery_lookout_signals._beat",
    }  # fmt: skip
    new = {name.partition(".")[0] for name in watched - own} - {name.partition(".")[0] for name in plain}
    assert new - sys.stdlib_module_names - of_celery() == set()


def test_installing_loads_no_more_than_signals_need() -> None:
    """A publisher pays for stamps only: neither the worker's side nor Celery's own worker is loaded."""
    loaded = python(
        """
        import celery.signals
        before = set(sys.modules)
        import celery_lookout_signals
        celery_lookout_signals.install()
        print(*sorted(set(sys.modules) - before))
        """
    )
    assert [name for name in loaded if name.partition(".")[0] not in sys.stdlib_module_names] == [
        "celery_lookout_signals",
        "celery_lookout_signals._guard",
        "celery_lookout_signals._hooks",
        "celery_lookout_signals._stamp",
    ]


def test_a_second_install_connects_nothing_twice() -> None:
    code = """
        import celery_lookout_signals
        from celery import signals
        for _ in range({}):
            celery_lookout_signals.install()
        found = {{name: len(one.receivers) for name, one in vars(signals).items() if isinstance(one, signals.Signal)}}
        print(*sorted(f"{{name}}={{number}}" for name, number in found.items()))
        """
    never, once, twice = (python(code.format(times)) for times in (0, 1, 2))
    assert once == twice
    # And each handler is one more than Celery's own.
    assert {pair for pair in once if pair not in never} == {
        f"{name}={int(number) + 1}" for name, _, number in (pair.partition("=") for pair in never) if name in CONNECTED
    }


CONNECTED = {
    "before_task_publish", "task_failure", "task_revoked", "task_unknown", "worker_init", "worker_process_init",
    "worker_shutting_down", "worker_shutdown", "beat_init",
}  # fmt: skip


# -- old Pythons


def test_there_are_files() -> None:
    assert len(FILES) > 10


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_python_3_9_can_read_it(file: Path) -> None:
    """Syntax, and annotations such as ``X | None``, which are evaluated unless they are postponed."""
    tree = ast.parse(file.read_text("utf-8"), feature_version=(3, 9))
    postponed = any(
        isinstance(node, ast.ImportFrom) and node.module == "__future__" and node.names[0].name == "annotations"
        for node in tree.body
    )
    hints = list(hints_of(tree))
    unions = [ast.unparse(hint) for hint in hints if any(isinstance(node, ast.BitOr) for node in ast.walk(hint))]
    assert postponed or not unions
    # Outside annotations, where nothing is postponed: aliases of types, and the arguments of isinstance.
    skipped = {id(node) for hint in hints for node in ast.walk(hint)}
    for node in ast.walk(tree):
        if id(node) in skipped or not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.BitOr):
            continue
        sides = {ast.unparse(side) for side in (node.left, node.right)}
        assert not sides & {"None", "int", "str", "float", "dict", "list"}, ast.unparse(node)


def hints_of(tree: ast.AST) -> Iterator[ast.expr]:
    """Yield all annotations in *tree*."""
    for node in ast.walk(tree):
        found = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        yield from (hint for hint in found if isinstance(hint, ast.expr))


#: Public names that came after Python 3.9, and modules.
NEWER = re.compile(
    r"zip\([^)]*strict=|\bitertools\.(?:pairwise|batched)|\bdatetime\.UTC\b|import UTC\b|\btomllib\b|\bExceptionGroup\b"
    r"|\bTypeAlias\b|\bParamSpec\b|\bSelf\b|\bStrEnum\b|slots=True|kw_only=True|\bmatch \w+:|except\*"
    r"|\bhashlib\.file_digest|\.bit_count\(|\bsys\.stdlib_module_names|removeprefix_"
)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_uses_nothing_that_python_3_9_does_not_have(file: Path) -> None:
    assert NEWER.findall(file.read_text("utf-8")) == []


# -- Django

DJANGO = {
    "shop/__init__.py": "from .celery import app\n",
    "shop/settings.py": """
        import os
        SECRET_KEY = "tests"
        INSTALLED_APPS = ["celery_lookout_signals"]
        USE_TZ = True
        CELERY_BROKER_URL = os.environ["SHOP_BROKER"]
        CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
        """,
    "shop/celery.py": """
        import os
        from celery import Celery
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
        app = Celery("shop")
        app.config_from_object("django.conf:settings", namespace="CELERY")
        app.autodiscover_tasks()

        @app.task(name="shop.resize")
        def resize():
            pass
        """,
}


class DjangoWorker(Server):
    """A worker of the project in its folder."""

    def __init__(self, folder: Path, broker_url: str) -> None:
        argv = [sys.executable, "-m", "celery", "-A", "shop", "worker", "-n", "shop@host", "-c", "1", "-l", "INFO"]
        env = {
            "SHOP_BROKER": broker_url,
            "PYTHONPATH": f"{folder}{os.pathsep}{PACKAGE.parent}",
            "C_FORCE_ROOT": "1",
            "TMPDIR": str(folder),
        }
        super().__init__([*argv, "--without-gossip", "--without-mingle"], folder, env=env, name="shop")

    def ready(self) -> bool:
        return b"shop@host ready." in self.log.read_bytes()


@pytest.mark.redis
def test_in_a_django_project_the_installed_app_is_enough(
    redis_broker: Broker, tmp_path: Path, make_client: Callable[..., object]
) -> None:
    for path, text in DJANGO.items():
        file = tmp_path / path
        file.parent.mkdir(exist_ok=True)
        file.write_text(dedent(text))
    reader = Reader(redis_broker.url)
    with DjangoWorker(tmp_path, redis_broker.url) as worker:
        publish = "from shop.celery import resize; resize.delay()"
        subprocess.run(
            [sys.executable, "-c", publish], env={**os.environ, **worker.env}, cwd=tmp_path, check=True, timeout=60
        )
        wait_until(lambda: "Task shop.resize" in worker.log.read_text() and "succeeded" in worker.log.read_text())
        worker.stop()
        last = reader.wait_for(lambda reader: reader.snapshots[-1:] and reader.snapshots[-1]["final"]).snapshots[-1]
    assert (last["node"], last["interval"], last["faults"]) == ("shop@host", 5.0, 0)
    [[row, counts]] = reader.counts().items()
    assert row == ("shop.resize", "celery")
    assert counts == {"received": 1, "started": 1, "succeeded": 1}

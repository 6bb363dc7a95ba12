"""The state file: whole or not there, of one process only, and never a reason not to start."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import random
import resource
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_lookout import checkpoint
from celery_lookout.checkpoint import MAGIC, VERSION, Header, ProcessSection, SectionStart, StateFile, save
from celery_lookout.errors import SettingsError, StateUnusable
from celery_lookout.metrics.kept import KeptFamily, KeptNumber, KeptReader, kept
from celery_lookout.metrics.registry import Registry, Scope
from celery_lookout.state import saved as records
from celery_lookout.state.restoring import ClusterReader
from celery_lookout.state.saved import SavedRecord
from celery_lookout.state.saving import saved
from tests.clusters import EPOCH, Watched, failed, heartbeat, of, received, row, sent, snapshot, started

NOW = EPOCH + 100


class Part:
    """A cluster as a section of the state."""

    def __init__(self, key: str = "broker a", watched: Watched | None = None) -> None:
        self.key = key
        self.watched = watched or Watched(begun=False)

    def saved(self, now: float) -> Iterator[SavedRecord]:
        return saved(self.watched.cluster, now)

    def reader(self) -> ClusterReader:
        return ClusterReader(self.watched.cluster, loses=False)

    def sent(self) -> float:
        return self.watched.series().get(of("sent_total"), 0)


def a_cluster() -> Watched:
    watched = Watched()
    watched.hear(sent(0), received(0.1), started(0.2), heartbeat(1), failed(2), received(3, uuid="early"))
    watched.poll(
        snapshot(4, row("mail", started=3, wait__3=3), worker="s@h", running=[["mail", "celery", 1, 1, EPOCH]])
    )
    return watched


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lookout.state"


@pytest.fixture
def file(path: Path) -> StateFile:
    return StateFile(path)


def names(path: Path) -> list[str]:
    return sorted(one.name for one in path.parent.iterdir())


# -- there and back


def test_what_is_written_comes_back_and_the_file_is_gone(file: StateFile, path: Path) -> None:
    size = file.write([Part(watched=a_cluster())], NOW)
    assert size == path.stat().st_size
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names(path) == ["lookout.state"]
    after = Part()
    restored = file.restore([after], NOW + 60)
    assert restored == (NOW, 0)
    assert after.sent() == 1
    assert names(path) == []
    assert gc.isenabled()
    assert file.restore([Part()], NOW) is None


def test_each_broker_gets_its_own_and_no_others(file: StateFile, caplog: pytest.LogCaptureFixture) -> None:
    file.write([Part("broker a", a_cluster()), Part("broker b"), Part("broker gone", a_cluster())], NOW)
    a, b = Part("broker a"), Part("broker b")
    file.restore([b, a], NOW)
    assert (a.sent(), b.sent()) == (1, 0)
    assert caplog.records[0].__dict__["brokers"] == "broker gone"


def test_metrics_of_no_broker_go_on_where_brokers_have_names(file: StateFile) -> None:
    before, after = Registry(), Registry()
    before.drop("celery_task_sent_total", 7)
    file.write([ProcessSection(before)], NOW)
    file.restore([ProcessSection(after)], NOW)
    dropped = 'celery_exporter_series_dropped_total{metric="celery_task_sent_total"} 7\n'
    assert before.render().endswith(dropped)
    assert after.render().endswith(dropped)


def test_a_named_broker_keeps_its_label() -> None:
    registry, after = Registry(), Registry()
    for name in ("a", "b"):
        Scope(registry, name).counter("x_total", "X.", ("task",)).child("add").inc(3)
    told = list(kept(Scope(registry, "a")))
    assert told == [KeptFamily("x_total", "counter", ("task",)), KeptNumber(("add",), 3)]
    scope = Scope(after, "a")
    scope.counter("x_total", "X.", ("task",))
    reader = KeptReader(scope)
    for record in told:
        reader.take(record)
    assert 'x_total{task="add",broker="a"} 3\n' in after.render()


def test_a_count_too_large_for_the_file_is_kept_as_a_float(file: StateFile) -> None:
    before, after = Registry(), Registry()
    for registry, amount in ((before, 2**70), (after, 0)):
        Scope(registry).counter("x_total", "X.").child().inc(amount)
    file.write([ProcessSection(before)], NOW)
    file.restore([ProcessSection(after)], NOW)
    assert f"x_total {float(2**70)!r}\n" in after.render()


# -- files that are of no use


def expect_unusable(file: StateFile, path: Path, reason: str) -> None:
    content = path.read_bytes()
    with pytest.raises(StateUnusable, match=reason):
        file.restore([Part()], NOW)
    assert names(path) == ["lookout.state.unreadable"]
    assert path.with_name("lookout.state.unreadable").read_bytes() == content
    assert file.restore([Part()], NOW) is None


def test_of_another_format(file: StateFile, path: Path) -> None:
    file.write([Part()], NOW)
    content = bytearray(path.read_bytes())
    content[len(MAGIC) + 3] = VERSION + 1
    path.write_bytes(content)
    expect_unusable(file, path, f"a newer version wrote it, in format {VERSION + 1}; this one reads {VERSION}")


def test_of_other_brokers_only(file: StateFile, path: Path) -> None:
    file.write([Part("broker redis://***@other/0")], NOW)
    expect_unusable(file, path, "of other brokers: broker redis://")


@pytest.mark.parametrize("content", [b"", b"\n", b"counters: 7\n" * 100, MAGIC, MAGIC + bytes(4)])
def test_something_else_altogether(content: bytes, file: StateFile, path: Path) -> None:
    path.write_bytes(content)
    expect_unusable(file, path, "no state file|older version")


def test_too_large(file: StateFile, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write([Part(watched=a_cluster())], NOW)
    monkeypatch.setattr(checkpoint, "FILE_LIMIT", 500)
    expect_unusable(file, path, "more than 500")
    with pytest.raises(OSError, match="larger than 500 bytes"):
        file.write([Part(watched=a_cluster())], NOW)
    assert names(path) == ["lookout.state.unreadable"]


def test_no_plain_file(file: StateFile, path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(StateUnusable, match="not a plain file"):
        file.restore([Part()], NOW)


def test_one_that_cannot_be_read(file: StateFile, path: Path) -> None:
    path.symlink_to(path)
    with pytest.raises(StateUnusable, match=r"it cannot be read: Too many levels .*; it is now .*\.unreadable"):
        file.restore([Part()], NOW)


def test_one_that_cannot_be_put_aside_either(file: StateFile, path: Path) -> None:
    path.write_bytes(b"")
    path.with_name("lookout.state.unreadable").mkdir()
    with pytest.raises(StateUnusable, match=r"it cannot be put aside either \(Is a directory\): remove it"):
        file.restore([Part()], NOW)


def test_one_that_cannot_be_removed_is_not_used(file: StateFile, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write([Part(watched=a_cluster())], NOW)

    def refuse(_: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(StateUnusable, match=r"cannot be removed.*Remove it, and make its folder writable"):
        file.restore([Part()], NOW)


def test_a_fault_while_restoring_is_not_the_end(file: StateFile, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write([Part(watched=a_cluster())], NOW)

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(ClusterReader, "_take_worker", fail)
    expect_unusable(file, path, "a fault of ours: ZeroDivisionError")


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Of a good file."""
    path = tmp_path_factory.mktemp("state") / "good"
    StateFile(path).write([Part(watched=a_cluster())], NOW)
    return path.read_bytes()


def restore_bytes(path: Path, content: bytes) -> str | None:
    """Return why *content* is of no use, None if it is of use; nothing else may happen."""
    path.write_bytes(content)
    try:
        StateFile(path).restore([Part()], NOW)
    except StateUnusable as error:
        return str(error)
    finally:
        path.with_name(f"{path.name}.unreadable").unlink(missing_ok=True)
    return None


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_damaged_anywhere(content: bytes, tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """Cut, changed in a byte, or longer: it is noticed, always."""
    chance = random.Random(seed)
    place = chance.randrange(len(content))
    damaged = chance.choice(
        [
            content[:place],
            content[:place] + bytes([content[place] ^ chance.randint(1, 255)]) + content[place + 1 :],
            content[:place] + content[place + 1 :],
            content + bytes(chance.randint(1, 50)),
            chance.randbytes(place),
        ]
    )
    assert restore_bytes(tmp_path_factory.getbasetemp() / "damaged", damaged) is not None
    assert restore_bytes(tmp_path_factory.getbasetemp() / "damaged", content) is None


def sealed(blocks: list[bytes], end: int = 0) -> bytes:
    """Return a file with these blocks and the right checksum: what only a forger, or a fault of ours, can make."""
    body = MAGIC + checkpoint._LENGTH.pack(VERSION)
    body += b"".join(checkpoint._LENGTH.pack(len(block)) + block for block in blocks) + checkpoint._LENGTH.pack(end)
    return body + hashlib.blake2b(body, digest_size=16).digest()


HEAD: list[Any] = ["header", "0", NOW]
SECTION: list[Any] = ["section", "broker a"]


def block(*records: list[Any]) -> bytes:
    return msgspec.msgpack.encode(records)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(sealed([]), "no beginning", id="empty"),
        pytest.param(sealed([block(SECTION)]), "no beginning", id="without a beginning"),
        pytest.param(sealed([block(HEAD, SECTION, HEAD)]), "two beginnings", id="two beginnings"),
        pytest.param(sealed([block(HEAD, SECTION), block(SECTION)]), "broker a twice", id="one broker twice"),
        pytest.param(sealed([block(HEAD)], end=2**31), "impossible size", id="a block larger than the file"),
        pytest.param(sealed([b"\xc1"]), "a record of it is none", id="no msgpack"),
        pytest.param(sealed([b"\x91\x93\xa6header\xa1\xff\0"]), "a record of it is none", id="no text"),
        pytest.param(sealed([b"\x91\x94\xa6header\xa10\0" + 10_000 * b"\x91"]), "is none: maximum", id="too deep"),
        pytest.param(sealed([block(["header", "0", 1e300])]), "a record of it is none", id="saved at no time"),
        pytest.param(
            sealed([block(HEAD, SECTION, ["number", [], -1])]), "a record of it is none", id="a counter below 0"
        ),
        pytest.param(
            sealed([block(HEAD, SECTION, ["histogram", [], [-1], 0])]), "a record of it is none", id="a bucket below 0"
        ),
    ],
)
def test_what_only_a_fault_of_ours_could_have_written(content: bytes, reason: str, file: StateFile, path: Path) -> None:
    path.write_bytes(content)
    expect_unusable(file, path, reason)


EMPTY_LIST = 0x90

_scalars = st.none() | st.booleans() | st.integers(-5, 2**63) | st.floats() | st.sampled_from(["", "add", "celery"])
_values = st.recursive(_scalars, lambda inner: st.lists(inner, max_size=4), max_leaves=12)
_tags = [kind.__struct_config__.tag for kind in (*SavedRecord.__args__, SectionStart, Header)]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(_tags), st.lists(_values, max_size=24)), max_size=3),
    st.binary(min_size=1, max_size=40),
)
def test_wrong_inside(
    tmp_path_factory: pytest.TempPathFactory, forged: list[tuple[str, list[Any]]], junk: bytes
) -> None:
    """Nothing that is in it ends the program, and what is shown afterwards is a text that Prometheus reads."""
    path = tmp_path_factory.getbasetemp() / "forged"
    head = [Header("0", NOW), SectionStart("broker a")]
    with contextlib.suppress(OverflowError):
        restore_bytes(path, sealed([msgspec.msgpack.encode([*head, *([tag, *rest] for tag, rest in forged)])]))
    if junk[0] != EMPTY_LIST:
        assert restore_bytes(path, sealed([msgspec.msgpack.encode(head), junk])) is not None


def _of_type(kind: type[Any]) -> st.SearchStrategy[Any]:
    return st.builds(kind, **{field.name: _of(field.type) for field in msgspec.structs.fields(kind)})


def _of(kind: Any) -> st.SearchStrategy[Any]:
    info = msgspec.inspect.type_info(kind)
    return _made(info)


def _made(info: Any) -> st.SearchStrategy[Any]:
    kinds = msgspec.inspect
    match info:
        case kinds.UnionType():
            return st.one_of([_made(one) for one in info.types])
        case kinds.IntType():
            return st.integers(-2 if info.ge is None else info.ge, 3) | st.just(2**31)
        case kinds.FloatType():
            least = info.ge if info.ge is not None else info.gt + 1e-3 if info.gt is not None else -1e12
            return st.floats(max(least, -1e12), min(info.le or 1e12, 1e12))
        case kinds.StrType():
            return st.sampled_from(["", "add", "celery", "w@h", "id", "_other", 'quote"\n'])
        case kinds.BoolType():
            return st.booleans()
        case kinds.NoneType():
            return st.none()
        case kinds.VarTupleType():
            return st.lists(_made(info.item_type), max_size=2).map(tuple)
        case kinds.TupleType():
            return st.tuples(*(_made(one) for one in info.item_types))
        case kinds.DictType():
            return st.dictionaries(_made(info.key_type), _made(info.value_type), max_size=2)
        case kinds.StructType():
            return st.builds(info.cls, **{field.name: _made(field.type) for field in info.fields})
    raise NotImplementedError(info)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of([_of_type(kind) for kind in SavedRecord.__args__]), max_size=12))
def test_well_formed_and_senseless(tmp_path_factory: pytest.TempPathFactory, forged: list[SavedRecord]) -> None:
    """Every type is right, and nothing fits together: it is read or refused, and the program goes on."""
    path = tmp_path_factory.getbasetemp() / "senseless"
    path.write_bytes(sealed([msgspec.msgpack.encode([Header("0", NOW), SectionStart("broker a"), *forged])]))
    part = Part()
    StateFile(path).restore([part], NOW)
    watched = part.watched
    watched.seconds = NOW - EPOCH
    watched.cluster.broker_found(NOW, gap=False)
    watched.hear(sent(101), received(102), started(103), failed(104))
    watched.poll(snapshot(105, row(started=1)))
    assert watched.series()


def test_the_format_has_a_new_version_when_it_changes() -> None:
    """A changed field is read by an older or newer process as something else."""
    fields = {
        kind.__name__: [field.name for field in msgspec.structs.fields(kind)]
        for kind in (*SavedRecord.__args__, records.SavedRunning, Header, SectionStart)
    }
    digest = hashlib.blake2b(msgspec.json.encode(fields), digest_size=8).hexdigest()
    assert (VERSION, digest) == (1, "b54d26031d77539a"), "set checkpoint.VERSION one higher, and both here"


# -- at the end


def test_a_full_disk_leaves_nothing_behind_and_says_so(
    file: StateFile, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """RLIMIT_FSIZE is a disk that is full after so many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        save(file, [Part(watched=a_cluster())], NOW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(path) == []
    assert caplog.records[-1].getMessage() == "state not saved, counters will begin at 0"
    assert caplog.records[-1].__dict__["error"] == "File too large"


def test_a_fault_while_saving_leaves_nothing_behind(
    file: StateFile, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    part = Part(watched=a_cluster())
    part.watched.cluster.workers.get("w@h").boots = 2**80  # type: ignore[union-attr]  # it is there
    save(file, [part], NOW)
    assert names(path) == []
    assert "fault of ours" in caplog.records[-1].getMessage()


def test_a_block_that_grows_too_large_is_divided(file: StateFile, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.setattr(checkpoint, "BLOCK_LIMIT", 600)
    file.write([Part(watched=a_cluster())], NOW)
    after = Part()
    file.restore([after], NOW)
    assert after.sent() == 1
    monkeypatch.setattr(checkpoint, "BLOCK_LIMIT", 50)
    with pytest.raises(OSError, match="larger than 50"):
        file.write([Part(watched=a_cluster())], NOW)
    assert names(path) == []


def test_it_is_there_as_a_whole_or_not_at_all(file: StateFile, path: Path) -> None:
    """Until the last record is written nothing has happened to what lies under the name."""
    path.write_bytes(b"of before")
    seen = []

    class Late(Part):
        def saved(self, now: float) -> Iterator[SavedRecord]:
            yield from super().saved(now)
            seen.append(path.read_bytes())

    file.write([Late()], NOW)
    assert seen == [b"of before"]
    assert path.read_bytes().startswith(MAGIC)


def test_a_link_in_the_way_is_not_followed(file: StateFile, path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("precious")
    path.with_name("lookout.state.tmp").symlink_to(other)
    file.write([Part()], NOW)
    assert other.read_text() == "precious"


# -- whose it is


def test_one_process_at_a_time(path: Path) -> None:
    first, second = StateFile(path), StateFile(path)
    first.claim()
    with pytest.raises(SettingsError, match="used by another sidecar: give each its own"):
        second.claim()
    second.release()
    first.release()
    second.claim()
    second.release()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--state.file '.*/a/state': there is no folder .*; make it"):
        StateFile(tmp_path / "a" / "state").claim()


def test_a_folder_in_place_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is a folder: name a file in it"):
        StateFile(tmp_path).claim()


def test_a_folder_that_cannot_be_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For root there is none, but on a file system that is mounted read-only."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(SettingsError, match=r"files cannot be written in .*: no right to write; make it writable for"):
        StateFile(path).claim()
    monkeypatch.undo()
    monkeypatch.setattr(os, "open", _read_only)
    with pytest.raises(SettingsError, match=r"files cannot be written in .*: Read-only file system"):
        StateFile(path).claim()


def _read_only(*_: Any) -> int:
    raise OSError(30, "Read-only file system")


def test_what_is_saved_of_a_task_is_small(file: StateFile) -> None:
    """A million of them must be written within the seconds that whoever stops us grants."""
    watched = Watched()
    watched.hear(*(sent(0, uuid=f"01234567-89ab-cdef-0123-{number:012}") for number in range(2_000)))
    empty = file.write([Part(watched=Watched())], NOW)
    assert (file.write([Part(watched=watched)], NOW) - empty) / 2_000 < 150

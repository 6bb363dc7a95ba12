"""
The state file: what one process leaves at a clean stop for the next to go on from.

It is there between two processes only. The next one removes it before it serves anything: a later crash then begins at
0, and never at a stale, lower value, which Prometheus would take for a restart and add once more.

On the disk: ``MAGIC``, the version of the format, blocks of msgpack each behind its length, an empty block, and the
checksum of all that. What the records mean is told in ``state.saved`` and ``metrics.kept``.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import hashlib
import logging
import os
import stat
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, BinaryIO, Final, NamedTuple, Protocol, TypeAlias

import msgspec
from msgspec import Meta, Struct

from . import __version__
from .errors import SettingsError, StateUnusable
from .metrics.kept import Kept, KeptReader, kept
from .metrics.registry import Registry, Scope
from .state.saved import SavedRecord

MAGIC: Final = b"celery-lookout state\n"

#: Of the format. Any change of the records or of what they mean is a new one: a file of another is not used.
VERSION: Final = 1

#: Bytes of the largest file. A million tasks in flight take 150 MB.
FILE_LIMIT: Final = 2 * 2**30

#: Bytes of the largest block that is read, and records in one that is written.
BLOCK_LIMIT: Final = 256 * 2**20
RECORDS_PER_BLOCK: Final = 1_000

_LENGTH: Final = struct.Struct(">I")
_DIGEST_BYTES: Final = 16
_PIECE_BYTES: Final = 2**20

log = logging.getLogger(__name__)


class Header(Struct, frozen=True, array_like=True, tag="header"):
    """The first record."""

    program: Annotated[str, Meta(max_length=100)]
    saved_at: Annotated[float, Meta(ge=-1e12, le=1e12)]


class SectionStart(Struct, frozen=True, array_like=True, tag="section"):
    """What follows belongs to this broker, or to the process as a whole."""

    key: Annotated[str, Meta(max_length=4096)]


_Record: TypeAlias = Header | SectionStart | SavedRecord


class Reader(Protocol):
    """Takes in the records of one section."""

    @property
    def left_out(self) -> int:
        """How many records had no place."""

    def take(self, record: SavedRecord) -> None:
        """Take in the next record."""

    def finish(self, now: float) -> None:
        """All were taken in."""


class Section(Protocol):
    """A part of the state with a name of its own."""

    @property
    def key(self) -> str:
        """What tells it from the others, also in the next process."""

    def saved(self, now: float) -> Iterator[SavedRecord]:
        """Yield what it is made of."""

    def reader(self) -> Reader:
        """Return what puts it together again."""


class Restored(NamedTuple):
    """What was found at the start."""

    saved_at: float
    left_out: int


class ProcessSection:
    """The metrics that belong to no broker, where brokers have names. Without names they are among the broker's."""

    key = "process"

    def __init__(self, registry: Registry) -> None:
        self._scope = Scope(registry)

    def saved(self, now: float) -> Iterator[Kept]:  # noqa: ARG002  # others need the time
        """Yield what is kept of them."""
        return kept(self._scope)

    def reader(self) -> Reader:
        """Return what takes them in."""
        return _ProcessReader(self._scope)


class _ProcessReader(KeptReader):
    def take(self, record: SavedRecord) -> None:
        if isinstance(record, Kept):
            super().take(record)

    def finish(self, now: float) -> None:
        """Nothing is left to do."""


class StateFile:
    """The file at *path*, which one process at a time may claim."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f"{path.name}.tmp")
        self._unreadable = path.with_name(f"{path.name}.unreadable")
        self._lock: int | None = None

    def __str__(self) -> str:
        return str(self._path)

    def claim(self) -> None:
        """See that the file can be written later on, and keep others off it. Raises SettingsError."""
        folder = self._path.absolute().parent
        if not folder.is_dir():
            raise SettingsError(f"--state.file {str(self._path)!r}: there is no folder {folder}; make it")
        if self._path.is_dir():
            raise SettingsError(f"--state.file {str(self._path)!r} is a folder: name a file in it")
        lock = self._path.with_name(f"{self._path.name}.lock")
        try:
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(0, "no right to write")
            self._lock = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError(
                f"--state.file {str(self._path)!r} is used by another sidecar: give each its own"
            ) from None
        except OSError as error:
            raise SettingsError(
                f"--state.file {str(self._path)!r}: files cannot be written in {folder}: {error.strerror}; "
                f"make it writable for user {os.geteuid()}"
            ) from error

    def release(self) -> None:
        """Let others have it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def restore(self, sections: Iterable[Section], now: float) -> Restored | None:
        """
        Bring what was saved back into *sections*, and remove the file; None when there was none.

        Raises StateUnusable; the sections are then of no use, and the file has been put aside.
        """
        try:
            with self._open() as file, _without_collector():
                restored = _restore(file, {section.key: section.reader() for section in sections}, now)
        except FileNotFoundError:
            return None
        except StateUnusable as error:
            raise StateUnusable(f"{error}{self._put_aside()}") from error
        except OSError as error:
            raise StateUnusable(f"it cannot be read: {error.strerror}{self._put_aside()}") from error
        except Exception as error:  # a fault of ours must not keep the program from starting
            log.exception("fault while restoring")
            raise StateUnusable(f"it met a fault of ours: {type(error).__name__}{self._put_aside()}") from error
        try:
            self._path.unlink()
            self._sync_folder()
        except OSError as error:
            raise StateUnusable(
                f"it cannot be removed, and after a crash it would be used once more: {error.strerror}. "
                f"Remove it, and make its folder writable for user {os.geteuid()}"
            ) from error
        return restored

    def write(self, sections: Iterable[Section], now: float) -> int:
        """
        Save *sections*, and return the size of the file. It is there as a whole or not at all.

        Raises OSError, a full disk say, with nothing left behind.
        """
        try:
            with contextlib.suppress(FileNotFoundError):
                self._temporary.unlink()
            handle = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "wb", buffering=_PIECE_BYTES) as file:
                size = _write(file, _records(sections, now))
                file.flush()
                os.fsync(file.fileno())
            self._temporary.replace(self._path)
            self._sync_folder()
        except BaseException:
            with contextlib.suppress(OSError):
                self._temporary.unlink()
            raise
        return size

    def _open(self) -> BinaryIO:
        # Not to wait for ever for the other end of what turns out to be a pipe.
        handle = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise StateUnusable("it is not a plain file")
        return os.fdopen(handle, "rb", buffering=_PIECE_BYTES)

    def _put_aside(self) -> str:
        """Keep a file that cannot be used for whoever wants to know why; return the end of a sentence on it."""
        try:
            self._path.replace(self._unreadable)
            self._sync_folder()
        except OSError as error:
            return f"; it cannot be put aside either ({error.strerror}): remove it"
        return f"; it is now {self._unreadable}"

    def _sync_folder(self) -> None:
        folder = os.open(self._path.absolute().parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _records(sections: Iterable[Section], now: float) -> Iterator[_Record]:
    yield Header(__version__, now)
    for section in sections:
        yield SectionStart(section.key)
        yield from section.saved(now)


def _write(file: BinaryIO, records: Iterator[_Record]) -> int:
    encoder = msgspec.msgpack.Encoder()
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    size = 0

    def put(data: bytes) -> None:
        nonlocal size
        digest.update(data)
        size += file.write(data)
        if size > FILE_LIMIT:
            raise OSError(0, f"it would be larger than {FILE_LIMIT} bytes")

    put(MAGIC + _LENGTH.pack(VERSION))
    while chunk := list(islice(records, RECORDS_PER_BLOCK)):
        for block in _blocks(encoder, chunk):
            put(_LENGTH.pack(len(block)))
            put(block)
    put(_LENGTH.pack(0))
    file.write(digest.digest())
    return size + _DIGEST_BYTES


def _blocks(encoder: msgspec.msgpack.Encoder, chunk: list[_Record]) -> Iterator[bytes]:
    """Yield *chunk* in as many blocks as its size asks for."""
    block = encoder.encode(chunk)
    if len(block) <= BLOCK_LIMIT:
        yield block
        return
    if len(chunk) == 1:
        raise OSError(0, f"a record of it would be larger than {BLOCK_LIMIT} bytes")
    half = len(chunk) // 2
    yield from _blocks(encoder, chunk[:half])
    yield from _blocks(encoder, chunk[half:])


def _restore(file: BinaryIO, readers: Mapping[str, Reader], now: float) -> Restored:
    _check(file)
    records = _read(file)
    header = next(records, None)
    if not isinstance(header, Header):
        raise StateUnusable("it has no beginning")
    found, others = _take(records, readers)
    if not found:
        raise StateUnusable(f"it is of other brokers: {', '.join(others) or 'none'}")
    for one in found:
        one.finish(now)
    if others:
        log.warning("the saved state has brokers that are not watched any more", extra={"brokers": ", ".join(others)})
    return Restored(header.saved_at, sum(one.left_out for one in found))


def _take(records: Iterator[_Record], readers: Mapping[str, Reader]) -> tuple[list[Reader], list[str]]:
    """Give each section to its reader; return the readers that had one, and the sections without a reader."""
    reader: Reader | None = None
    found: list[Reader] = []
    others: list[str] = []
    for record in records:
        if isinstance(record, SectionStart):
            reader = readers.get(record.key)
            if reader is None:
                others.append(record.key)
            elif reader in found:
                raise StateUnusable(f"it has {record.key} twice")
            else:
                found.append(reader)
        elif isinstance(record, Header):
            raise StateUnusable("it has two beginnings")
        elif reader is not None:
            reader.take(record)
    return found, others


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Keep the garbage collector from walking through a million tasks again and again while they are made."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _check(file: BinaryIO) -> None:
    """Read all of it once, so that nothing is taken from a file that is damaged further on."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(len(MAGIC) + _LENGTH.size)
    if not start.startswith(MAGIC) or len(start) < len(MAGIC) + _LENGTH.size:
        raise StateUnusable("it is no state file, or cut off")
    version = _LENGTH.unpack(start[len(MAGIC) :])[0]
    if version != VERSION:
        whose = "a newer" if version > VERSION else "an older"
        raise StateUnusable(f"{whose} version wrote it, in format {version}; this one reads {VERSION}")
    if size > FILE_LIMIT:
        raise StateUnusable(f"it has {size} bytes, more than {FILE_LIMIT}")
    digest = hashlib.blake2b(start, digest_size=_DIGEST_BYTES)
    left = size - len(start) - _DIGEST_BYTES
    while left > 0 and (piece := file.read(min(left, _PIECE_BYTES))):
        digest.update(piece)
        left -= len(piece)
    if left or file.read(_DIGEST_BYTES) != digest.digest():
        raise StateUnusable("it is damaged or cut off: its checksum is wrong")
    file.seek(len(start))


def _read(file: BinaryIO) -> Iterator[_Record]:
    decoder = msgspec.msgpack.Decoder(list[_Record])
    while True:
        head = file.read(_LENGTH.size)
        length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else BLOCK_LIMIT + 1
        if length == 0:
            return
        if length > BLOCK_LIMIT:
            raise StateUnusable("a block of it has an impossible size")
        try:
            block = decoder.decode(file.read(length))
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise StateUnusable(f"a record of it is none: {error}") from error
        yield from block


def save(state_file: StateFile, sections: Iterable[Section], now: float) -> None:
    """Write the state file, and say in the log what became of it. Never raises: the program is about to end."""
    started = time.monotonic()
    try:
        size = state_file.write(sections, now)
    except OSError as error:
        log.error(  # noqa: TRY400  # a full disk is no fault of ours
            "state not saved, counters will begin at 0",
            extra={"file": str(state_file), "error": error.strerror or str(error)},
        )
    except Exception:
        log.exception("state not saved for a fault of ours, counters will begin at 0")
    else:
        seconds = round(time.monotonic() - started, 3)
        log.info("state saved", extra={"file": str(state_file), "bytes": size, "seconds": seconds})

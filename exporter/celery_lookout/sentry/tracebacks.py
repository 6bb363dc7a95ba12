"""
What the text of a Python traceback says: exceptions, how one led to the other, and their frames.

The text is as ``traceback.format_exception`` writes it, from Python 3.9 on, after Celery, billiard and a worker's
snapshot have had their way with it: unpicklable exceptions in a wrapper, another process's traceback between triple
quotes, the middle left out. Text has no grammar that could not be forged by an exception's message, and some of it is
cut; so nothing here is an error, each line is looked at once, and what makes no sense becomes part of a message.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from ..failures import shortened

#: Class of an exception that the text does not name.
UNNAMED: Final = ""

#: Characters that are read. Of a longer text the middle goes, as in a snapshot.
LONGEST: Final = 256 * 1024

#: Groups within groups that are told apart; Python itself writes ten.
DEEPEST: Final = 16


class Frame(Struct, frozen=True, gc=False):
    """One call. What the text does not say is empty, None or 0."""

    file: str
    line: int | None
    #: Empty for the place of a syntax error, which is no call.
    function: str
    source: str = ""
    #: So many more calls like this one follow.
    repeated: int = 0


class LeftOut(Struct, frozen=True, gc=False):
    """A gap between frames: what was cut from a text that was too long."""

    characters: int


class Raised(Struct, frozen=True, gc=False):
    """One exception."""

    #: As Python prints it, with its module; UNNAMED if that is not to be found.
    name: str
    #: The message, with its notes.
    value: str = ""
    frames: tuple[Frame | LeftOut, ...] = ()
    #: Place of the exception that this one led to, or whose member it is. None for the one that got out.
    parent: int | None = None
    #: ``__cause__``, ``__context__`` or ``exceptions[0]`` of the parent; empty when the text between them is lost.
    source: str = ""
    is_group: bool = False
    #: Members of a group that Python did not print.
    more: int = 0


def parse(text: str) -> tuple[Raised, ...]:
    """
    Return the exceptions of *text*, at least one; first the one that got out, each after its parent.

    Never raises. Takes time in proportion to the text.
    """
    reader = _Reader()
    for line in shortened(text, LONGEST).replace("\r\n", "\n").split("\n"):
        reader.read(line)
    return tuple(_flat(reader.root)) or (Raised(UNNAMED),)


#: With it Python begins the traceback of an exception.
HEADER: Final = "Traceback (most recent call last):"

_HEADERS: Final = frozenset({HEADER, f"Exception Group {HEADER}"})

#: What stands between two exceptions, and what the first is to the second.
_LINKS: Final = {
    "The above exception was the direct cause of the following exception:": "__cause__",
    "During handling of the above exception, another exception occurred:": "__context__",
}

# A number has nine digits at most: Python refuses to read very long ones.
_FRAME = re.compile(r'  File "(.*)", line (-?\d{1,9}|None)(?:, in (.*))?$')
_REPEATED = re.compile(r"  \[Previous line repeated (\d{1,9}) more times?\]$")
_LEFT_OUT = re.compile(r"  \[… (\d{1,12}) characters left out …\]$")
_CARETS = re.compile(r"[~^ ]+$")
#: Name and message. A name may hold ``<locals>``.
_FINAL = re.compile(r"([^\W\d][\w.<>]*)(?:: ?$|: (.*)|$)")
#: The margin of a group: a line of text, the group's head, a member's head, the end.
_MARGIN = re.compile(
    r"(?P<indent>(?:  )+)"
    r"(?:(?P<text>\|(?: |$))|(?P<head>\+ (?=Exception Group Traceback ))"
    r"|(?P<first>\+-)?\+-{16} (?P<member>[1-9]\d{0,8}|\.\.\.) -{16}$|(?P<end>\+-{36})$)"
)
_MORE = re.compile(r"and (\d{1,9}) more exceptions?$")
_TOO_DEEP = "... (max_group_depth is "

#: Their message is another process's traceback between triple quotes.
_REMOTE: Final = frozenset({"RemoteTraceback", "_RemoteTraceback", "ExceptionWithTraceback"})
_QUOTES: Final = '"""'

#: Celery's stand-in for an exception that cannot be pickled. Its message is the ``repr()`` of the real one.
_WRAPPER: Final = "UnpickleableExceptionWrapper"
_CALL = re.compile(r"([^\W\d][\w.]*)\(")


class _Exception:
    """One exception while it is read: first its frames, then name and message, then its members if it is a group."""

    def __init__(self) -> None:
        self.name = UNNAMED
        #: Lines of the message; None before it begins.
        self.message: list[str] | None = None
        self.frames: list[Frame | LeftOut] = []
        #: What stands for the message if none comes: the rest of a line that was cut.
        self.fragment = ""
        self.members: list[_Chain] = []
        #: What this one is to the next of its chain.
        self.leads = ""

    def say(self, line: str) -> None:
        """Take the line with name and message."""
        found = _FINAL.match(line)
        if found:
            self.name, line = found[1], found[2] or ""
        elif line.startswith(_TOO_DEEP):
            self.name = "ExceptionGroup"
        self.message = [line]

    @property
    def is_blank(self) -> bool:
        return not (self.message or self.frames or self.fragment or self.members)

    @property
    def is_remote(self) -> bool:
        return self.message == [""] and self.name.rpartition(".")[2] in _REMOTE

    @property
    def is_preamble(self) -> bool:
        """Say whether this was text before the traceback rather than an exception."""
        return self.name == UNNAMED and not self.frames

    def told(self, parent: int | None, source: str) -> Raised:
        value = "\n".join([self.fragment] if self.message is None else self.message).strip("\n")
        name = self.name
        if name.rpartition(".")[2] == _WRAPPER:
            call = _CALL.match(value)
            name = call[1] if call else name
        more = sum(member.more for member in self.members)
        return Raised(name, value, tuple(self.frames), parent, source, bool(self.members), more)


class _Chain:
    """Exceptions of which each led to the next; *depth* is the number of margins before its lines."""

    def __init__(self, depth: int, title: str = "") -> None:
        self.depth = depth
        #: Number of this member of a group, from 1.
        self.title = title
        #: No member but the line that says how many are not shown.
        self.is_rest = title == "..."
        self.more = 0
        self.done: list[_Exception] = []
        self.now = _Exception()
        self._is_headed = False
        self._after_blank = True
        #: Something was cut since the last exception began.
        self._is_cut = False
        #: Wrappers whose quotes are open, and how many exceptions came before each.
        self._quoted: list[tuple[int, _Exception]] = []

    @property
    def source(self) -> str:
        """What the parent calls this; empty for a member whose head was cut."""
        return f"exceptions[{int(self.title) - 1}]" if self.title.isdecimal() else ""

    @property
    def awaits_exception(self) -> bool:
        """Say whether a new exception may begin with the next line."""
        return self.now.is_blank or self._is_cut

    def exceptions(self) -> list[_Exception]:
        """Return what was read, the oldest first."""
        return self.done if self.now.is_blank else [*self.done, self.now]

    def feed(self, line: str) -> None:
        """Read a line without its margin."""
        after_blank, self._after_blank = self._after_blank, not line.strip()
        if self.is_rest:
            found = _MORE.match(line)
            self.more += int(found[1]) if found else 0
        elif after_blank and line in _LINKS:
            self._end(_LINKS[line])
        elif line == _QUOTES and (self.now.is_remote or self._quoted):
            self._quote()
        elif self.now.message is None:
            self._feed_stack(line)
        else:
            self._feed_message(self.now.message, line)

    def cut(self) -> None:
        """Note that what comes next may belong to something whose beginning is lost."""
        self._is_cut = True

    def leave_out(self, characters: int, line: str) -> None:
        """Read the note that so many characters are left out."""
        if self.now.message is None:
            self.now.frames.append(LeftOut(characters))
        else:
            self.now.message.append(line.strip())

    def feed_fragment(self, line: str) -> None:
        """Read a line that lacks its beginning."""
        if self.now.message is None:
            self.now.fragment = line
        else:
            self.now.message.append(line)

    def member(self, title: str) -> _Chain:
        """Begin a member of the exception that was read last."""
        if self.now.message is None:
            self.now.message = []
        chain = _Chain(self.depth + 1, title)
        self.now.members.append(chain)
        return chain

    def _end(self, leads: str) -> None:
        if not self.now.is_blank:
            self.now.leads = leads
            self.done.append(self.now)
        self.now = _Exception()
        self._is_headed = self._is_cut = False

    def _quote(self) -> None:
        if self.now.is_remote:
            self._quoted.append((len(self.done), self.now))
            self.now = _Exception()
            self._is_headed = False
            return
        before, wrapper = self._quoted.pop()
        if self.now.is_blank:
            self.now = self.done.pop() if len(self.done) > before else wrapper

    def _feed_stack(self, line: str) -> None:
        frames = self.now.frames
        if line in _HEADERS:
            if frames:
                self._end("")
            self._is_headed = True
        elif found := _FRAME.match(line):
            frames.append(Frame(found[1], _number(found[2]), found[3] or ""))
        elif found := _REPEATED.match(line):
            self._change_last(repeated=int(found[1]))
        elif line.startswith(" ") and (frames or self._is_headed):
            # Source; markers below it; in Python 3.13 further lines of it.
            if line.startswith("    ") and not _CARETS.match(line):
                self._change_last(source=line.strip())
        elif line.strip():
            self.now.say(line.lstrip())

    def _change_last(self, *, source: str = "", repeated: int = 0) -> None:
        last = self.now.frames[-1] if self.now.frames else None
        if isinstance(last, Frame):
            self.now.frames[-1] = Frame(
                last.file, last.line, last.function, last.source or source, last.repeated or repeated
            )

    def _feed_message(self, message: list[str], line: str) -> None:
        begins = line in _HEADERS
        if begins and self.now.is_preamble and not self.now.members:
            self.now = _Exception()
            self._feed_stack(line)
        elif self._is_cut and (begins or _FRAME.match(line)):
            self._end("")
            self._feed_stack(line)
        else:
            message.append(line)


class _Reader:
    """Finds for each line the chain that it belongs to, by the margins that groups have."""

    def __init__(self) -> None:
        # The outermost group has a margin, too, while what it led to has none.
        self.root = _Chain(1)
        #: The chains whose members are being read, outermost first.
        self._open = [self.root]
        self._has_margin = False
        self._is_fragment = False

    def read(self, line: str) -> None:
        is_fragment, self._is_fragment = self._is_fragment, False
        left_out = _LEFT_OUT.match(line)
        if left_out:
            self._open[-1].leave_out(int(left_out[1]), line)
            for chain in self._open:
                chain.cut()
            self._is_fragment = True
            return
        if is_fragment:
            self._open[-1].feed_fragment(line)
            # The text may go on inside a group whose head is lost.
            self._has_margin = True
            return
        margin = _MARGIN.match(line) if self._has_margin or self.root.awaits_exception else None
        self._has_margin = margin is not None
        if margin is None:
            del self._open[1:]
            self.root.feed(line)
        else:
            self._read_margin(line, margin)

    def _read_margin(self, line: str, margin: re.Match[str]) -> None:
        depth = len(margin["indent"]) // 2
        if margin["member"]:
            # The first member's head stands one level further out, below the text of the group.
            self._close(depth if margin["first"] else depth - 1)
            self._begin_member(margin["member"])
        elif margin["end"]:
            self._close(depth - 1)
        else:
            self._close(depth)
            if self._open[-1].awaits_exception and self._open[-1].depth < depth <= DEEPEST:
                # The member's head was cut.
                self._begin_member("")
                self._open[-1].depth = depth
            self._open[-1].feed(line[margin.end() :])

    def _close(self, depth: int) -> None:
        """End what is deeper than *depth*."""
        while len(self._open) > 1 and self._open[-1].depth > depth:
            self._open.pop()

    def _begin_member(self, title: str) -> None:
        if self._open[-1].depth < DEEPEST:
            self._open.append(self._open[-1].member(title))


def _number(text: str) -> int | None:
    # billiard writes -1 where it has cut a traceback off.
    return None if text == "None" or text.startswith("-") else int(text)


def _flat(root: _Chain) -> Iterator[Raised]:
    """Yield each exception after its parent: what led to it before its members."""
    count = 0
    exceptions = root.exceptions()
    waiting: list[tuple[list[_Exception], int | None, str]] = [(exceptions, None, "")]
    while waiting:
        chain, parent, source = waiting.pop()
        if not chain:
            continue
        last = chain.pop()
        yield last.told(parent, source)
        waiting += [(member.exceptions(), count, member.source) for member in reversed(last.members)]
        waiting.append((chain, count, chain[-1].leads if chain else ""))
        count += 1

"""
Messages of Celery's own exceptions that quote a task's arguments or its result, without these.

What an application writes into its exceptions is its own affair.
"""

from __future__ import annotations

import re
from typing import Final

#: MaxRetriesExceededError: ``Can't retry TASK[ID] args:(…) kwargs:{…}``.
_ARGUMENTS: Final = re.compile(r"(Can't retry [^\n]{1,600}?\]) args:.*", re.DOTALL)
#: MaybeEncodingError: ``Error sending result: ''RESULT''. Reason: ''ERROR''.``; the error may quote a part of it.
_RESULT: Final = re.compile(r"(Error sending result): '.*", re.DOTALL)


def without_values(message: str) -> str:
    """Return *message* up to where it begins to quote."""
    return _RESULT.sub(r"\1", _ARGUMENTS.sub(r"\1", message))

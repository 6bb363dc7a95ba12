"""
Every exception the sidecar raises on purpose.

    LookoutError
     ├─ SettingsError       an option, a variable or the configuration file is wrong: the program stops at start
     ├─ BrokerUnavailable   the broker cannot be reached, or went away: wait and try again
     ├─ ProbeFailed         one background poll failed: its collector shows success 0, the others go on
     └─ StateUnusable       what an earlier process saved cannot be used: counters begin at 0
"""

from __future__ import annotations


class LookoutError(Exception):
    """The base of all; catch it to catch anything that this program raises on purpose."""


class SettingsError(LookoutError):
    """A setting is wrong. The message names the setting, the value and what to do; it never holds a secret."""


class BrokerUnavailable(LookoutError):
    """The broker refused, hung or closed. The message is one line without credentials."""


class ProbeFailed(LookoutError):
    """A poll did not answer in time or was not allowed. The message says what is missing."""


class StateUnusable(LookoutError):
    """A state file is damaged, of another version or of other brokers. The message says which."""

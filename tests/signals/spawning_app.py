"""The sample application where pool processes are spawned, as on macOS, instead of forked."""

from __future__ import annotations

import billiard

# billiard takes its functions from a context, by globals().
billiard.set_start_method("spawn", force=True)  # pyright: ignore[reportAttributeAccessIssue]

from tests.servers.sample_app import app  # noqa: E402, F401  # the start method comes first

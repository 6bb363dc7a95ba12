"""What the web server refused, and whether its configuration file is in force."""

from __future__ import annotations

from typing import Final, Literal, get_args

from .registry import Registry, Scope

#: Why a client did not get its answer.
Refusal = Literal["credentials", "busy", "certificate", "handshake", "connections", "slow", "malformed"]
REFUSALS: Final[tuple[Refusal, ...]] = get_args(Refusal)


class WebMetrics:
    """Metrics of the web server of one sidecar."""

    def __init__(self, registry: Registry, *, config_file: bool) -> None:
        scope = Scope(registry)
        self._refused = scope.counter(
            "celery_exporter_web_refused_total",
            "Requests and connections that got no answer to their question, by reason. credentials: none or wrong ones;"
            " busy: too many others waited for their password to be checked; certificate: not in client_allowed_sans;"
            " handshake: TLS failed; connections: closed to make room for newer ones; slow: did not read the answer in"
            " time; malformed: not HTTP, or too large.",
            ("reason",),
        )
        for reason in REFUSALS:
            self._refused.child(reason)
        if config_file:
            self._reload_success = scope.gauge(
                "celery_exporter_web_config_reload_success",
                "1 if the web configuration file and the files it names are in force as they are now, 0 if they are"
                " broken and those before them are.",
            ).child()
            self._reload_success.set(1)

    def refuse(self, reason: Refusal) -> None:
        """Count one request or connection."""
        self._refused.child(reason).inc()

    def reloaded(self, *, success: bool) -> None:
        """Say how the last look at the configuration file went."""
        self._reload_success.set(int(success))

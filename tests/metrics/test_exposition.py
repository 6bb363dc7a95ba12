"""One scrape: which format, which encoding, and all of it readable."""

from __future__ import annotations

import gzip

import pytest

from celery_lookout.metrics.exporter import ProcessMetrics
from celery_lookout.metrics.exposition import Exposition
from celery_lookout.metrics.registry import Registry, Scope
from tests.clusters import families

#: As Prometheus 3 asks.
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)


@pytest.fixture
def exposition() -> Exposition:
    registry = Registry()
    scope = Scope(registry)
    scope.counter("made_total", "Things made.", ("kind",)).child('a "b"').inc(2)
    scope.histogram("took_seconds", "How long.", (), (1.0,)).child().observe(0.5)
    return Exposition(registry)


@pytest.mark.parametrize("accept", ["", "*/*", "text/plain", "text/html", "application/json"])
def test_text_for_everybody(accept: str, exposition: Exposition) -> None:
    scrape = exposition.scrape(accept, "")
    assert scrape.headers["Content-Type"].startswith("text/plain; version=")
    names = {family.name for family in families(scrape.body.decode())}
    assert {"made", "took_seconds", "python_gc_collections", "python_info"} <= names


@pytest.mark.parametrize("accept", [PROMETHEUS, "application/openmetrics-text; version=1.0.0"])
def test_openmetrics_for_those_who_ask(accept: str, exposition: Exposition) -> None:
    scrape = exposition.scrape(accept, "")
    assert scrape.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    text = scrape.body.decode()
    assert text.endswith("# EOF\n")
    assert text.count("# EOF") == 1
    assert {"made", "took_seconds", "python_info"} <= {family.name for family in families(text, openmetrics=True)}


@pytest.mark.parametrize(
    ("accept_encoding", "compressed"),
    [
        ("gzip", True),
        ("gzip, deflate, br", True),
        ("deflate, GZIP;q=0.5", True),
        ("*", True),
        ("", False),
        ("identity", False),
        ("deflate", False),
        ("gzip;q=0", False),
        ("gzip; q=0.0", False),
        ("x-gzipped", False),
    ],
)
def test_gzip_for_those_who_accept_it(accept_encoding: str, compressed: bool, exposition: Exposition) -> None:
    scrape = exposition.scrape("", accept_encoding)
    assert scrape.headers.get("Content-Encoding") == ("gzip" if compressed else None)
    body = gzip.decompress(scrape.body) if compressed else scrape.body
    assert b'made_total{kind="a \\"b\\""} 2\n' in body
    assert scrape.headers["Vary"] == "Accept, Accept-Encoding"


def test_the_number_of_series_is_shown_with_its_limit() -> None:
    registry = Registry(series_limit=50)
    process = ProcessMetrics(registry, "1.2.3")
    Scope(registry).gauge("level", "x", ("kind",)).child("toy")
    process.refresh()
    shown = registry.render()
    assert 'celery_exporter_build_info{version="1.2.3"} 1\n' in shown
    assert "celery_exporter_series_limit 50\n" in shown
    assert "celery_exporter_series 4\n" in shown

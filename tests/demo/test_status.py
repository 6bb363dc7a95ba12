from __future__ import annotations

from celery_lookout.demo.status import EMPTY, describe, parse

EXPOSITION = """\
# HELP celery_task_succeeded_total Tasks that ended well.
# TYPE celery_task_succeeded_total counter
celery_task_succeeded_total{task="a",queue="mail"} 3.0
celery_task_succeeded_total{task="b",queue="celery"} 4.0
celery_task_succeeded_created{task="a",queue="mail"} 1.7e+09
celery_task_failed_total{task="a",queue="mail"} 2.0
celery_task_retried_total{task="a",queue="mail"} 1.0
celery_task_runtime_seconds_bucket{task="a",queue="mail",outcome="failed",le="1"} 9.0
celery_queue_length{queue="celery"} 0.0
celery_queue_length{queue="mail"} 12.0
celery_queue_oldest_task_age_seconds{queue="celery"} 0.0
celery_queue_oldest_task_age_seconds{queue="mail"} 7.4
"""


def test_the_line_adds_up_tasks_and_puts_the_longest_queue_first() -> None:
    assert (
        describe(parse(EXPOSITION), rate=2.345)
        == "9 finished, 2.3/s, 2 failed, 1 retried | waiting (oldest 7 s): mail 12, celery 0"
    )


def test_what_is_absent_is_not_shown_as_zero() -> None:
    assert parse("") == EMPTY
    assert describe(EMPTY, rate=0) == "0 finished, 0.0/s, 0 failed, 0 retried | waiting: not known"

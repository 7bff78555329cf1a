"""Requests made up from /openapi.json: every operation, good and bad parameters. Never a 5xx.

TEST_FUZZ=100 tries a hundred times as many.
"""

from __future__ import annotations

import os
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error

from tests.conftest import AppMaker
from tests.data import make_dataset, make_file

_TIMES = int(os.environ.get("TEST_FUZZ", "1"))


def test_every_operation_answers_whatever_is_asked_of_it_without_a_fault(make_app: AppMaker) -> None:
    app = make_app(log_level="error")
    dataset = make_dataset(StudyInstanceUID="1.2", SeriesInstanceUID="1.3", SOPInstanceUID="1.4")
    answer = app.test_client().post("/dicomweb/studies", data=make_file(dataset), content_type="application/dicom")
    assert answer.status_code == 200
    schema = schemathesis.openapi.from_wsgi("/openapi.json", app)
    tried = 0
    for operation in schema.get_all_operations():

        @settings(
            max_examples=4 * _TIMES,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate],
            database=None,
            derandomize=True,
        )
        @given(case=operation.ok().as_strategy())
        def ask(case: Any) -> None:
            case.validate_response(case.call(), checks=[not_a_server_error])

        ask()
        tried += 1
    assert tried > 30

from __future__ import annotations

import grpc
import pytest

from retrieval_spec.errors import RetrievalSpecError, error_types


def test_the_text_is_one_line_with_everything_one_needs():
    error = RetrievalSpecError("no\n such  thing", got=3, expected="4", remedy="do this")
    assert str(error) == "no such thing; got 3; expected 4; do this"


@pytest.mark.parametrize("error_type", error_types().values(), ids=error_types())
def test_every_error_has_a_status_that_grpc_knows(error_type):
    assert error_type.grpc_status in grpc.StatusCode.__members__
    assert error_type.grpc_status != "OK"
    assert error_type.__doc__


def test_the_drawing_shows_every_class():
    from retrieval_spec import errors

    for name in error_types():
        assert name in (errors.__doc__ or "")

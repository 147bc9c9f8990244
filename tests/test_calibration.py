from __future__ import annotations

import numpy as np

from retrieval_spec.calibration import reliability_by_match_length


def test_longer_matches_are_worth_more_and_nothing_is_certain():
    reliability = reliability_by_match_length(40)
    assert reliability.dtype == np.float32
    assert reliability.shape == (41,)
    assert np.all(np.diff(reliability) >= 0)
    assert 0 < reliability[0] < reliability[-1] < 1
    assert reliability[32] == reliability[40]

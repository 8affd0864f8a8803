"""The soak script's own figures, on a short life."""

import pytest

from arr_coc.eval import soak


def test_a_short_life_is_flat_and_does_not_drift() -> None:
    found = soak.soak(400, rewards=20)
    texts = soak.CLASSES * soak.CONTEXT * 8 / 2**20  # MB; some are met later than in the first 100 steps
    assert found.state[1] - found.state[0] < texts
    assert found.drift < 1e-10
    assert found.step_time[1] < 5 * found.step_time[0]
    assert "400 steps" in str(found)
    with pytest.raises(ValueError, match="at least 200"):
        soak.soak(150)

import numpy as np
import pytest
from keras import ops

import keras_coda
from tests.backend_helpers import same_on_every_backend
from tests.conversion.models import NUM_LAYERS
from tests.conversion.models import vit_backbone
from tests.conversion.models import vit_inputs

pytestmark = same_on_every_backend

SPEEDUPS = (1.1, 1.3)


def make_model():
    return keras_coda.coda_wrap(
        vit_backbone(), reduction_factor=2, adapter_dim=1, shortcut_dim=1
    )


def weights_of(model):
    return [ops.convert_to_numpy(weight) for weight in model.weights]


def curve_of(figure):
    return figure.axes[0].lines[0].get_xydata()


def test_draws_what_calibrate_finds_and_changes_nothing():
    coda = make_model()
    before = weights_of(coda)
    figure = keras_coda.analysis.plot_budget(
        coda, vit_inputs(), SPEEDUPS, verbose=0
    )
    assert coda.reduction_factor == 2
    for old, new in zip(before, weights_of(coda), strict=True):
        assert np.array_equal(old, new)
    texts = iter(figure.axes[1].texts)
    for speedup, (drawn, error) in zip(SPEEDUPS, curve_of(figure)):
        found = keras_coda.training.calibrate(
            coda, vit_inputs(), speedup, verbose=0
        )
        assert drawn == found.speedup
        assert error == pytest.approx(found.error, rel=1e-3)
    drawn = np.reshape([text.get_text() for text in texts], (NUM_LAYERS, -1))
    for text, factor in zip(drawn[:, -1], found.reduction_factor):
        assert text in ("left out", f"r = {factor:g}")


def test_a_score_of_ones_own():
    coda = make_model()
    seen = []

    def score(model):
        seen.append(model.reduction_factor)
        return -len(seen)

    figure = keras_coda.analysis.plot_budget(
        # Batches that can be read once.
        coda,
        iter([vit_inputs()]),
        SPEEDUPS,
        score,
        verbose=0,
    )
    assert seen[0] == 1 and len(seen) == 3
    curve, dense = figure.axes[0].lines
    assert list(curve.get_ydata()) == [-2, -3]
    assert set(dense.get_ydata()) == {-1}


def test_a_speedup_out_of_reach_changes_nothing():
    coda = make_model()
    before = weights_of(coda)
    with pytest.raises(ValueError, match="within reach"):
        keras_coda.analysis.plot_budget(
            coda, vit_inputs(), (1.1, 1000), verbose=0
        )
    assert coda.reduction_factor == 2
    assert all(map(np.array_equal, before, weights_of(coda)))


def test_bad_arguments():
    with pytest.raises(TypeError, match="coda_wrap"):
        keras_coda.analysis.plot_budget(vit_backbone(), vit_inputs())
    with pytest.raises(ValueError, match="`speedups`"):
        keras_coda.analysis.plot_budget(make_model(), vit_inputs(), ())

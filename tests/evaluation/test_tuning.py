"""The search against trying every setting."""

import math

from hypothesis import given
from hypothesis import strategies as st

from zipar import ZipAR
from zipar.evaluation.tuning import AS_FEW, Figures, search

COLUMNS = 16
LOOKAHEADS = (16, 8, 4, 2, 1)


class Model:
    """Figures that grow as the search takes them to: any decreasing gaps, any increasing passes."""

    def __init__(self, narrow, fewer, wave, passes, drafts):
        self.narrow, self.fewer, self.wave, self.passes, self.drafts = narrow, fewer, wave, passes, drafts
        self.asked = []

    def measure(self, setting):
        if setting not in self.asked:
            self.asked.append(setting)
        rank = LOOKAHEADS.index(setting.lookahead)
        waves = setting.first_row == "wave"
        gap = sum(self.narrow[setting.window :]) + sum(self.fewer[:rank]) + self.wave * waves
        passes = 40 + self.passes * setting.window + self.drafts * rank - 5 * waves
        return Figures(0.0 if setting.window == COLUMNS else gap, passes)


steps = st.floats(0, 0.02)


@given(
    st.lists(steps, min_size=COLUMNS, max_size=COLUMNS),
    st.lists(steps, min_size=4, max_size=4),
    steps,
    st.floats(0.5, 20),
    st.sampled_from([0, 0.3, 1, 5]),
)
def test_no_setting_takes_fewer_passes(narrow, fewer, wave, passes, drafts):
    model = Model(narrow, fewer, wave, passes, drafts)
    found = search(model.measure, COLUMNS, 16, 0.02)
    assert len(model.asked) <= math.log2(COLUMNS) + 1 + len(LOOKAHEADS)
    every = {
        setting: model.measure(setting)
        for window in range(1, COLUMNS)
        for lookahead in LOOKAHEADS
        for setting in (ZipAR(window, lookahead), ZipAR(window, lookahead, "wave"))
    }
    fit = [setting for setting, figures in every.items() if figures.gap <= 0.02]
    if found is None:
        assert not [setting for setting in fit if setting.first_row == "alone"]
        return
    assert found in fit
    # wave is tried at the narrowest window alone: with a wider one it may be within the tolerance, and not be found
    rivals = [s for s in fit if s.first_row == "alone" or (s.window, s.first_row) == (found.window, "wave")]
    assert every[found].passes <= AS_FEW * min(every[setting].passes for setting in rivals)


def test_drafts_that_save_no_pass_are_given_up():
    model = Model([0.0] * COLUMNS, [0.0] * 4, 1.0, 3, 0)
    assert search(model.measure, COLUMNS, 16, 0.02) == ZipAR(1, 1)
    model = Model([0.0] * COLUMNS, [0.0, 1.0, 0.0, 0.0], 1.0, 3, 0)
    assert search(model.measure, COLUMNS, 16, 0.02) == ZipAR(1, 8)
    model = Model([0.0] * COLUMNS, [0.0] * 4, 0.0, 3, 20)
    assert search(model.measure, COLUMNS, 16, 0.02) == ZipAR(1, 16, "wave")


def test_raster_where_nothing_else_will_do():
    model = Model([1.0] * COLUMNS, [0.0] * 4, 0.0, 3, 0)
    assert search(model.measure, COLUMNS, 16, 0.02) is None
    assert search(model.measure, 1, 16, 0.02) is None

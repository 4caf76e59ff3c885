"""Optional packages: imported where they are used, and named where they are missing."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from analysis_cases import random_result

from vlmprobe.analysis import calibration, conformal, export, gating, paired, plots, recalibration, uncertainty, words
from vlmprobe.errors import MissingExtraError

SURE, RIGHT = np.linspace(0, 1, 40), np.arange(40) % 3 > 0
ANSWER = random_result(1)


@pytest.mark.parametrize(
    ("package", "extra", "use"),
    [
        ("sklearn", "calibration", lambda: calibration.auroc(SURE, RIGHT)),
        ("sklearn", "calibration", lambda: recalibration.fit_platt(SURE, RIGHT)),
        ("sklearn", "calibration", lambda: recalibration.fit_isotonic(SURE, RIGHT)),
        ("scipy.optimize", "calibration", lambda: recalibration.fit_temperature(SURE, RIGHT)),
        ("scipy.stats", "calibration", lambda: gating.accept_for_accuracy(SURE, RIGHT, 0.5)),
        ("scipy.stats", "calibration", lambda: conformal.PredictionSets(SURE, 0.1).likely_coverage()),
        ("scipy.stats", "calibration", lambda: paired.paired([ANSWER] * 2, [ANSWER] * 2, [ANSWER.text] * 2)),
        ("matplotlib", "plot", lambda: plots.tokens(random_result(1))),
        ("pyarrow", "arrow", lambda: export.arrow()),
        ("pandas", "pandas", lambda: uncertainty.frame([random_result(1)])),
        ("pandas", "pandas", lambda: words.words(random_result(1)).to_pandas()),
    ],
)
def test_a_missing_package_is_named_with_its_extra(package, extra, use, monkeypatch):
    for name in [each for each in sys.modules if each == package or each.startswith(package + ".")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    installs = {"calibration": "scikit-learn", "plot": "matplotlib", "arrow": "pyarrow", "pandas": "pandas"}[extra]
    with pytest.raises(MissingExtraError, match=rf"pip install '{installs}>=[0-9.]+'$"):
        use()


def test_rooms_import_nothing_heavy():
    rooms = [
        *("calibration", "confidences", "detection", "distillation", "entropies", "export", "gating"),
        *("conformal", "priors"),
        *("gallery", "lm_polygraph", "paired", "plots", "recalibration", "uncertainty", "words"),
    ]
    code = (
        f"import sys, importlib; [importlib.import_module('vlmprobe.analysis.' + room) for room in {rooms!r}]; "
        "heavy = {'torch', 'transformers', 'sklearn', 'scipy', 'matplotlib', 'pandas', 'pyarrow'} & set(sys.modules); "
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

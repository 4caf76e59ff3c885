"""docs/use/harnesses.md: its tasks and commands, run as written, give the numbers that it asks the probe for."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import subprocess
import sys

import numpy as np
import pytest
from common import DOCS

PAGE = (DOCS / "use" / "harnesses.md").read_text(encoding="utf-8")


def block(kind, holding):
    return next(each for each in re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL) if holding in each)


@pytest.mark.parametrize(
    ("harness", "task", "start"), [("lm_eval", "digits.yaml", "run"), ("lmms_eval", "lmms/digits.yaml", "--model")]
)
def test_the_command_of_the_page_gives_the_numbers_of_the_page(tmp_path, monkeypatch, offline, harness, task, start):
    pytest.importorskip(harness)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.py").write_text(block("python", "digits.parquet"), encoding="utf-8")
    known = runpy.run_path("page.py")
    (tmp_path / task).parent.mkdir(exist_ok=True)
    (tmp_path / task).write_text(PAGE.partition(f"`{task}`:\n\n```yaml\n")[2].partition("```")[0], encoding="utf-8")
    line = block("console", f"{harness} {start} ").replace("\\\n", " ").splitlines()[-1]
    command = shlex.split(line.removeprefix("$ python "))
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=offline, capture_output=True, text=True, check=False
    )
    written = list(tmp_path.rglob("*samples_digits*.jsonl"))
    assert len(written) == 1, done.stdout + done.stderr
    samples = [json.loads(each) for each in written[0].read_text(encoding="utf-8").splitlines()]
    told = [[float(value) for value, _ in sample["filtered_resps"]] for sample in samples]
    np.testing.assert_allclose(told, [each.logprobs for each in known["scores"]], atol=1e-4)
    assert [sample["acc"] for sample in samples] == [1.0, 1.0]

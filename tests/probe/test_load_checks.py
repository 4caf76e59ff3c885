"""Quick checks at load: they see what makes every number wrong, are remembered where they pass, and cost little."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import warnings
from importlib import metadata
from pathlib import Path

import pytest
import torch
from common import DATA
from PIL import Image

import vlmprobe
from vlmprobe._version import TESTED
from vlmprobe.adapter import Adapter
from vlmprobe.engines.local import capture
from vlmprobe.errors import VlmprobeWarning
from vlmprobe.model_registry import registry
from vlmprobe.probe import load_checks, passed_checks

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache directory, and the checks on."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(load_checks.SWITCH, "1")
    return tmp_path / "cache" / "vlmprobe" / "checked"


@pytest.fixture
def runs(monkeypatch):
    """How many times the checks ran."""
    counted = []
    real = load_checks.run
    monkeypatch.setattr(load_checks, "run", lambda engine: counted.append(engine) or real(engine))
    return counted


def load(folder, **options):
    return vlmprobe.load(folder, **{"device": "cpu", "dtype": "float32", **options})


def load_quietly(folder, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error", VlmprobeWarning)
        return load(folder, **options)


@pytest.fixture
def given_adapter(monkeypatch):
    """Let every checkpoint be loaded by a subclass of the native adapter with these members."""

    def give(**members):
        made = type("Given", (registry.adapters()["native"],), {"__module__": __name__, **members})
        monkeypatch.setattr(registry, "find", lambda *_, **__: made)

    return give


# -- what they find ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llava", "mllama", "qwen2_vl", "internvl", "paligemma", "cohere_compass", "idefics3"])
def test_right_models_pass(checkpoint, name, cache):
    load_quietly(checkpoint(name))
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("name", ["minicpmv-2.5", "internvl2-qwen2"])
def test_original_formats_pass(name, cache):

    load_quietly(DATA / "golden" / name)
    assert len(list(cache.iterdir())) == 1


def test_the_demo_model_passes(cache):
    load_quietly("demo")
    assert len(list(cache.iterdir())) == 1


def findings(folder, **options) -> str:
    with pytest.warns(VlmprobeWarning) as caught:
        load(folder, **options)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    return str(caught[0].message)


def test_a_wrong_image_id(checkpoint, given_adapter):
    given_adapter(image_ids=property(lambda self: frozenset({self.tokenizer.convert_tokens_to_ids("<unk>")})))
    told = findings(checkpoint("llava"))
    assert "- C5 (image positions): AdapterError: native: the prompt has no image placeholder" in told
    assert f"vlmprobe check {checkpoint('llava')}" in told
    assert told.count("\n- ") == 1


def test_no_spans(checkpoint, given_adapter):
    given_adapter(spans=lambda self, ids, conversation: ())
    told = findings(checkpoint("llava"))
    assert "- C5 (image positions): no position of the prompt is marked as the image's" in told
    assert "the model fills 16" in told


def test_a_special_id_beside_the_features(checkpoint, given_adapter):
    """A text token that is taken for a position of the picture."""
    given_adapter(image_ids=property(lambda self: Adapter.image_ids.fget(self) | {self.tokenizer.bos_token_id}))
    told = findings(checkpoint("llava"))
    assert "- C5 (image positions): the model fills 16 positions with image features, and the spans hold 17" in told
    assert "first at position 0" in told


def test_lost_scaling(checkpoint, monkeypatch):
    def bare(self, hidden):
        return self.outer.lm_head(hidden)

    monkeypatch.setattr(capture.Head, "__call__", bare)
    told = findings(checkpoint("cohere_compass"))
    assert "- C11 (rows of the head): the log-probability of token" in told
    assert told.count("\n- ") == 1


def test_an_answer_that_would_run_on(checkpoint, given_adapter):
    given_adapter(end_ids=property(lambda self: frozenset({self.tokenizer.convert_tokens_to_ids("<|endoftext|>")})))
    told = findings(checkpoint("llava_onevision"))
    assert "- end tokens: the chat template ends an answer with '<|im_end|>', but" in told
    assert "'<|endoftext|>'" in told


def test_no_end_token(checkpoint, given_adapter):
    given_adapter(end_ids=frozenset())
    assert "- end tokens: no end token is known" in findings(checkpoint("llava"))


def test_a_template_that_drops_the_question(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("llava"), tmp_path / "llava")
    (folder / "chat_template.jinja").write_text("USER: <image>\nASSISTANT:")
    assert "- chat template: the prompt contains the user's text 0 times" in findings(folder)


def test_no_template(checkpoint, tmp_path):
    """The checks that follow cannot be asked without one, and say nothing more."""
    folder = shutil.copytree(checkpoint("llava"), tmp_path / "llava")
    (folder / "chat_template.jinja").unlink()
    told = findings(folder)
    assert "- chat template: CheckpointError:" in told
    assert told.count("\n- ") == 1


def test_an_adapter_that_breaks(checkpoint, given_adapter):
    """Whatever it raises is told, and the other checks run."""
    given_adapter(layers=property(lambda self: self.nothing_of_the_kind))
    told = findings(checkpoint("llava"))
    assert "- C5 (image positions): AttributeError" in told
    assert told.count("\n- ") == 1


def test_weights_that_give_nan(checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(checkpoint("llava"), tmp_path / "llava")
    weights = load_file(folder / "model.safetensors")
    weights["language_model.lm_head.weight"][3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "- C11 (rows of the head): NonFiniteLogitsError" in findings(folder)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_rounding_is_no_finding(checkpoint, dtype):
    load_quietly(checkpoint("llava"), dtype=dtype)
    load_quietly(checkpoint("gemma3"), dtype=dtype)


# -- when they run -----------------------------------------------------------------------------


def test_once_for_a_state(checkpoint, tmp_path, runs, monkeypatch):
    folder = shutil.copytree(checkpoint("llava"), tmp_path / "llava")
    for _ in range(2):
        load_quietly(folder)
    assert len(runs) == 1
    load_quietly(folder, dtype="bfloat16")
    assert len(runs) == 2
    load_quietly(folder)
    assert len(runs) == 3  # one state of a model is remembered, the last
    with (folder / "chat_template.jinja").open("a") as template:
        template.write("{# changed #}")
    load_quietly(folder)
    assert len(runs) == 4
    monkeypatch.setattr("vlmprobe._version.__version__", "99")
    load_quietly(folder)
    load_quietly(folder)
    assert len(runs) == 5


def test_a_changed_adapter_is_checked_again(tmp_path, monkeypatch):
    source = tmp_path / "adapter_module.py"
    source.write_text("class Theirs: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    from adapter_module import Theirs

    before = passed_checks.fingerprint(Theirs, {}, {}, "some/model")
    assert passed_checks.fingerprint(Theirs, {}, {}, "some/model") == before
    source.write_text("class Theirs:\n    pass\n")
    assert passed_checks.fingerprint(Theirs, {}, {}, "some/model") != before


def test_another_revision_or_configuration_is_checked_again():
    def known(revision, **config):
        return passed_checks.fingerprint(Adapter, {"revision": revision}, config, "some/model")

    assert known("a", width=1) == known("a", width=1)
    assert len({known("a", width=1), known("b", width=1), known("a", width=2)}) == 3


def test_a_failure_is_told_at_every_load(checkpoint, given_adapter, cache, runs):
    given_adapter(end_ids=frozenset())
    findings(checkpoint("llava"))
    findings(checkpoint("llava"))
    assert len(runs) == 2
    assert not cache.exists()


def test_switched_off(checkpoint, given_adapter, runs, monkeypatch):
    given_adapter(end_ids=frozenset())
    load_quietly(checkpoint("llava"), check=False)
    for value in ("0", "off", "False"):
        monkeypatch.setenv(load_checks.SWITCH, value)
        load_quietly(checkpoint("llava"))
    assert not runs
    monkeypatch.delenv(load_checks.SWITCH)
    findings(checkpoint("llava"))
    assert len(runs) == 1


# -- a newer transformers than the tested one --------------------------------------------------


ALL = "chat template, end tokens, C5 (image positions), C11 (rows of the head)"


@pytest.fixture
def told(monkeypatch, caplog):
    """What the log of vlmprobe says, in a process that was told nothing yet."""
    monkeypatch.setattr(load_checks, "_UNTOLD", threading.Lock())
    return lambda: [each.getMessage() for each in caplog.records if each.name == "vlmprobe"]


@pytest.fixture
def installed(monkeypatch):
    """Let this version of transformers be the installed one, as far as packages tell."""
    real = metadata.version

    def install(version):
        monkeypatch.setattr(metadata, "version", lambda name: version if name == "transformers" else real(name))

    return install


def test_a_newer_transformers_is_told_once_and_checked_again(checkpoint, installed, told, runs):
    tested = TESTED["transformers"]
    installed(tested)
    before = load_quietly(checkpoint("llava"))
    assert len(runs) == 1
    assert not told()

    installed("99.1.0")
    after = load_quietly(checkpoint("llava"))
    assert len(runs) == 2
    assert told() == [
        f"transformers 99.1.0 is newer than {tested}, with which vlmprobe {vlmprobe.__version__} was tested; "
        f"quick checks of {checkpoint('llava')} that passed: {ALL}"
    ]
    load_quietly(checkpoint("llava"))
    load_quietly(checkpoint("qwen2_vl"))
    assert len(runs) == 3
    assert len(told()) == 1
    answers = [each.generate("Why?", max_new_tokens=2).output for each in (before, after)]
    assert answers[0].logprobs.tolist() == answers[1].logprobs.tolist()


def test_what_was_remembered_is_told_too(checkpoint, installed, told, runs, monkeypatch):
    """In the next process the checks do not run again, and the line is there."""
    installed("99.1.0")
    load_quietly(checkpoint("llava"))
    monkeypatch.setattr(load_checks, "_UNTOLD", threading.Lock())
    load_quietly(checkpoint("llava"))
    assert len(runs) == 1
    assert len(told()) == 2
    assert told()[1].endswith(f"passed: {ALL}")


def test_only_what_passed_is_named(checkpoint, installed, told, given_adapter):
    installed("99.1.0")
    given_adapter(end_ids=frozenset())
    findings(checkpoint("llava"))
    assert told()[0].endswith("passed: chat template, C5 (image positions), C11 (rows of the head)")


def test_nothing_passed(checkpoint, installed, told, tmp_path):
    """Without the template no other check runs, so none passed."""
    installed("99.1.0")
    folder = shutil.copytree(checkpoint("llava"), tmp_path / "llava")
    (folder / "chat_template.jinja").write_text("USER: <image>\nASSISTANT:")
    findings(folder)
    assert told()[0].endswith("passed: none")


@pytest.mark.parametrize(
    ("version", "newer"),
    [
        ("{}", False),
        ("{}+cpu", False),
        ("{}.dev0", False),
        ("{}rc1", False),
        ("5.17.0", False),
        ("a fork", False),
        ("{}.post1", True),
        ("99.0.0.dev0", True),
    ],
)
def test_what_is_newer(checkpoint, installed, told, version, newer):
    installed(version.format(TESTED["transformers"]))
    load_quietly(checkpoint("llava"))
    assert len(told()) == newer


def test_switched_off_nothing_is_told(checkpoint, installed, told, monkeypatch):
    installed("99.1.0")
    load_quietly(checkpoint("llava"), check=False)
    monkeypatch.setenv(load_checks.SWITCH, "0")
    load_quietly(checkpoint("llava"))
    assert not told()


def test_the_tested_versions_are_those_of_the_constraints():
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE))
    assert {name: pinned[name] for name in TESTED} == TESTED, "write TESTED of vlmprobe/_version.py anew"


ASKED = """
import vlmprobe
for _ in range(2):
    probe = vlmprobe.load("demo", device="cpu")
    result = probe.generate("Why?", max_new_tokens=2)
print(len(result.output))
"""


@pytest.mark.parametrize("how", ["python", "cli"])
def test_what_is_on_the_screen(how, tmp_path, cache):
    """One line on standard error, and an answer; the metadata of a newer transformers stands before the installed."""
    newer = tmp_path / "site" / "transformers-99.1.0.dist-info"
    newer.mkdir(parents=True)
    (newer / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 99.1.0\n")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "scene.png")
    asked = ["-m", "vlmprobe", "probe", "demo", str(tmp_path / "scene.png"), "What is it?", "--json"]
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *sys.path]),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, *(asked if how == "cli" else ["-c", ASKED])], env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line and "Loading weights" not in line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("transformers 99.1.0 is newer than")
    assert lines[0].endswith(f"quick checks of demo that passed: {ALL}")
    assert len(list(cache.iterdir())) == 1
    if how == "cli":
        assert json.loads(done.stdout)["meta"]["versions"]["transformers"] == "99.1.0"
    else:
        assert done.stdout == "2\n"


# -- the memory --------------------------------------------------------------------------------


def test_a_cache_that_cannot_be_written_changes_nothing(checkpoint, tmp_path, given_adapter, runs, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        load_quietly(checkpoint("llava"))
    assert len(runs) == 2
    given_adapter(end_ids=frozenset())
    findings(checkpoint("llava"))


@pytest.mark.parametrize("held", ["", "{", "[]", '{"passed": true}', '"passed"', "\x00\xff"])
def test_a_damaged_memory_is_no_pass(checkpoint, cache, runs, held):
    load_quietly(checkpoint("llava"))
    (file,) = cache.iterdir()
    right = json.loads(file.read_text())
    file.write_text(held, encoding="latin-1")
    load_quietly(checkpoint("llava"))
    assert len(runs) == 2
    assert json.loads(file.read_text()) == right
    assert list(cache.iterdir()) == [file]


def test_the_default_place(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("", "not/absolute"):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert passed_checks.folder() == tmp_path / ".cache" / "vlmprobe" / "checked"


# -- what they cost and leave ------------------------------------------------------------------


def test_two_runs_of_the_decoder(probe_of):
    """One of generate and one of the model's own forward; to find the image positions takes none."""
    engine = probe_of("llava").engine
    ran = []
    handle = engine.adapter.layers[-1].register_forward_hook(lambda *_: ran.append(1))
    try:
        assert load_checks.run(engine) == []
    finally:
        handle.remove()
    assert len(ran) == 2


def test_they_leave_nothing_behind(probe_of):
    engine = probe_of("llava").engine
    model = engine.adapter.model
    probe_of("llava").generate("Why?", max_new_tokens=1)  # transformers puts hooks of its own at the first forward

    def hooks():
        return [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]

    before, state = hooks(), torch.get_rng_state()
    model.train()
    try:
        load_checks.run(engine)
        assert model.training
    finally:
        model.eval()
    assert torch.equal(torch.get_rng_state(), state)
    assert hooks() == before

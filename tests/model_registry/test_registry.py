"""Which adapter a checkpoint gets, and what third parties may and may not do."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
import warnings
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType, SimpleNamespace

import pytest
from common import FAMILIES

import vlmprobe
from vlmprobe.adapter import Adapter
from vlmprobe.errors import AdapterError, CapabilityError, RemoteCodeError, UnknownModelError
from vlmprobe.model_registry import registry, source
from vlmprobe.plugins import is_ours


class Theirs(Adapter):
    """A third party's adapter of a family that nobody else knows."""

    model_types = ("newcomer", "newcomer_moe")


class Greedy(Adapter):
    """A third party's adapter that claims everything."""

    @classmethod
    def handles(cls, config):
        return True


class Failing(Adapter):
    """A third party's adapter that trips over some configurations."""

    @classmethod
    def handles(cls, config):
        return config["no such key"] == 1


class Unsaid(Adapter):
    """A third party's adapter that does not say what it handles."""


class Bare(Adapter):
    """A third party's adapter that lists its model types as one string, in which ``in`` would find parts of words."""

    model_types = "llava_newcomer"


def point(name, value, dist="somebody"):
    made = EntryPoint(name, value, registry.GROUP)
    return made._for(SimpleNamespace(name=dist, metadata={"Name": dist})) if dist else made


@pytest.fixture
def plug_in(monkeypatch):
    """Installs further entry points beside the built-in ones, from a package named ``somebody``."""
    module = ModuleType("somebodys_adapters")
    for each in (Theirs, Greedy, Failing, Unsaid, Bare):
        setattr(module, each.__name__, each)
    module.Number = 5
    monkeypatch.setitem(sys.modules, "somebodys_adapters", module)
    real = list(registry.entry_points(group=registry.GROUP))

    def install(*points):
        monkeypatch.setattr(registry, "entry_points", lambda group: [*points, *real])
        registry.clear()

    yield install
    monkeypatch.undo()
    registry.clear()
    for each in (Theirs, Greedy, Failing, Unsaid, Bare):
        each.name = ""


def found(config, **options):
    """The adapter's name, and the warnings on the way."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        name = registry.find(config, **options).name
    return name, " | ".join(str(each.message) for each in caught)


# The built-in ones


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("mllama", "mllama"),
        ("qwen2_vl", "qwen_vl"),
        ("qwen2_5_vl", "qwen_vl"),
        ("qwen3_vl", "qwen_vl"),
        ("internvl", "internvl"),
        ("paligemma", "paligemma"),
        ("llava", "native"),
        ("idefics3", "native"),
        ("gemma3", "native"),
    ],
)
def test_specific_before_generic(kind, name):
    assert found({"model_type": kind}) == (name, "")


def test_every_built_in_adapter_loads_and_none_claims_what_another_claims():
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    known = registry.adapters()
    assert set(known) == set(registry.adapter_names())
    for kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        claims = [each.name for each in known.values() if not each.generic and each.handles({"model_type": kind})]
        assert len(claims) <= 1, kind
    assert [each.name for each in known.values() if each.generic] == ["native"]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": None},
        {"model_type": ""},
        {"architectures": None},
        {"model_type": "internvl_chat", "version": 7},
    ],
)
def test_built_in_adapters_look_at_any_configuration(config):
    for adapter in registry.adapters().values():
        assert adapter.handles(config) in (True, False)


def test_names_without_importing_anything():
    import subprocess

    code = (
        "import sys; from vlmprobe.model_registry import registry\n"
        "print(*registry.adapter_names()); print('torch' in sys.modules)"
    )
    names, torch = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=900
    ).stdout.splitlines()
    assert "native" in names.split()
    assert torch == "False"


def test_chosen_by_name(checkpoint):
    assert vlmprobe.load(checkpoint("qwen2_vl"), device="cpu", adapter="native").meta["adapter"] == "native"
    with pytest.raises(UnknownModelError, match=r"Did you mean mllama.*Installed: .*native"):
        registry.find({"model_type": "llava"}, name="mlama")


# Unknown checkpoints


def test_an_unknown_model_names_near_ones_and_the_page_on_adapters():
    with pytest.raises(
        UnknownModelError, match=r"'lava'.*Did you mean llava.*newer transformers.*add-a-model"
    ) as raised:
        registry.find({"model_type": "lava", "architectures": ["LavaModel"]}, checkpoint="some/lava")
    assert "some/lava" in str(raised.value)
    assert "LavaModel" in str(raised.value)


@pytest.mark.parametrize("architectures", [None, [], "LavaModel", [1, None], {"a": 1}])
def test_odd_architectures_of_an_unknown_model(architectures):
    with pytest.raises(UnknownModelError, match="lava"):
        registry.find({"model_type": "lava", "architectures": architectures})


@pytest.mark.parametrize(
    ("kind", "architecture", "says"),
    [
        ("gpt2", "GPT2LMHeadModel", "is a text-only model"),
        ("t5", "T5ForConditionalGeneration", "is a text-only model"),
        ("clip", "CLIPModel", "is an encoder without a language head .* so it has no logits of words"),
        ("siglip", "SiglipModel", "is an encoder without a language head"),
        ("clip_vision_model", "CLIPVisionModel", "is a model without a language head"),
        ("dinov2", "Dinov2Model", "is an encoder without a language head"),
        ("detr", "DetrForObjectDetection", "is a model for object detection without a language head"),
        ("grounding-dino", "GroundingDinoForObjectDetection", "is a model for zero-shot object detection without"),
        ("mask2former", "Mask2FormerForUniversalSegmentation", "is a model for universal segmentation without"),
        ("sam", "SamModel", "is a model for mask generation without a language head"),
        ("depth_anything", "DepthAnythingForDepthEstimation", "is a model for depth estimation without"),
        ("whisper", "WhisperForConditionalGeneration", "is a model of speech or sound .*takes models that read"),
        ("wav2vec2", "Wav2Vec2ForCTC", "is a model of speech or sound"),
        ("qwen2_audio", "Qwen2AudioForConditionalGeneration", "is a model of speech or sound"),
        ("vits", "VitsModel", "is a model that speaks"),
        ("distilbert", "DistilBertForMaskedLM", "is a masked language model"),
        ("florence2", "Florence2ForConditionalGeneration", "is an encoder-decoder .*its prompt is not in the sequence"),
        ("pix2struct", "Pix2StructForConditionalGeneration", "is an encoder-decoder"),
    ],
)
def test_what_cannot_be_probed_is_called_what_it_is(kind, architecture, says):
    with pytest.raises(UnknownModelError, match=rf"some/model {says}") as raised:
        registry.find({"model_type": kind, "architectures": [architecture]}, checkpoint="some/model")
    assert "Did you mean" not in str(raised.value)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gpt2", "architectures": ["SomebodysVisionModel"]},
        {"model_type": "llama", "mm_vision_tower": "openai/clip"},
        {"model_type": "whisper", "architectures": ["SomebodysWhisperWithEyes"]},
        {"model_type": "phi4_multimodal"},
        {"model_type": "qwen2_5_omni"},
        {"model_type": "nonsense"},
    ],
)
def test_what_is_not_known_for_sure_is_not_said(config):
    with pytest.raises(UnknownModelError, match="No adapter handles") as raised:
        registry.find(config)
    assert "Did you mean" not in str(raised.value)


def test_an_encoder_decoder_is_told_by_its_own_configuration_too():
    with pytest.raises(UnknownModelError, match="is an encoder-decoder"):
        registry.find({"model_type": "llava", "is_encoder_decoder": True})


def test_hints_propose_installed_adapters(plug_in):
    with pytest.raises(UnknownModelError, match=r"Did you mean internvl_chat.*To try one: adapter='internvl2'\."):
        registry.find({"model_type": "internvl_chat_v2"})
    with pytest.raises(UnknownModelError, match="No adapter handles") as raised:
        registry.find({"model_type": "newcomer_xl"})
    assert "Did you mean" not in str(raised.value)
    plug_in(point("theirs", "somebodys_adapters:Theirs"))
    with pytest.raises(UnknownModelError, match=r"Did you mean newcomer.*To try one: adapter='theirs'\."):
        registry.find({"model_type": "newcomer_xl"})


def test_load_says_so_too(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}')
    with pytest.raises(UnknownModelError, match="text-only"):
        vlmprobe.load(tmp_path)


def test_adapters_read_from_their_source_are_what_they_are_when_imported():
    for entry in entry_points(group=registry.GROUP):
        if is_ours(entry):
            adapter = registry.adapters()[entry.name]
            place = (entry.module, entry.attr)
            assert source.capabilities(*place) == adapter.capabilities, entry.name
            assert source.literal(*place, "generic") == adapter.generic
            assert source.description(*place) == inspect.cleandoc(sys.modules[adapter.__module__].__doc__)
            assert source.description(*place, of_class=True) == inspect.cleandoc(adapter.__doc__)


def test_model_types_read_from_the_source_of_transformers():
    assert source.model_types() == registry.known_model_types()


def test_a_model_that_brings_its_own_code_is_refused():
    with pytest.raises(RemoteCodeError, match=r"never does.*native to transformers.*add-a-model"):
        registry.find({"model_type": "brand_new_vl", "auto_map": {"AutoModel": "modeling.X"}})


# Plug-ins


def test_a_plug_in_is_found_and_says_who_it_is(plug_in, checkpoint):
    plug_in(point("newcomer", "somebodys_adapters:Theirs"))
    assert found({"model_type": "newcomer"}) == ("newcomer", "")
    assert "newcomer" in registry.adapter_names()
    assert vlmprobe.load(checkpoint("llava"), device="cpu", adapter="newcomer").meta["adapter"] == "newcomer"


def test_a_plug_in_cannot_take_a_built_in_name(plug_in):
    plug_in(point("native", "somebodys_adapters:Greedy"))
    name, said = found({"model_type": "llava"})
    assert name == "native"
    assert "somebody publishes an adapter named 'native', which is taken" in said
    assert registry.adapters()["native"] is not Greedy


def test_a_plug_in_cannot_silently_take_a_built_in_checkpoint(plug_in):
    plug_in(point("greedy", "somebodys_adapters:Greedy"))
    name, said = found({"model_type": "mllama"}, checkpoint="some/mllama")
    assert name == "mllama"
    assert "some/mllama is also claimed by 'greedy'" in said
    assert "adapter='greedy'" in said
    assert found({"model_type": "mllama"}, name="greedy") == ("greedy", "")


def test_a_plug_in_comes_before_the_generic_adapter(plug_in):
    plug_in(point("greedy", "somebodys_adapters:Greedy"))
    assert found({"model_type": "llava"})[0] == "greedy"


def test_two_plug_ins_for_one_checkpoint(plug_in):
    plug_in(point("greedy", "somebodys_adapters:Greedy"), point("newcomer", "somebodys_adapters:Theirs"))
    with pytest.raises(AdapterError, match=r"'greedy', 'newcomer'.*adapter="):
        registry.find({"model_type": "newcomer"})


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("no_such_module:Adapter", "ModuleNotFoundError"),
        ("somebodys_adapters:Missing", "AttributeError"),
        ("somebodys_adapters:Number", "not a subclass"),
        ("json:dumps", "not a subclass"),
        ("vlmprobe.model_registry.native:Native", "again"),
    ],
)
def test_a_broken_plug_in_is_named_and_takes_no_other_along(value, says, plug_in):
    plug_in(point("broken", value), point("newcomer", "somebodys_adapters:Theirs"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        known = registry.adapters()
    assert any("somebody" in str(each.message) and says in str(each.message) for each in caught)
    assert "broken" not in known
    assert known["newcomer"] is Theirs
    assert known["native"].name == "native"


@pytest.mark.parametrize("kind", ["Failing", "Unsaid", "Bare"])
def test_a_plug_in_that_fails_when_it_is_asked(kind, plug_in):
    plug_in(point("trips", f"somebodys_adapters:{kind}"))
    name, said = found({"model_type": "llava"})
    assert name == "native"
    assert "'trips' is broken" in said


def test_a_plug_in_without_a_package(plug_in):
    plug_in(point("native", "somebodys_adapters:Greedy", dist=None))
    name, said = found({"model_type": "llava"})
    assert name == "native"
    assert "unknown package" in said


def test_a_plug_in_without_a_package_cannot_pass_for_ours(plug_in):
    plug_in(point("vlmprobe", "somebodys_adapters:Greedy", dist=None))
    assert found({"model_type": "mllama"})[0] == "mllama"


# config.json


def test_nothing_but_config_json_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "x": [1]}))
    (tmp_path / "configuration.py").write_text("raise SystemExit")
    assert registry.read_config(tmp_path) == {"model_type": "llava", "x": [1]}
    assert registry.read_config(str(tmp_path)) == registry.read_config(tmp_path)


@pytest.mark.parametrize("model_type", ["llama4", "nemotron_h_omni"])
@pytest.mark.parametrize("version", ["5.23.0", "5.24.0"])
def test_what_the_installed_transformers_cannot_run_is_refused_before_it_is_loaded(monkeypatch, model_type, version):
    from vlmprobe.model_registry import nested_decoder

    monkeypatch.setattr(nested_decoder, "__version__", version)
    model = SimpleNamespace(config=SimpleNamespace(model_type=model_type))
    if (model_type, version) != ("llama4", "5.24.0"):
        assert nested_decoder.Nested(model, None).model is model
        return
    kind = nested_decoder.Nested
    for call in (lambda: kind(model, None), lambda: kind.load("x", config={"model_type": "llama4"})):
        with pytest.raises(CapabilityError, match=r"5\.24\.0 cannot run llama4.*Install another"):
            call()


def test_the_commit_is_that_of_the_snapshot(tmp_path, monkeypatch):
    """The folder may also be the current one, and a folder outside the hub's cache has no commit."""
    snapshot = tmp_path / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    for folder in (snapshot, tmp_path):
        (folder / "config.json").write_text("{}")
    assert registry.config_and_commit(snapshot) == ({}, "abc123")
    assert registry.config_and_commit(tmp_path) == ({}, None)
    monkeypatch.chdir(snapshot)
    assert registry.config_and_commit(".") == ({}, "abc123")


LOADED_FROM_HUB = """
import vlmprobe
probe = vlmprobe.load("somebody/llava", device="cpu", check=False)
print(probe.meta["model"], probe.meta["revision"])
"""


def test_the_revision_of_a_hub_checkpoint_is_its_commit(checkpoint, tmp_path):
    """As a cache without a network gives it; transformers 5.24 keeps no commit in the configuration any more."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    stored = tmp_path / "models--somebody--llava"
    shutil.copytree(checkpoint("llava"), stored / "snapshots" / commit)
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text(commit)
    variables = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", LOADED_FROM_HUB], env=variables, capture_output=True, text=True)
    assert done.stdout.split() == ["somebody/llava", commit], done.stderr


# what transformers itself reads


def test_native_is_what_transformers_lists():
    listed = set(FAMILIES).intersection(registry.known_model_types())
    assert len(listed) > 10
    assert {kind for kind in listed if registry.is_native(kind)} == listed
    assert not any(registry.is_native(kind) for kind in ("llama", "clip", "", None, ["llava"]))

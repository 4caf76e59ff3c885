"""The list of private and undocumented names of other libraries, docs/reference/private_names.toml, holds them all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from documented_modules import DOCUMENTED
from private_names import Source, complaints, exists, is_foreign, listed, own_names, package_sources, refreshed, uses

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def sources():
    return package_sources()


def found(text: str, *, own: str = "") -> list[str]:
    """Names that are found in a source, as ``line: name``; ``own`` is another file of the package."""
    source = Source("vlmprobe/one.py", text)
    return [f"{use.line}: {use.name}" for use in uses(source, own_names([source, Source("vlmprobe/two.py", own)]))]


# -- the package -------------------------------------------------------------------------------


def test_the_list_says_what_the_package_touches(sources):
    told = complaints(listed(), sources)
    assert not told, "\n\n".join(told)


@pytest.mark.parametrize("entry", listed(), ids=lambda entry: entry["name"])
def test_a_listed_name_is_there_and_is_explained(entry):
    assert exists(entry["name"]), "the installed libraries do not have it: see what it was needed for, and take it out"
    assert set(entry) == {"name", "used_in", "why", "notices"}
    assert all(isinstance(entry[key], str) and len(entry[key]) > 10 for key in ("why", "notices"))
    for name in re.findall(r"test_\w+\.py", entry["notices"]):
        assert any(TESTS.rglob(name)), f"there is no {name}"


def test_no_name_is_listed_twice():
    names = [entry["name"] for entry in listed()]
    assert len(names) == len(set(names))


def test_nothing_is_called_documented_without_need(sources):
    """What is allowed and not used would hide what comes later."""
    bound = {name for source in sources for name in source.named}
    unused = [module for module in DOCUMENTED if not any(f"{name}.".startswith(f"{module}.") for name in bound)]
    assert not unused
    spare = [
        f"{module}.{name}"
        for module, (names, _) in DOCUMENTED.items()
        for name in names or ()
        if f"{module}.{name}" not in bound
    ]
    assert not spare


# -- imports -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("from transformers.generation.utils import GenerateOutput", "transformers.generation.utils.GenerateOutput"),
        ("from transformers import initialization", "transformers.initialization"),
        ("from transformers.utils import cached_file", "transformers.utils.cached_file"),
        ("from torch.nn.modules import conv", "torch.nn.modules.conv"),
        ("from torch import _C", "torch._C"),
        ("from tokenizers._internal import Any as Other", "tokenizers._internal.Any"),
        ("import torch.nn.modules.conv", "torch.nn.modules.conv"),
        ("import accelerate", "accelerate"),
        ("import torch\ntorch.nn.modules.conv", "torch.nn.modules.conv"),
        ("from torch import nn\nnn.modules.conv.Conv2d", "torch.nn.modules.conv.Conv2d"),
        ("import transformers\ntransformers.cache_utils.DynamicLayer", "transformers.cache_utils.DynamicLayer"),
    ],
)
def test_an_undocumented_import_is_found(text, name):
    assert name in [each.partition(": ")[2] for each in found(text)]


@pytest.mark.parametrize(
    "text",
    [
        "from transformers import AutoModel, Cache, __version__",
        "from transformers.utils import ModelOutput, logging\nlogging.disable_progress_bar()",
        "from transformers.modeling_outputs import BaseModelOutputWithPast",
        "import torch\nfrom torch import nn\nnn.functional.pad\ntorch.random.fork_rng",
        "import numpy as np\nnp.linalg.norm",
        "from vlmprobe._version import __version__\nfrom vlmprobe.cli import _anything",
        "from __future__ import annotations\nimport os, _thread\nfrom collections import _count_elements",
        "from sklearn import metrics\nmetrics = {}\nmetrics.items()",
    ],
)
def test_what_is_documented_or_ours_is_not(text):
    assert not found(text)


# -- attributes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "print(model._inside)",
        "model.config._inside = 1",
        "self.model._inside",
        "type(model)._inside",
        "build(_inside=True)",
        "import torch\ntorch.nn.Module._inside",
    ],
)
def test_a_private_attribute_of_something_else_is_found(text):
    assert [each for each in found(text) if each.endswith(": _inside")]


def test_attributes_of_our_own_are_not():
    ours = """
class Probe:
    _kind = 1
    def __init__(self):
        self._inside = 1
    def _told(self): ...
"""
    assert not found(
        "other._inside + probe._told() + Probe._kind + self._x + model.__dict__ + model.__class__", own=ours
    )
    assert found("other._inside") == ["1: _inside"]


def test_a_name_of_a_library_is_not_ours_because_a_class_of_ours_has_it_too():
    ours = """
from torch import nn
class Tree:
    def __init__(self):
        self._modules = {}
class Layer(nn.Module): ...
"""
    assert found("model._modules", own=ours) == ["1: _modules"]


# -- what classes inherit ----------------------------------------------------------------------


MODEL = """
from torch import nn
from transformers import PreTrainedModel, PythonBackend

class Base(PreTrainedModel):
    _no_split_modules = ["Layer"]
    _ours = 1

class Model(Base):
    def __init__(self):
        self._ours_too = self._ours
        self._modules = {}

    def _init_weights(self, module):
        super()._init_weights(module)

    def _helper(self):
        return self._helper() + self._ours_too

class Words(PythonBackend):
    def get_vocab(self):
        return self._added_tokens_encoder

class Layer(nn.Module):
    def names(self):
        return self._of_whom
"""


def test_what_a_subclass_overrides_sets_or_reads_is_found():
    assert found(MODEL) == [
        "6: _no_split_modules",
        "12: _modules",
        "14: _init_weights",
        "15: _init_weights",
        "22: _added_tokens_encoder",
        "26: _of_whom",
    ]


def test_a_class_without_a_library_behind_it_has_its_own_names():
    assert not found(
        "class Plain:\n    _kind = 1\n    def _told(self):\n        return self._kind + self._from_a_mixin"
    )


# -- names in strings --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('getattr(model.config, "_commit_hash", None)', "_commit_hash"),
        ('vars(model)["_modules"]', "_modules"),
        ('HOOKS = ("_forward_hooks",)', "_forward_hooks"),
        ('getattr(module, f"_global{name}")', "_global*"),
        ('import_module(f"transformers.models.{name}.modeling")', "transformers.models.*"),
        ('import_module("transformers.generation.utils")', "transformers.generation.utils"),
        ('patch("torch.nn.Module._call_impl")', "torch.nn.Module._call_impl"),
    ],
)
def test_a_private_name_in_a_string_is_found(text, name):
    assert name in [each.partition(": ")[2] for each in found(text)]


@pytest.mark.parametrize(
    "text",
    [
        'f"{name}_token_id" + "_and_".join(parts) + "__main__" + "_" + "a_b"',
        'removeprefix("torch.")',
        'import_module("torch.nn.functional")',
        '"""The text of transformers.generation.utils, and of _forward_hooks."""',
        'version("transformers")',
    ],
)
def test_other_strings_are_not(text):
    assert not found(text)


# -- what is said ------------------------------------------------------------------------------


ENTRY = {"name": "torch.nn.Module._modules", "used_in": ["vlmprobe/one.py"], "why": "", "notices": ""}
HAND = {"name": "transformers.Lfm2Model.embedding_norm", "used_in": ["vlmprobe/one.py"], "why": "", "notices": ""}


def test_what_is_right_is_not_complained_of():
    source = Source("vlmprobe/one.py", "model._modules, decoder.embedding_norm")
    assert not complaints([ENTRY, HAND], [source])


def test_a_new_name_is_told_with_the_place_and_what_to_write():
    source = Source("vlmprobe/one.py", "\nfrom transformers.tokenization_python import PythonBackend\n")
    (told,) = complaints([], [source])
    assert told.startswith(
        "vlmprobe/one.py:2: transformers.tokenization_python.PythonBackend is private or undocumented"
    )
    assert '[[name]]\nname = "transformers.tokenization_python.PythonBackend"\nused_in = ["vlmprobe/one.py"]\n' in told
    assert "from transformers import PythonBackend" in told


@pytest.mark.parametrize("entry", [ENTRY, HAND])
def test_a_name_that_nothing_uses_is_told(entry):
    (told,) = complaints([entry], [Source("vlmprobe/one.py", "")])
    assert told == f"Nothing uses {entry['name']} any more: take its entry out."


def test_a_name_that_is_used_elsewhere_is_told_with_what_to_write():
    sources = [Source("vlmprobe/two.py", "model._modules")]
    (told,) = complaints([ENTRY], sources)
    assert 'used_in = ["vlmprobe/two.py"]' in told
    sources.append(Source("vlmprobe/one.py", "model._modules"))
    (told,) = complaints([ENTRY], sources)
    assert 'used_in = ["vlmprobe/one.py", "vlmprobe/two.py"]' in told


def test_the_places_are_put_right_by_one_command():
    text = "".join(
        f'[[name]]\nname = "{each["name"]}"\nused_in = [\n  "vlmprobe/one.py",\n]\nwhy = "w"\n\n'
        for each in (ENTRY, HAND)
    )
    sources = [Source("vlmprobe/two.py", "model._modules"), Source("vlmprobe/three.py", "decoder.embedding_norm")]
    written = refreshed(text, [ENTRY, HAND], sources)
    assert re.findall(r"used_in = .*", written) == ['used_in = ["vlmprobe/two.py"]', 'used_in = ["vlmprobe/three.py"]']
    assert written.count('why = "w"') == 2


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("torch.nn.Module._modules", True),
        ("torch.nn.Module._no_such_thing", False),
        ("transformers.Lfm2Model.embedding_norm", True),
        ("transformers.Lfm2Model.no_such_norm", False),
        ("transformers.generation.utils.GENERATION_MODES_MAPPING", True),
        ("transformers.generation.utils.NO_SUCH_MAPPING", False),
        ("transformers.no_such_module.Thing", False),
        ("no_such_library.Thing", True),  # it cannot be told
    ],
)
def test_whether_a_name_is_there(name, there):
    assert exists(name) is there


def test_whose_a_module_is():
    assert [each for each in ("torch.nn", "vlmprobe.cli", "os.path", "__future__", "PIL") if is_foreign(each)] == [
        "torch.nn",
        "PIL",
    ]

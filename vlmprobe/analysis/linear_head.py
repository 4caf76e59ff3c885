"""``LinearHead``: a linear map on states, saved as safetensors or loaded from a reward model's checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np

from vlmprobe.errors import CheckpointError, ResultError, near
from vlmprobe.results.choices import StaysReadOnly, read_only
from vlmprobe.results.layouts import require_readable
from vlmprobe.results.replacing import replacing

__all__ = ["LinearHead", "load_head"]

FORMAT = 1  # version of the saved layout
TRL = "summary"  # trl's name for the layer of its value head


@dataclass(frozen=True, eq=False)
class LinearHead(StaysReadOnly):
    """K outputs of a state of width H: ``weight @ state + bias``. The arrays are read-only."""

    weight: np.ndarray  # float64 [K, H]
    bias: np.ndarray  # float64 [K]
    classes: tuple[str, ...] = ()  # [K] names of the outputs of a classifier; empty if they are values
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        weight, bias = np.asarray(self.weight, dtype=np.float64), np.asarray(self.bias, dtype=np.float64)
        if weight.ndim != 2 or not weight.size or bias.shape != weight.shape[:1]:
            raise ResultError(f"a head has weights [K, H] and biases [K], not {weight.shape} and {bias.shape}")
        if self.classes and len(self.classes) != len(weight):
            raise ResultError(f"the head has {len(weight)} outputs and {len(self.classes)} names of classes")
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise ResultError("the head holds NaN or infinite numbers")
        object.__setattr__(self, "weight", read_only(weight))
        object.__setattr__(self, "bias", read_only(bias))
        object.__setattr__(self, "classes", tuple(self.classes))

    @property
    def width(self) -> int:
        """H, the width of the states that the head takes."""
        return self.weight.shape[1]

    def __call__(self, states: Any) -> np.ndarray:
        """Outputs float64 [..., K] of states [..., H]; NaN where a state is (an image, the first token).

        Raises:
            ResultError: for states of another width.
        """
        if states is None:
            raise ResultError("There are no states here: pass keep='hidden'.")
        inputs = np.asarray(states)
        if not inputs.ndim or inputs.shape[-1] != self.width:
            raise ResultError(f"The head takes states of width {self.width}, and these have shape {inputs.shape}.")
        return inputs.astype(np.float64) @ self.weight.T + self.bias

    def probabilities(self, states: Any) -> np.ndarray:
        """Probability float64 [..., K] of each class; :meth:`__call__` gives the logits."""
        self._require_classes()
        logits = self(states)
        shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return shifted / shifted.sum(axis=-1, keepdims=True)

    def predict(self, states: Any) -> np.ndarray:
        """Names [...] of the likeliest classes.

        Raises:
            ResultError: for a head of values, or a state that is NaN.
        """
        self._require_classes()
        logits = self(states)
        if np.isnan(logits).any():
            raise ResultError("Some states are NaN: leave out rows of images and the first token.")
        return np.array(self.classes)[logits.argmax(axis=-1)]

    def save(self, path: str | Path) -> Path:
        """Write to a ``.safetensors`` file."""
        from safetensors.numpy import save_file

        path = Path(path)
        if path.suffix != ".safetensors":
            raise ResultError(f"A head is saved to a file that ends in .safetensors, not {path.name!r}.")
        try:
            text = json.dumps({"format": FORMAT, "classes": self.classes, "meta": self.meta}, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise ResultError(f"meta cannot be written as JSON: {error}") from error
        arrays = {"weight": np.ascontiguousarray(self.weight), "bias": np.ascontiguousarray(self.bias)}
        with replacing(path) as unfinished:
            save_file(arrays, unfinished, metadata={"vlmprobe_head": text})
        return path

    @classmethod
    def load(cls, path: str | Path) -> LinearHead:
        """Load what :meth:`save` wrote.

        Raises:
            ResultError: for a file that is missing, or was not written by :meth:`save`, or by a later vlmprobe.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise ResultError(f"No file at {path}.")

        def damaged(error: Exception) -> ResultError:
            return ResultError(
                f"{path} is not a head that vlmprobe saved ({type(error).__name__}: {error}). For a model's checkpoint "
                "use load_head."
            )

        damages = (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError)
        try:
            with safe_open(path, framework="np") as file:
                document = json.loads((file.metadata() or {})["vlmprobe_head"])
            layout = document["format"]  # vlmprobe 0.1 wrote it too
        except damages as error:
            raise damaged(error) from error
        require_readable(path, layout, FORMAT)
        try:
            with safe_open(path, framework="np") as file:
                weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
            return cls(weight, bias, tuple(map(str, document["classes"])), dict(document["meta"]))
        except damages as error:
            raise damaged(error) from error

    def __repr__(self) -> str:
        outputs = f"classes {', '.join(self.classes[:6])}" if self.classes else f"{len(self.weight)} value(s)"
        return f"LinearHead(states of width {self.width}: {outputs})"

    def _require_classes(self) -> None:
        if not self.classes:
            raise ResultError("This head gives values, not classes: call it, head(states).")


def load_head(checkpoint: str | Path, name: str = "v_head") -> LinearHead:
    """The linear head of a reward or value model, loaded from its checkpoint; nothing else of it is read.

    Args:
        checkpoint: a folder, or a weight file: safetensors, else tensors in ``.bin`` (no code in them is run).
        name: of the module, such as ``"v_head"`` (InternLM2 reward models, trl) or ``"score"`` (sequence classifiers of
            transformers).

    Raises:
        CheckpointError: if there is no such head, or several, or it is more than one linear layer.
    """
    path = Path(checkpoint)
    groups = _weight_files(path)
    if not groups:
        raise CheckpointError(f"{path} is not a weight file, nor a folder with one.")
    found: dict[str, np.ndarray] = {}
    heads: set[str] = set()
    for files in groups:
        for key, read in (pair for file in files for pair in _tensors(file)):
            module, _, rest = key.rpartition(".")
            heads |= {module.rpartition(".")[2]} if rest == "weight" else set()
            if name in key.split(".")[:-1]:
                found[key] = read()
        if found:
            break
    where = {key.rpartition(".")[0] for key in found}
    if not where:
        raise CheckpointError(f"{path} has no module {name!r}.{near(name, heads)}")
    if len(where) > 1 or not set(found) <= {f"{each}.{rest}" for each in where for rest in ("weight", "bias")}:
        raise CheckpointError(f"{name!r} of {path} is not one linear layer; it has {', '.join(sorted(found))}.")
    module = where.pop()
    if module.split(".")[-1] not in (name, TRL) or f"{module}.weight" not in found:
        raise CheckpointError(f"{name!r} of {path} is not one linear layer; it has {', '.join(sorted(found))}.")
    weight = np.atleast_2d(found[f"{module}.weight"])
    bias = found.get(f"{module}.bias", np.zeros(len(weight)))
    try:
        return LinearHead(weight, np.atleast_1d(bias), (), {"kind": "value", "module": module})
    except ResultError as error:
        raise CheckpointError(f"{name!r} of {path}: {error}") from error


def _weight_files(path: Path) -> list[list[Path]]:
    """The weight files, those first that should hold everything. Other files of trainers are not read."""
    if not path.is_dir():
        return [[path]] if path.is_file() else []
    patterns = (("*.safetensors",), ("pytorch_model*.bin", "*head*.bin"))
    groups = ([each for pattern in group for each in sorted(path.glob(pattern))] for group in patterns)
    return [files for files in groups if files]


def _tensors(file: Path) -> Iterator[tuple[str, Any]]:
    """The name of each tensor of a file, and a function that reads it as float64."""
    from safetensors import SafetensorError, safe_open

    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118 - the file is not a mapping
                    yield key, lambda key=key: opened.get_tensor(key).double().numpy()
            return
        import torch

        for key, value in torch.load(file, map_location="cpu", weights_only=True, mmap=True).items():
            yield key, lambda value=value: value.double().numpy()
    except UnpicklingError as error:  # torch's own message suggests running the file's code
        raise CheckpointError(f"{file} is not a weight file: it holds more than tensors, which is not run.") from error
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is not a weight file ({type(error).__name__}: {error}).") from error

"""What wrote the files of this folder, with vlmprobe 0.1.0 (commit bfc0485) installed in an environment of its own.

They are what users of 0.1 have on their disks, so they are never written again with later code. Beside them
``expected.json`` holds what 0.1 had in memory when it saved them: :func:`described`, which the tests apply to what is
loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
MANY = 24  # numbers of an array that are written out; of a larger one, a digest


def described(value: Any) -> Any:
    """What a result, a table or a head holds, as JSON; arrays with their type, NaN as itself."""
    if isinstance(value, np.ndarray):
        whole = np.ascontiguousarray(value)
        held = whole.tolist() if whole.size <= MANY else hashlib.sha256(whole.tobytes()).hexdigest()
        return {"dtype": str(whole.dtype), "shape": list(whole.shape), "values": held}
    if isinstance(value, Image.Image):
        return described(np.asarray(value))
    if is_dataclass(value):
        return {
            "type": type(value).__name__,
            **{each.name: described(getattr(value, each.name)) for each in fields(value)},
        }
    if isinstance(value, dict):
        return {str(key): described(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [described(each) for each in value]
    return value


def _picture() -> Image.Image:
    patches = np.random.default_rng(1).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((24, 16), Image.Resampling.NEAREST)


def _chat(request: Any) -> Any:
    """A server of the OpenAI kind that tells two tokens, without ids, and of one of them no more than a bound."""
    from wire_server import json_reply

    words = [(" red", -0.2), (" blue", -2.0), (" green", -4.0)][: request.json["top_logprobs"]]
    listed = [{"token": text, "logprob": logprob} for text, logprob in words]
    content = [
        {"token": " red", "logprob": -0.2, "top_logprobs": listed},
        {"token": "!", "logprob": -9999.0, "top_logprobs": listed},
    ][: request.json["max_tokens"]]
    answer = {"message": {"content": " red!"}, "finish_reason": "length", "logprobs": {"content": content}}
    return json_reply({"choices": [answer]})


def main() -> None:
    """Write every file; ``tests`` of 0.1 must be on the path of Python, for its server."""
    from vlmprobe.quick import memory
    from vlmprobe.storage import OnDisk
    from wire_server import WireServer

    import vlmprobe
    from vlmprobe.analysis import export
    from vlmprobe.analysis.heads import LinearHead

    assert vlmprobe.__version__ == "0.1.0", vlmprobe.__version__
    probe, asked, short = vlmprobe.load("demo", device="cpu"), "Which digit is on the left?", {"max_new_tokens": 3}
    sampled = {**short, "do_sample": True, "temperature": 0.8, "seed": 1}
    answer = probe.generate("Describe the picture.", _picture(), **sampled, keep="hidden")
    lean = probe.generate(asked, _picture(), **short, prompt=False, keep="logits", alternatives=4)
    with WireServer({"/v1/models": {"data": [{"id": "m"}]}, "/v1/chat/completions": _chat}) as server:
        served = vlmprobe.connect(server.url).generate("What colour?", max_new_tokens=2)
    saved = {
        "result": answer,
        "result.safetensors": answer,
        "lean.safetensors": lean,
        "served.safetensors": served,
        "scores": probe.score(asked, ["nine", "seven", "a red nine"], _picture()),
        "groups.safetensors": probe.score(asked, {"odd": ["nine", "seven"], "even": ["eight", "two"]}, _picture()),
        "yes_no.safetensors": probe.yes_no("Are the two digits the same?", _picture(), yes=["yes"], no=["no"]),
    }
    expected = {name: described(held) for name, held in saved.items()}
    for name, held in saved.items():
        held.save(HERE / name)

    random = np.random.default_rng(2)
    head = LinearHead(random.normal(size=(3, 8)), random.normal(size=3), ("a", "b", "ü"), {"layer": "last"})
    head.save(HERE / "head.safetensors")
    expected["head.safetensors"] = described(head)

    export.write_parquet([answer, lean], HERE / "teacher.parquet", top=4)  # which are saved as results too

    for dtype in ("float32", "float16", "bfloat16"):
        rows = probe.generate(asked, _picture(), **short, prompt=False, keep=OnDisk(HERE / "rows", dtype))
        name = Path(rows.meta["logits_file"]).relative_to(HERE)
        expected[str(name)] = {"output": described(np.array(rows.output.logits))}

    os.environ["XDG_CACHE_HOME"] = str(HERE / "cache")
    memory.remember("some/model", "0123abcd")
    (HERE / "expected.json").write_text(json.dumps(expected, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

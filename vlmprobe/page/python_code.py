"""Python that asks what the page asked, to be copied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vlmprobe.page.asked import Asked, Turn
from vlmprobe.page.panels import PANELS

__all__ = ["python_of"]


def python_of(asked: Asked, opening: str, names: Mapping[str, str]) -> str:
    """Python that asks the same.

    Args:
        asked: what to ask.
        opening: the expression that opens the model, such as ``vlmprobe.load("demo")``.
        names: of the image files, by their keys.

    Raises:
        MessageError: for an unknown panel.
    """
    files = [names.get(key) or f"image-{place + 1}.png" for place, key in enumerate(asked.image_keys)]
    lines = ["import vlmprobe", "", f"probe = {opening}"]
    if len(asked.turns) == 1:
        lines.append(f"question = {asked.turns[0].text!r}")
        about = "question" + ("" if not files else f", {files[0]!r}" if len(files) == 1 else f", {files!r}")
    else:
        rest = iter(files)
        lines += ["question = [", *(f"    {_chat(turn, rest)}," for turn in asked.turns), "]"]
        about = "question"
    options = "".join(f", {name}={value!r}" for name, value in asked.options.items())
    if asked.panel:
        lines += PANELS[asked.panel].python(asked, about, options)
    elif asked.kind == "candidates":
        named = about.replace(", ", ", image=", 1)
        lines += [f"scores = probe.score({named}, candidates={list(asked.texts)!r})", "print(scores)"]
    elif asked.kind:
        typed = "".join(f", {name}={value!r}" for name, value in asked.typed.items())
        lines += [f"answer = probe.ask({about}{typed})", "print(answer)"]
    else:
        lines.append(f"result = probe.generate({about}{options})")
        if asked.begin:
            again = about.replace("question", "question=question", 1).replace(", ", ", image=", 1)
            lines.append("# the answer made to begin with these tokens, and on from there:")
            lines.append(f"result = probe.branch(result, 0, {list(asked.begin)}, {again}{options})")
        lines += ["print(result)", 'result.to_html("answer.html")']
    return "\n".join(lines) + "\n"


def _chat(turn: Turn, files: Iterator[str]) -> str:
    parts = [{"type": "image", "path": next(files)} for _ in turn.images]
    return repr({"role": turn.role, "content": [*parts, {"type": "text", "text": turn.text}]})

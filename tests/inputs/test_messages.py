"""Conversations: every form that people pass, and what the wrong ones say."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from vlmprobe import Request
from vlmprobe.errors import ImageError, MessageError
from vlmprobe.inputs.images import ImageNotFoundError
from vlmprobe.inputs.messages import Conversation, ImagePart, TextPart

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "black": (0, 0, 0)}
IMAGES = {name: Image.new("RGB", (3, 2), colour) for name, colour in COLOURS.items()}
RED, GREEN, BLUE = IMAGES["red"], IMAGES["green"], IMAGES["blue"]


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def text64(image: Image.Image) -> str:
    return base64.b64encode(png(image)).decode()


URL = f"data:image/png;base64,{text64(RED)}"


def said(conversation: Conversation) -> list:
    """The conversation in short: (role, texts, and names of images in brackets)."""
    names = {colour: f"[{name}]" for name, colour in COLOURS.items()}

    def show(part: TextPart | ImagePart) -> str:
        return part.text if isinstance(part, TextPart) else names[part.image.getpixel((0, 0))]

    return [(message.role, *map(show, message.parts)) for message in conversation.messages]


def user(*parts: object) -> list:
    return [{"role": "user", "content": list(parts)}]


def text(words: str) -> dict:
    return {"type": "text", "text": words}


# Forms that are read


def test_a_question():
    assert said(Conversation.build("Why?")) == [("user", "Why?")]
    assert Conversation.build("Why?").images == ()


@pytest.mark.parametrize("pack", [list, tuple, iter, lambda images: (image for image in images)])
def test_images_come_before_the_text_in_their_order(pack):
    assert said(Conversation.build("Why?", pack([RED, GREEN, BLUE]))) == [
        ("user", "[red]", "[green]", "[blue]", "Why?")
    ]


def test_one_image_of_each_kind(tmp_path):
    path = tmp_path / "red.png"
    RED.save(path)
    array = np.asarray(RED.resize((8, 6)))
    tensor = torch.from_numpy(array.transpose(2, 0, 1).copy())
    for image in (RED, path, str(path), png(RED), f"data:image/png;base64,{text64(RED)}", array, tensor):
        assert said(Conversation.build("Why?", image)) == [("user", "[red]", "Why?")]
    assert said(Conversation.build("Why?", [array, GREEN, path])) == [("user", "[red]", "[green]", "[red]", "Why?")]


@pytest.mark.parametrize("none", [None, [], ()])
def test_no_image_is_text_only(none):
    assert said(Conversation.build("Why?", none)) == [("user", "Why?")]


def test_transformers_parts(tmp_path):
    path = tmp_path / "red.png"
    RED.save(path)
    red64 = text64(RED)
    for part in (
        {"image": RED},
        {"image": str(path)},
        {"path": path},
        {"url": f"data:image/png;base64,{red64}"},
        {"base64": red64},
        {"base64": red64.encode()},
        {"base64": f"data:image/png;base64,{red64}"},
        {"image": RED, "url": None},
    ):
        conversation = Conversation.build(user(text("a"), {"type": "image", **part}, text("b")))
        assert said(conversation) == [("user", "a", "[red]", "b")]


def test_openai_parts():
    url = f"data:image/png;base64,{text64(RED)}"
    for link in (url, {"url": url}, {"url": url, "detail": "high"}):
        assert said(Conversation.build(user({"type": "image_url", "image_url": link}, text("a")))) == [
            ("user", "[red]", "a")
        ]


def test_short_forms_of_content():
    assert said(Conversation.build([{"role": "user", "content": "a"}])) == [("user", "a")]
    assert said(Conversation.build([{"role": "user", "content": text("a")}])) == [("user", "a")]
    assert said(Conversation.build(({"role": "user", "content": ("a", text("b"))},))) == [("user", "a", "b")]


def test_several_turns_keep_their_images_in_place():
    chat = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "image", "image": RED}, text("a")]},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": [text("c"), {"type": "image", "image": GREEN}]},
    ]
    conversation = Conversation.build(chat)
    assert said(conversation) == [("system", "s"), ("user", "[red]", "a"), ("assistant", "b"), ("user", "c", "[green]")]
    assert [image.getpixel((0, 0)) for image in conversation.images] == [COLOURS["red"], COLOURS["green"]]
    assert [message.text for message in conversation.messages] == ["s", "a", "b", "c"]
    assert not conversation.continues


def test_image_goes_to_the_last_user_message():
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert said(Conversation.build(chat, RED))[2] == ("user", "[red]", "c")
    chat.append({"role": "assistant", "content": "It is"})
    continued = Conversation.build(chat, [RED, GREEN])
    assert said(continued)[2:] == [("user", "[red]", "[green]", "c"), ("assistant", "It is")]
    assert continued.continues


def test_bare_image_parts_are_filled_in_order():
    slot = {"type": "image"}
    chat = [
        *user(slot, text("a"), {"type": "image", "image": BLUE}),
        {"role": "assistant", "content": "b"},
        *user(text("c"), slot, text("d")),
    ]
    assert said(Conversation.build(chat, [RED, GREEN])) == [
        ("user", "[red]", "a", "[blue]"),
        ("assistant", "b"),
        ("user", "c", "[green]", "d"),
    ]
    sized = Conversation.build(user({"type": "image", "max_pixels": 5}), RED)
    assert dict(sized.image_parts[0].options) == {"max_pixels": 5}


@pytest.mark.parametrize("images", [None, [], RED, [RED, GREEN, BLUE]])
def test_bare_image_parts_need_as_many_images(images):
    chat = [*user(text("a"), {"type": "image"}), *user({"type": "image", "image": None}, text("b"))]
    with pytest.raises(MessageError, match=r"Message 0, part 1; Message 1, part 0: no image in 2 image parts, and"):
        Conversation.build(chat, images)


def test_options_are_kept():
    part = {"type": "image", "image": RED, "min_pixels": 4, "resized_height": 28}
    conversation = Conversation.build(user(part, text("a")))
    assert dict(conversation.image_parts[0].options) == {"min_pixels": 4, "resized_height": 28}
    content = conversation.to_chat()[0]["content"]
    assert content[0]["min_pixels"] == 4
    assert content[1] == text("a")
    assert part["image"] is RED  # the user's own message is left alone
    assert part.keys() == {"type", "image", "min_pixels", "resized_height"}


def test_to_chat_is_read_back_the_same():
    chat = [{"role": "system", "content": "s"}, *user({"type": "image", "image": RED, "max_pixels": 9}, text("a"))]
    conversation = Conversation.build(chat)
    assert Conversation.build(conversation.to_chat()) == conversation


def test_a_conversation_is_read_again():
    conversation = Conversation.build("Why?", RED)
    assert Conversation.build(conversation) == conversation
    assert said(Conversation.build(conversation, GREEN)) == [("user", "[green]", "[red]", "Why?")]
    assert said(conversation) == [("user", "[red]", "Why?")]


def test_images_are_loaded_once_upright_in_rgb():
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new("L", (3, 2), 0).save(file, "PNG", exif=exif)
    image = Conversation.build("Why?", file.getvalue()).images[0]
    assert (image.mode, image.size) == ("RGB", (2, 3))


def test_keys_that_hold_nothing_are_no_keys():
    """Tables fill absent keys with None, and so do the messages of OpenAI's client; vLLM's replies have empty lists."""
    blank = {"type": "image", "image": RED, "text": None, "max_pixels": None}
    answer = {"role": "assistant", "content": "c", "tool_calls": [], "annotations": [], "refusal": None, "name": ""}
    conversation = Conversation.build([*user(blank, {**text("b"), "image": None}), answer, *user(text("d"))])
    assert said(conversation) == [("user", "[red]", "b"), ("assistant", "c"), ("user", "d")]
    assert conversation.image_parts[0].options == {}


def test_an_open_file_is_an_image_wherever_an_image_can_stand(tmp_path):
    path = tmp_path / "red.png"
    path.write_bytes(png(RED))
    for opened in (lambda: path.open("rb"), lambda: io.BytesIO(png(RED))):
        file = opened()
        for _ in range(2):  # it is rewound
            assert said(Conversation.build("Why?", file)) == [("user", "[red]", "Why?")]
        assert said(Conversation.build("Why?", [file, GREEN, file])) == [("user", "[red]", "[green]", "[red]", "Why?")]
        assert said(Conversation.build("Why?", (each for each in (opened(), GREEN)))) == [
            ("user", "[red]", "[green]", "Why?")
        ]
        for key in ("image", "path", "url"):
            assert said(Conversation.build(user({"type": "image", key: file}, text("a")))) == [("user", "[red]", "a")]
        for link in (file, {"url": file}):
            assert said(Conversation.build(user({"type": "image_url", "image_url": link}))) == [("user", "[red]")]
        assert said(Conversation.build(user(text("a"), {"type": "image"}), file)) == [("user", "a", "[red]")]
        assert Conversation.build("Why?", file).image_parts[0].encoded == png(RED)


# Wrong ones


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "prompt is empty: pass a question"),
        (" \n", "prompt is empty"),
        (None, "not NoneType. Example: [{"),
        (3, "not int"),
        (b"Why?", "not bytes"),
        ({"role": "user", "content": "a"}, "a list of chat messages, not dict"),
        ([], "has no message: add one with role 'user'"),
        (["a", "b"], "Message 0 is a string, not a mapping with 'role' and 'content': pass one question"),
        ([3], "Message 0 is int, not a mapping"),
        ([{"role": "user", "content": "a"}, {"content": "b"}], "Message 1 has no 'role', only 'content'"),
        ([{"role": "user", "contents": "a"}], "Message 0 has no 'content', only 'role', 'contents'"),
        ([{}], "Message 0 has no 'role', only nothing"),
        (
            [{"role": "users", "content": "a"}],
            "role 'users'; roles are system, user, assistant, tool. Did you mean user",
        ),
        ([{"role": "tool", "content": "a"}], "Message 0 has role 'tool'"),
        ([{"role": None, "content": "a"}], "Message 0 has role None"),
        ([{"role": ["user"], "content": "a"}], "Message 0 has role ['user']"),
        ([{"role": "user", "content": None}], "Message 0 has content of type NoneType; use a string or a list"),
        ([{"role": "user", "content": b"a"}], "content of type bytes"),
        ([{"role": "user", "content": []}], "Message 0 has an empty content list"),
        ([{"role": "user", "content": " "}], "The last message (role 'user') is empty: add a question"),
        (user(text("")), "The last message (role 'user') is empty"),
        ([*user(text("a")), {"role": "assistant", "content": ""}], "(role 'assistant') is empty: leave it out"),
        ([{"role": "system", "content": "a"}], "ends with a system message"),
        ([*user(text("a")), {"role": "system", "content": "b"}, *user(text("c"))], "Message 1 has role 'system'"),
        (user(text("a"), RED), "Message 0, part 1 is Image, not a mapping with a 'type': an image goes into"),
        (user(text("a"), {"text": "b"}), "Message 0, part 1 has no 'type': add one of text, image, image_url"),
        (user({"type": "text"}), "Message 0, part 0 has type 'text' and no string under 'text'"),
        (user({"type": "text", "text": 3}), "no string under 'text'"),
        (user({"type": "txt", "text": "a"}), "type 'txt'; types are text, image, image_url. Did you mean text"),
        (user({"type": "imageurl", "image_url": "a"}), "Did you mean image_url, image?"),
        (user({"type": "video", "video": "a.mp4"}), "is video: vlmprobe reads text and images; pass frames"),
        (user({"type": ["text"]}), "type ['text']"),
        (user({"type": "image", "image": RED, "path": "a"}), "Message 0, part 0 has type 'image' and several of image"),
        (user({"type": "image", "img": RED}), "Message 0, part 0: no image in 1 image parts"),
        (user({"type": "image", "base64": RED}), "Message 0, part 0 has Image under 'base64'"),
        (user({"type": "image_url"}), "no string under 'image_url' or its 'url'"),
        (user({"type": "image_url", "image_url": {"uri": "a"}}), "no string under 'image_url' or its 'url'"),
        (user({"type": "image_url", "image_url": RED}), "no string under 'image_url' or its 'url'"),
        # What would be dropped.
        ([{"role": "user", "content": "a", "name": "Ann"}], "Message 0 has 'name', and only 'role' and 'content' are"),
        (
            [{**user(text("a"))[0], "tool_calls": [{"id": "1"}]}],
            "Message 0 has 'tool_calls', and only",
        ),
        (
            [*user(text("a")), {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}],
            "The conversation ends with tool_calls, after which no text can be continued: add the answer of the tool",
        ),
        (
            [*user(text("a")), {"role": "assistant", "content": None, "tool_calls": ["get_weather"]}, *user(text("b"))],
            "Message 1 has tool_calls that are not a list of mappings such as",
        ),
        (
            [*user(text("a")), {"role": "assistant", "content": "b", "tool_calls": [{"id": {1}}]}, *user(text("b"))],
            "Message 1 has tool_calls that cannot be written",
        ),
        (
            [{"role": "user", "content": "a", "tool_call_id": "7", "cache_control": {"type": "ephemeral"}}],
            "'tool_call_id', 'cache_control'",
        ),
        (
            [{"role": "system", "content": "b", "reasoning_content": "c"}, *user(text("a"))],
            "Message 0 has 'reasoning",
        ),
        (
            [*user(text("a")), {"role": "assistant", "content": "b", "reasoning_content": ["c"]}, *user(text("d"))],
            "Message 1 has list under 'reasoning_content'",
        ),
        (
            [*user(text("a")), {"role": "assistant", "content": "b", "reasoning_content": "\ud800"}, *user(text("d"))],
            "Message 1 has reasoning_content that cannot be written",
        ),
        (user({**text("a"), "image": RED}), "Message 0, part 0 has 'image', and only 'type' and 'text' are read"),
        (
            user(text("a"), {**text("b"), "cache_control": {"type": "ephemeral"}}),
            "Message 0, part 1 has 'cache_control'",
        ),
        (user({"type": "image_url", "image_url": URL, "uuid": "7"}), "Message 0, part 0 has 'uuid', and only 'type'"),
        (user({"type": "image_url", "image_url": {"url": URL, "size": 3}}), "Message 0, part 0, image_url has 'size'"),
        (
            user({"type": "image_url", "image_url": {"url": URL, "detail": "low"}}),
            "has detail 'low': images keep their",
        ),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_wrong_prompts(prompt, message):
    with pytest.raises(MessageError, match=re.escape(message)):
        Conversation.build(prompt)


def test_an_image_without_a_user_message():
    with pytest.raises(MessageError, match="needs a user message to go into"):
        Conversation.build([{"role": "assistant", "content": "a"}], RED)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({RED.tobytes()}, "image= is a set: pass one image, or a list, which has an order"),
        ({"image": RED}, "image= is a dict"),
        (iter([]), "an exhausted iterator: pass a list"),
    ],
)
def test_wrong_collections_of_images(images, message):
    with pytest.raises(MessageError, match=message):
        Conversation.build("Why?", images)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (3, r"^image=: .* type int"),
        ([RED, None], r"^image=, number 2 of 2: .* None"),
        ([[RED], [GREEN]], r"^image=, number 1 of 2: .* one image at a time"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"^image=: .* list\(array\)"),
        (io.BytesIO(), r"^image=: The open file \(BytesIO\): it is empty"),
        ([RED, io.StringIO("a")], r"^image=, number 2 of 2: The open file \(StringIO\) does not give bytes"),
        ("file:///a.png", r"without file://"),
    ],
)
def test_the_bad_image_is_named(images, message):
    with pytest.raises(ImageError, match=message):
        Conversation.build("Why?", images)


def test_the_place_of_a_bad_image_is_named(tmp_path):
    chat = [*user(text("a")), *user(text("b"), {"type": "image", "path": tmp_path / "no.png"})]
    with pytest.raises(ImageNotFoundError, match=r"^Message 1, part 1: There is no file .*no\.png"):
        Conversation.build(chat)
    with pytest.raises(ImageError, match=r"^Message 0, part 0: .*not valid base64"):
        Conversation.build(user({"type": "image", "base64": "@@@"}, text("a")))
    with pytest.raises(ImageError, match=r"^Message 0, part 0: .*only http"):
        Conversation.build(user({"type": "image_url", "image_url": "ftp://host/a.png"}, text("a")))


def test_a_question_that_is_an_image_says_which_comes_first(tmp_path):
    file = tmp_path / "red.png"
    RED.save(file)
    pixels = np.zeros((4, 4, 3), np.uint8)
    for question in (RED, file, str(file), file.read_bytes(), pixels, [RED], {"path": str(file)}):
        for image in ("What is this?", None, RED):
            with pytest.raises(MessageError, match=r"^The question is an image .*question comes first"):
                Conversation.build(question, image)
    with pytest.raises(MessageError, match=r"'missing\.png'.*question comes first"):
        Conversation.build("missing.png", "What is this?")
    assert Conversation.build("missing.png", RED).question == "missing.png"  # it may be asked about
    assert Conversation.build("missing.png").question == "missing.png"
    assert Conversation.build("missing.png", str(file)).question == "missing.png"
    assert Conversation.build(str(tmp_path)).question == str(tmp_path)


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ({"question": "Hi", "image": None}, r"not dict\. Unpack a row, generate\(\*\*row\)"),
        ({"role": "user", "content": "Hi"}, "Put the message into a list"),
        (Request("Hi"), r"not Request\. Pass its question and its image, or generate_many\(\[request\]\)"),
        (["Hi", RED], r"Message 0 is a string.*as a tuple, \(question, image\)"),
        (7, "not int. Example"),
    ],
)
def test_what_is_no_question_says_how_to_ask_it(question, says):
    with pytest.raises(MessageError, match=says):
        Conversation.build(question)

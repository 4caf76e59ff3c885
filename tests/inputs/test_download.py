"""Images by URL, from a server on this machine that behaves as badly as servers do."""

import concurrent.futures
import contextlib
import http.server
import io
import socket
import threading
import time
import urllib.request
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image

from vlmprobe.errors import ImageError
from vlmprobe.inputs.download import shown
from vlmprobe.inputs.images import Limits, load_image

PICTURE = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
STOP = threading.Event()  # ends the handlers that stall


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, "PNG")
    return file.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    served: list[tuple[str, str]]  # path and user agent of each request
    sent = 0  # bytes of the endless answer

    def log_message(self, *_):
        pass

    def answer(self, body: bytes, code: int = 200, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.served.append((self.path, self.headers["User-Agent"]))
        name, _, rest = self.path[1:].partition("?")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the reader has had enough
            getattr(self, name.partition("/")[0].replace("-", "_").replace("%20", "_"))(rest)

    def picture(self, _):
        self.answer(png())

    def my_picture(self, _):
        self.answer(png())

    def no_length(self, _):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(png())

    def page(self, _):
        self.answer(b"<!doctype html><html>not found, politely</html>")

    def missing(self, _):
        self.answer(b"no", 404)

    def private(self, _):
        self.answer(b"no", 403)

    def empty(self, _):
        self.answer(b"")

    def to(self, target):
        self.answer(b"", 302, Location=target)

    def for_good(self, _):
        self.answer(b"", 308, Location="../picture")

    def nowhere(self, _):
        self.answer(b"", 302)

    def round(self, _):
        self.answer(b"", 302, Location="/round")

    def silent(self, _):
        STOP.wait(20)

    def slow_headers(self, _):
        self.wfile.write(b"HTTP/1.0 200 OK\r\nX-Slow: ")
        while not STOP.wait(0.05):
            self.wfile.write(b"a")

    def drip(self, _):
        self.send_response(200)
        self.end_headers()
        for byte in png() * 1000:
            self.wfile.write(bytes([byte]))
            if STOP.wait(0.05):
                break

    def endless(self, _):
        self.send_response(200)
        self.end_headers()
        while not STOP.is_set():
            self.wfile.write(bytes(65536))
            type(self).sent += 65536

    def announced(self, _):
        self.answer(png(), Content_Length=str(10**12))

    def understated(self, _):
        self.answer(png() + bytes(100_000), Content_Length="40")

    def broken_off(self, _):
        self.answer(png()[:50], Content_Length="5000")

    def nonsense(self, _):
        self.wfile.write(b"\0\1\2 what is HTTP\r\n\r\n")


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    STOP.clear()
    Handler.served, Handler.sent = [], 0
    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    STOP.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    "path", ["picture", "picture/", "no-length", "my picture", "for-good/x", "to?/picture", "to?/to?/picture", " "]
)
def test_good_urls(site, path):
    url = f"{site}/picture\n" if path == " " else f"{site}/{path}"
    assert np.asarray(load_image(url)).tolist() == PICTURE.tolist()
    assert Handler.served[0][1].startswith("vlmprobe/")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing", "answers HTTP 404 Not Found: check the address"),
        ("private", "HTTP 403.*login.*download the image yourself"),
        ("page", "web page; use the address of the image itself"),
        ("empty", "0 bytes"),
        ("nowhere", "HTTP 302"),
        ("round", "redirects more than 5 times"),
        ("to?file:///etc/passwd", "redirects to file:///etc/passwd, which is not http"),
        ("to?ftp://host/a.png", "redirects to ftp://host/a.png"),
        ("to?data:text/plain,hello", "which is not http"),
        ("broken-off", "broke off after 50 of 5,000 bytes"),
        ("nonsense", "cannot be downloaded"),
    ],
)
def test_bad_answers(site, path, message):
    with pytest.raises(ImageError, match=message) as caught:
        load_image(f"{site}/{path}")
    assert site in str(caught.value)


def test_redirects_are_counted(site):
    assert load_image(f"{site}/to?/picture", Limits(url_redirects=1)).size == (4, 2)
    with pytest.raises(ImageError, match="more than 0 times"):
        load_image(f"{site}/to?/picture", Limits(url_redirects=0))
    with pytest.raises(ImageError, match="more than 5"):
        load_image(f"{site}/round")
    assert [path for path, _ in Handler.served].count("/round") == 6


@pytest.mark.parametrize("path", ["silent", "slow-headers", "drip"])
def test_the_deadline_is_for_the_whole_download(site, path):
    def workers() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "vlmprobe-fetch"]

    start = time.monotonic()
    with pytest.raises(ImageError, match=r"did not arrive within 0\.4 s: try again, or download"):
        load_image(f"{site}/{path}", Limits(url_seconds=0.4))
    assert 0.35 < time.monotonic() - start < 2
    for thread in workers():
        thread.join(5)
    assert not workers()  # cut off, though the server still talks


def test_a_server_that_accepts_and_never_answers(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as server:
        start = time.monotonic()
        with pytest.raises(ImageError, match=r"within 0\.3 s"):
            load_image(f"http://127.0.0.1:{server.getsockname()[1]}/a.png", Limits(url_seconds=0.3))
        assert time.monotonic() - start < 2


@pytest.mark.parametrize("late", [TimeoutError("timed out"), URLError(TimeoutError("timed out"))])
def test_whichever_of_the_two_limits_comes_first_is_told_alike(late, monkeypatch):
    def open_(*_, **__):
        raise late

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", open_)
    with pytest.raises(ImageError, match=r"did not arrive within 7 s"):
        load_image("http://127.0.0.1/a.png", Limits(url_seconds=7))


def test_reading_stops_at_the_limit(site):
    with pytest.raises(ImageError, match=r"larger than 200,000 bytes: use a smaller version"):
        load_image(f"{site}/endless", Limits(url_bytes=200_000))
    time.sleep(0.1)
    assert Handler.sent < 20_000_000  # the limit and what the sockets hold between them
    with pytest.raises(ImageError, match="larger than"):
        load_image(f"{site}/announced")


def test_a_length_that_is_too_small_is_not_trusted_to_be_the_whole(site):
    size = len(png())
    assert load_image(f"{site}/picture", Limits(url_bytes=size)).size == (4, 2)
    with pytest.raises(ImageError, match="larger than"):
        load_image(f"{site}/no-length", Limits(url_bytes=size - 1))
    with pytest.raises(ImageError, match=r"damaged.*again"):
        load_image(f"{site}/understated")


@pytest.mark.parametrize(
    "url", ["http://", "http://[::1", "http://127.0.0.1:99999/a.png", "http://127.0.0.1:1/a.png", "http://user:pw@/x"]
)
def test_addresses_that_lead_nowhere(url, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(ImageError, match="cannot be downloaded"):
        load_image(url, Limits(url_seconds=5))


def test_secrets_in_a_url_stay_out_of_messages(site):
    with pytest.raises(ImageError) as caught:
        load_image(f"{site}/missing?signature=hunter2")
    assert "hunter2" not in str(caught.value)
    assert shown("https://me:secret@host:8443/a.png?key=1#x") == "https://host:8443/a.png"
    assert "secret" not in shown("http://me:secret@host:port/a.png")
    assert len(shown("http://host/" + "a" * 999)) == 120


def test_ctrl_c_ends_the_wait(site, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(concurrent.futures.Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_image(f"{site}/drip")
    for thread in threading.enumerate():
        if thread.name == "vlmprobe-fetch":
            thread.join(5)
            assert not thread.is_alive()


def test_many_at_once(site):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        images = list(pool.map(load_image, [f"{site}/picture"] * 16))
    assert all(np.asarray(image).tolist() == PICTURE.tolist() for image in images)

"""The local server: who may talk to it, what it answers, and the editor in a real browser."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import browser as browsers
import pytest
from PIL import Image
from toys import toy, zebras

import cm3kit
from cm3kit.provenance.recipes import read_recipe
from cm3kit.provenance.reproducing import ModelCache
from cm3kit_cli.main import run
from cm3kit_tokenizers import Cm3kitError, Page
from cm3kit_tokenizers.html.point import byte_offset

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("httpx2", reason="Starlette's test client needs httpx2")

from starlette.testclient import TestClient

from cm3kit.serve.app import build
from cm3kit.serve.run import hosts
from cm3kit.serve.schemas import CompletionBody, ImageBody, InfillBody

TOKEN = "a-token-of-the-tests-0123456789"
HOST = "127.0.0.1:8000"
PAGE = "<!DOCTYPE html>\r\n<title>Früchte</title><p id=a>An <b>apple</b> &amp; a 🍐 pear.</p><p>A <mask> one.</p>"
FAST = {"max_tokens": 8}


@pytest.fixture(scope="module")
def model() -> Path:
    return toy()


@pytest.fixture(scope="module")
def app(model: Path) -> Any:
    return build(cm3kit.load(model, device="cpu"), TOKEN, hosts(8000))


@pytest.fixture
def client(app: Any) -> TestClient:
    """A client that knows the token."""
    return TestClient(app, f"http://{HOST}", headers={"Authorization": f"Bearer {TOKEN}"})


@pytest.fixture
def stranger(app: Any) -> TestClient:
    return TestClient(app, f"http://{HOST}", follow_redirects=False)


ADDRESSES = (
    ("GET", "/"), ("GET", "/app.js"), ("GET", "/app.css"), ("GET", "/model"), ("POST", "/look"), ("POST", "/infill"),
    ("GET", "/v1/models"), ("POST", "/v1/completions"), ("POST", "/v1/images/generations"), ("GET", "/none"),
)  # fmt: skip


@pytest.mark.parametrize(
    "headers",
    [
        {}, {"Authorization": "Bearer "}, {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Cookie": f"cm3kit={TOKEN}"}, {"Cookie": ";;="}, {"Authorization": "Bearer ä".encode()},
    ],
)  # fmt: skip
def test_nothing_is_answered_without_the_token(stranger: TestClient, headers: dict[str, Any]) -> None:
    for method, address in ADDRESSES:
        answer = stranger.request(method, address, headers=headers)
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "forbidden"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert stranger.get(f"/?token={TOKEN}x").status_code == 401
    assert stranger.get(f"/model?token={TOKEN}").status_code == 401


def test_the_token_in_the_address_becomes_a_cookie(stranger: TestClient) -> None:
    first = stranger.get(f"/?token={TOKEN}&x=1")
    assert (first.status_code, first.headers["Location"]) == (303, "/?x=1")
    assert {"httponly", "samesite=strict"} <= {
        part.strip().lower() for part in first.headers["Set-Cookie"].split(";")
    }
    assert stranger.get("/").status_code == 200 and TOKEN not in stranger.get("/").text
    assert stranger.get(f"/?token={TOKEN}").status_code == 303


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"}, {"Host": "127.0.0.1:8001"}, {"Host": "127.0.0.1.evil.example:8000"}, {"Host": ""},
        {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "https://127.0.0.1:8000"},
        {"Origin": "http://127.0.0.1:8001"},
    ],
)  # fmt: skip
def test_other_hosts_and_origins_are_refused_even_with_the_token(
    client: TestClient, headers: dict[str, str]
) -> None:
    for method, address in ADDRESSES:
        assert client.request(method, address, headers=headers).status_code == 403


def test_own_names_pass_and_large_bodies_do_not(client: TestClient) -> None:
    for host in hosts(8000):
        assert client.get("/model", headers={"Host": host, "Origin": f"http://{host}"}).status_code == 200
    assert client.post("/infill", headers={"Content-Length": str(1 << 40)}).status_code == 413
    assert client.post("/infill", content=iter([b"{}"])).status_code == 413
    assert client.get("/../etc/passwd").status_code == 404 and client.get("/ui/app.js").status_code == 404
    assert client.get("/infill").status_code == 405


def infilled(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/infill", json={"seed": 1, "options": FAST, **body})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.mark.parametrize("decoder", ["cm3", "diffusion"])
def test_infill_keeps_every_other_byte_and_is_what_the_library_gives(
    client: TestClient, model: Path, decoder: str
) -> None:
    told = infilled(client, html=PAGE, variants=2, options={**FAST, "decoder": decoder})
    assert told["decoder"] == decoder and len(told["variants"]) == 2
    options = cm3kit.GenerateOptions(max_tokens=8, decoder=decoder)  # type: ignore[arg-type]
    filled = cm3kit.load(model, device="cpu").infill(
        Page.parse(PAGE.encode()), variants=2, seed=1, options=options
    )
    before, after = PAGE.split("<mask>")
    for each, wanted in zip(told["variants"], filled, strict=True):
        assert each["html"].encode() == wanted.html
        assert each["html"].startswith(before) and each["html"].endswith(after)


def test_a_recipe_comes_along_and_makes_the_page_again(
    client: TestClient, model: Path, tmp_path: Path
) -> None:
    data = PAGE.encode()
    variant = infilled(client, html_base64=base64.b64encode(data).decode(), variants=2)["variants"][1]
    path = tmp_path / "page.html"
    path.write_bytes(base64.b64decode(variant["html_base64"]))
    (tmp_path / "page.html.cm3kit.json").write_text(json.dumps(variant["recipe"]))
    assert read_recipe(path).changed is False
    assert [each.verdict for each in ModelCache(str(model), "cpu").check([path])] == ["same"]


def test_words_and_pictures_are_pointed_at_by_place(client: TestClient) -> None:
    png = io.BytesIO()
    Image.effect_noise((32, 24), 80).convert("RGB").save(png, "PNG")
    page = PAGE.replace("<mask>", "round") + '<img src="a%20b.png" alt=x>'
    data, pictures = page.encode(), {"a b.png": base64.b64encode(png.getvalue()).decode()}
    looked = client.post("/look", json={"html": page, "pictures": pictures}).json()
    first, second = data.index(b"An <b>"), data.index(b" &amp;")
    assert (
        f"<!--cm3kit:t{first}-->An " in looked["shown"]
        and f"<!--cm3kit:t{second}--> &amp; a" in looked["shown"]
    )
    image = data.index(b"<img")
    assert f'<!--cm3kit:i{image}--><img src="data:image/png' in looked["shown"]
    # From inside "An" to behind the pear, whose sign is two units; `&amp;` is read as one.
    words = {"start": [first, 0], "end": [second, 12], "text": "An apple & a 🍐 pear"}
    told = infilled(
        client,
        html=page,
        pictures=pictures,
        words=[words],
        regions=[{"offset": image, "box": [0, 0, 9, 9]}],
        shown=True,
    )
    (variant,) = told["variants"]
    assert [gap["kind"] for gap in variant["gaps"]] == ["content", "image"]
    assert (
        variant["html"].startswith(page[: page.index("An <b>")])
        and ".</p><p>A round one.</p>" in variant["html"]
    )
    assert "data-cm3kit-new" in variant["shown"]
    wrong = client.post("/infill", json={"html": page, "words": [{**words, "text": "something else"}]})
    assert wrong.status_code == 400 and wrong.json()["error"]["code"] == "gap_place"


def test_progress_comes_as_events(client: TestClient) -> None:
    answer = client.post("/infill", json={"html": PAGE, "seed": 1, "stream": True, "options": FAST})
    kinds = [line.removeprefix("event: ") for line in answer.text.splitlines() if line.startswith("event")]
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert kinds[0] == "queued" and kinds[-1] == "result" and set(kinds[1:-1]) <= {"progress"}
    last = json.loads(answer.text.strip().split("data: ")[-1])
    assert last["variants"][0]["html"] == infilled(client, html=PAGE)["variants"][0]["html"]
    failed = client.post("/infill", json={"html": "<p>no gap", "stream": True}).text
    assert failed.rstrip().split("event: ")[-1].startswith("error") and "no_mask" in failed


def test_completions_have_openais_shape(client: TestClient) -> None:
    body = {
        "prompt": "<p>A red ",
        "suffix": " on the table</p>",
        "n": 2,
        "seed": 3,
        "max_tokens": 6,
        "user": "x",
    }
    told = client.post("/v1/completions", json=body).json()
    assert told["object"] == "text_completion" and [each["index"] for each in told["choices"]] == [0, 1]
    assert all(each["finish_reason"] in ("stop", "length") for each in told["choices"])
    assert (
        told["usage"]["total_tokens"] == told["usage"]["prompt_tokens"] + told["usage"]["completion_tokens"]
    )
    streamed = client.post("/v1/completions", json={**body, "stream": True}).text
    chunks = [line.removeprefix("data: ") for line in streamed.splitlines() if line]
    assert chunks[-1] == "[DONE]" and json.loads(chunks[0])["choices"] == told["choices"]
    assert client.post("/v1/completions", json={"prompt": "a <mask>"}).status_code == 400


def test_images_have_openais_shape_and_carry_their_recipe(
    client: TestClient, tmp_path: Path, model: Path
) -> None:
    body = {"prompt": "red apple", "n": 2, "size": "16x16", "response_format": "b64_json", "seed": 4}
    told = client.post("/v1/images/generations", json=body).json()
    path = tmp_path / "x.png"
    path.write_bytes(base64.b64decode(told["data"][1]["b64_json"]))
    made = read_recipe(path).made
    assert (made["prompt"], made["seed"], made["index"]) == ("red apple", 4, 1)
    assert [each.verdict for each in ModelCache(str(model), "cpu").check([path])] == ["same"]
    assert client.post("/v1/images/generations", json={**body, "size": "512x512"}).status_code == 400
    assert client.get("/v1/models").json()["data"][0]["id"] == "toy"


def test_answers_say_what_is_remarkable(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cm3kit.fill.remarks.unknown_words", zebras)
    unseen = "toy has never seen the words 'zebra': what it makes of them is a guess"
    equal = "all 2 results are equal; temperature and top-p make them differ"
    cold = {"temperature": 0, "max_tokens": 4}
    told = infilled(client, html="<p>a zebra <mask></p>", variants=2, options=cold)
    assert told["warnings"] == [unseen, equal]
    body = {"prompt": "<p>a zebra ", "n": 2, **cold}
    assert client.post("/v1/completions", json=body).json()["warnings"] == [unseen, equal]
    body = {"prompt": "zebra", "n": 2, "options": {"temperature": 0}}
    assert client.post("/v1/images/generations", json=body).json()["warnings"] == [unseen, equal]
    assert "warnings" not in client.post("/v1/images/generations", json={"prompt": "apple", "n": 2}).json()


@pytest.mark.parametrize(
    ("address", "body", "code"),
    [
        ("/infill", {}, "bad_value"),
        ("/infill", {"html": PAGE, "html_base64": ""}, "bad_value"),
        ("/infill", {"html_base64": "?"}, "bad_value"),
        ("/infill", {"html": ""}, "empty_file"),
        ("/infill", {"html": PAGE, "variants": 1000}, "bad_value"),
        ("/infill", {"html": PAGE, "wrong": 1}, "bad_value"),
        ("/infill", {"html": PAGE, "options": {"temprature": 1}}, "bad_value"),
        ("/infill", {"html": PAGE, "options": {"temperature": "hot"}}, "bad_value"),
        ("/infill", {"html": PAGE, "options": {"top_p": 7}}, "bad_value"),
        ("/infill", {"html": PAGE, "pictures": {"../x.png": ""}}, "bad_value"),
        ("/infill", {"html": PAGE, "pictures": {"a/../../x": ""}}, "bad_value"),
        ("/infill", {"html": PAGE, "select": ["p["]}, "bad_selector"),
        ("/infill", {"html": PAGE, "words": [{"start": [1, 0], "end": [2, 0]}]}, "gap_place"),
        ("/infill", {"html": PAGE, "regions": [{"offset": 3}]}, "bad_selector"),
        ("/look", {"html": "\0", "pictures": {"x": "!"}}, "bad_value"),
        ("/v1/images/generations", {"prompt": ""}, "bad_value"),
        ("/v1/completions", [], "bad_value"),
    ],
)
def test_what_is_wrong_with_a_request_is_told(client: TestClient, address: str, body: Any, code: str) -> None:
    answer = client.post(address, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code), answer.text
    assert "\n" not in answer.json()["error"]["message"]


def test_bodies_that_are_no_json_are_refused(client: TestClient) -> None:
    for content, kind in (
        (b"{", "application/json"),
        (b"{}", "text/plain"),
        (b"[" * 10**5, "application/json"),
    ):
        answer = client.post("/infill", content=content, headers={"Content-Type": kind})
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "bad_value"


def test_clients_at_once_are_served_one_after_the_other(app: Any) -> None:
    own = build(app.state.kit, TOKEN, hosts(8000))
    short = {"max_tokens": 4}
    with TestClient(own, f"http://{HOST}", headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        with ThreadPoolExecutor(12) as pool:
            asked = [pool.submit(infilled, client, html=PAGE, seed=seed, options=short) for seed in range(24)]
            got = [each.result()["variants"][0]["html"] for each in asked]
        assert got[5] == infilled(client, html=PAGE, seed=5, options=short)["variants"][0]["html"]
    assert len(set(got)) > 12


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.com", "127.0.0.1.evil"])
def test_other_addresses_than_this_machines_are_refused(
    host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", "--host", host]) == 1
    assert "other machines" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("start", "end", "wanted"),
    [
        (0, 2, b"An"), (3, 15, b"<b>x</b> y"), (7, 9, b"<b>x</b>"), (0, 15, b"An <b>x</b> y"), (28, 32, b"<i>z</i>"),
    ],
)  # fmt: skip
def test_words_are_widened_to_whole_elements(start: int, end: int, wanted: bytes) -> None:
    page = Page.parse(b"An <b>x</b> y   <div>  <p> a<i>z</i> <br> <script>s</script>")
    (gap,) = page.words(start, end).gaps
    assert page.data[gap.start : gap.end] == wanted


@pytest.mark.parametrize(("start", "end"), [(2, 3), (12, 22), (14, 17), (60, 61), (0, 0)])
def test_no_words_are_no_gap(start: int, end: int) -> None:
    page = Page.parse(b"An <b>x</b> y   <div>  <p> a<i>z</i> <br> <script>s</script>")
    with pytest.raises(Cm3kitError):
        page.words(start, end)


def test_places_count_as_browsers_do() -> None:
    run = "a&amp;b\r\n🍐&notin;x&bogus y".encode()
    read = "a&b\n🍐∉x&bogus y"
    for place in range(len(read) + 1):
        units = len(read[:place].encode("utf-16-le")) // 2
        at = byte_offset(run, "utf-8", units, after=False)
        whole = byte_offset(run, "utf-8", units, after=True)
        assert at == whole and (run[at:] == b"") == (place == len(read))
    assert run[byte_offset(run, "utf-8", 2, after=False) :].startswith(b"b\r\n")
    assert run[byte_offset(run, "utf-8", 6, after=False) :].startswith(b"&notin;x")


@pytest.fixture
def served(app: Any) -> Iterator[str]:
    """The server on a free port, and its address with the token."""
    import uvicorn

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        guarded = build(app.state.kit, TOKEN, hosts(port))
        server = uvicorn.Server(uvicorn.Config(guarded, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}/?token={TOKEN}"
        server.should_exit = True
        thread.join(10)


@pytest.mark.skipif(browsers.PROGRAM is None, reason="Chromium is not installed")
def test_the_editor_in_a_browser(served: str, tmp_path: Path) -> None:
    source = (
        b"<!DOCTYPE html>\r\n<title>Fruit</title><body style='font:20px sans-serif'>"
        b"<p id=p>An apple is a round fruit.</p>"
        b"<script>top.hacked = 1; document.title = 'hacked'</script><img src=x onerror='top.hacked = 1'>"
        b"<link rel=preconnect href=http://a.evil.test><img src=http://b.evil.test/x.png>"
        b"<p><img src=pear.png width=96 height=96></p><!-- kept -->"
    )
    (tmp_path / "fruit.html").write_bytes(source)
    Image.new("RGB", (32, 32), "green").save(tmp_path / "pear.png")
    (tmp_path / "got").mkdir()
    page = browsers.Browser(1200, 800)
    try:
        page.downloads(tmp_path / "got")
        page.open(served)
        page.wait("document.querySelectorAll('#decoder option').length === 2")
        assert page.run("location.search") == ""
        page.upload("#files", [tmp_path / "fruit.html", tmp_path / "pear.png"])
        page.wait("!document.getElementById('paper').hidden")
        edit(page)
        assert page.run("document.querySelectorAll('#gaps li').length") == 2
        page.run("document.getElementById('variants').value = 2")
        page.run("document.getElementById('decoder').value = 'diffusion'")
        page.click("#fill")
        page.wait("document.querySelectorAll('.variant').length === 2")
        page.click(".variant button")
        page.wait("!document.getElementById('undo').disabled && !document.querySelector('.variant')")
        page.click("#export")
        exported = tmp_path / "got/fruit.html"
        until = time.monotonic() + 30
        while not exported.exists() and time.monotonic() < until:
            time.sleep(0.05)
        check_export(source, exported.read_bytes())
        assert page.run("window.hacked") is None and page.run("document.title") == "cm3kit"
        assert not page.trap.connections and not page.heard("Page.javascriptDialogOpening")
    finally:
        page.close()


def edit(page: browsers.Browser) -> None:
    """Drag over two words, and over a quarter of the picture."""
    place = (
        "const o = document.getElementById('overlay').getBoundingClientRect(),"
        " d = document.getElementById('page').contentDocument;"
    )
    words = (
        f"(() => {{ {place} const r = d.createRange(),"
        " t = [...d.getElementById('p').childNodes].find((n) => n.nodeType === 3);"
        " r.setStart(t, 14); r.setEnd(t, 23); const b = r.getBoundingClientRect();"
        " return [o.x + b.left + 3, o.y + b.top + b.height / 2, o.x + b.right - 3]; })()"
    )
    x, y, right = page.run(words)
    page.drag((x, y), (right, y))
    assert page.run("document.querySelector('#gaps span').textContent") == "“round fruit.”"
    picture = (
        f"(() => {{ {place} const b = [...d.images].find((i) => i.naturalWidth).getBoundingClientRect();"
        " return [o.x + b.left, o.y + b.top]; })()"
    )
    x, y = page.run(picture)
    page.drag((x + 1, y + 1), (x + 48, y + 48))


def check_export(source: bytes, exported: bytes) -> None:
    """Everything but the two gaps is as it was."""
    start, end = source.index(b"round fruit."), source.index(b"</p><script>")
    image = source.index(b"pear.png")
    assert exported.startswith(source[:start]) and exported != source
    assert source[end:image] in exported and exported.endswith(source[image + len(b"pear.png") :])
    assert b"data:image/png;base64," in exported


def test_the_documents_name_every_flag_and_address(app: Any, capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[1] / "docs/serve.md").read_text(encoding="utf-8")
    assert run(["serve", "--help"]) == 0
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", capsys.readouterr().out))
    assert not [flag for flag in flags - {"--help", "--verbose"} if flag not in text]
    paths = {route.path for route in app.routes} - {"/", "/app.js", "/app.css"}
    assert not [path for path in paths if f" {path}`" not in text]
    fields = {*InfillBody.model_fields, *CompletionBody.model_fields, *ImageBody.model_fields}
    assert not [name for name in fields - {"model", "response_format"} if f"`{name}`" not in text]

"""The server with real clients: OpenAI's own, one that leaves, one that dawdles, and Ctrl-C while it works."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from toys import toy

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from pydantic import ValidationError

from cm3kit.serve import timed
from cm3kit.serve.schemas import MOST_RESULTS, CompletionBody, ImageBody, InfillBody

TOKEN = "a-token-of-the-tests-0123456789"
ROOT = Path(__file__).parents[1]
PATH = os.pathsep.join(str(ROOT / each) for each in (".", "cli", "tokenizers"))


class Server:
    """`cm3kit serve` in a process of its own."""

    def __init__(self, model: Path) -> None:
        command = [sys.executable, "-m", "cm3kit_cli", "serve", "-m", str(model), "--port", "0", "--no-ui"]
        environment = {**os.environ, "PYTHONPATH": PATH, "CM3KIT_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*command, "--device", "cpu"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        heard = threading.Event()

        def read(stream: Any) -> None:
            with suppress(ValueError):  # it is closed
                for line in stream:
                    self.lines.append(line)
                    if "http://" in line:
                        heard.set()

        for stream in (self.process.stdout, self.process.stderr):
            threading.Thread(target=read, args=(stream,), daemon=True).start()
        assert heard.wait(180), "".join(self.lines)
        said = next(line for line in self.lines if "http://" in line)
        self.port = int(said.partition("127.0.0.1:")[2].partition("/")[0])

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 30)

    def post(self, path: str, body: dict[str, Any]) -> socket.socket:
        """A connection with a request on it, whose answer nobody has read."""
        data = json.dumps(body).encode()
        connection = self.connect()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nAuthorization: Bearer {TOKEN}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data)
        return connection

    def waiting(self) -> int:
        with self.connect() as connection:
            head = f"GET /model HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nAuthorization: Bearer {TOKEN}\r\n"
            connection.sendall(f"{head}Connection: close\r\n\r\n".encode())
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
        return int(json.loads(answer.partition(b"\r\n\r\n")[2])["waiting"])

    def until(self, waiting: int, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.waiting() == waiting:
                return True
            time.sleep(0.05)
        return False

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    found = Server(toy())
    yield found
    found.close()


LONG = {"prompt": ["<p>An apple "] * MOST_RESULTS, "max_tokens": 120, "temperature": 1, "seed": 1}


def test_openai_s_client_is_answered_as_it_expects(server: Server) -> None:
    openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key=TOKEN, max_retries=0)
    name = client.models.list().data[0].id
    assert client.models.retrieve(name).id == name
    ask = client.completions.create
    first = ask(
        model=name, prompt="<p>An apple is ", max_tokens=4, seed=1, n=None, stop=None, temperature=None
    )
    again = ask(model=name, prompt="<p>An apple is ", max_tokens=4, seed=1)
    assert first.choices[0].text == again.choices[0].text and first.id != again.id
    assert 0 < first.usage.completion_tokens <= 4
    assert first.usage.total_tokens == first.usage.prompt_tokens + first.usage.completion_tokens
    assert first.choices[0].finish_reason in ("stop", "length")

    many = ask(model=name, prompt=["a", "b"], suffix="</p>", n=2, max_tokens=12, seed=2)
    assert [each.index for each in many.choices] == [0, 1, 2, 3] and many.usage.completion_tokens <= 48
    whole = next(each.text for each in many.choices if len(each.text) > 2)
    prompt = "ab"[next(each.index for each in many.choices if each.text == whole) // 2]
    cut = ask(
        model=name, prompt=["a", "b"], suffix="</p>", n=2, max_tokens=12, seed=2, stop=[whole[2:], "\u2603"]
    )
    found = next(
        each for each in cut.choices if "ab"[each.index // 2] == prompt and whole.startswith(each.text)
    )
    assert found.text == whole[:2] and found.finish_reason == "stop"

    events = list(
        ask(model=name, prompt="x", max_tokens=4, seed=1, stream=True, stream_options={"include_usage": True})
    )
    assert [len(each.choices) for each in events] == [1, 0] and events[0].usage is None
    assert events[1].usage.completion_tokens <= 4 and len({each.id for each in events}) == 1
    (event,) = ask(model=name, prompt="x", max_tokens=4, seed=1, stream=True)
    assert event.usage is None and event.choices[0].text == events[0].choices[0].text

    picture = client.images.generate(model=name, prompt="red apple", n=1, response_format="b64_json")
    assert picture.data[0].b64_json

    for more, kind in (
        ({"model": "gpt-4"}, openai.NotFoundError),
        ({"model": "gpt-4", "stream": True}, openai.NotFoundError),
        ({"max_tokens": 0}, openai.BadRequestError),
        ({"n": 33}, openai.BadRequestError),
        ({"prompt": ["x"] * 2000}, openai.BadRequestError),
        ({"prompt": "<mask>"}, openai.BadRequestError),
        ({"prompt": [1, 2]}, openai.BadRequestError),
        ({"echo": True}, openai.BadRequestError),
        ({"logprobs": 5}, openai.BadRequestError),
        ({"stop": ["a"] * 5}, openai.BadRequestError),
    ):
        with pytest.raises(kind) as error:
            ask(**{"model": name, "prompt": "x", "max_tokens": 2, **more})
        assert "\n" not in error.value.body["message"] and error.value.body["code"]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")
    with pytest.raises(openai.APIError, match="mask"):
        list(ask(model=name, prompt="<mask>", stream=True))
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=client.base_url, api_key="no", max_retries=0).models.list()
    assert not any("Traceback" in line for line in server.lines)


def test_work_stops_when_its_client_has_gone(server: Server) -> None:
    connection = server.post("/v1/completions", LONG)
    assert server.until(1, 10)
    connection.close()
    assert server.until(0, 10)
    assert not any("Traceback" in line for line in server.lines)


def test_half_a_header_and_silence_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    import uvicorn

    monkeypatch.setattr(timed, "SECONDS", 0.5)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.8 if scope["path"] == "/slow" else 0)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    async def talk() -> None:
        config = uvicorn.Config(app, port=0, log_level="error", http=timed.Timed, lifespan="off")
        server = uvicorn.Server(config)
        serving = asyncio.ensure_future(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        for sent in (b"", b"GET / HTTP/1.1\r\nHost: x\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            began = time.monotonic()
            for _ in range(3 if sent else 0):  # a byte now and then does not buy time
                await asyncio.sleep(0.1)
                writer.write(b"X")
            assert await asyncio.wait_for(reader.read(), 20) == b"" and time.monotonic() - began < 20
            writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")  # an answer may take longer
        assert b"200" in await asyncio.wait_for(reader.read(200), 20)
        writer.close()
        server.should_exit = True
        await serving

    asyncio.run(talk())


def processor(process: int) -> float:
    """Seconds that a process has run; those that were known last, once it has ended."""
    with suppress(OSError, ValueError):
        with open(f"/proc/{process}/stat", encoding="ascii") as file:
            user, system = file.read().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return 0.0


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stream", [False, True])
def test_a_signal_ends_the_server_while_it_works(sent: signal.Signals, stream: bool) -> None:
    server = Server(toy())
    try:
        connection = server.post("/v1/completions", {**LONG, "stream": stream})
        assert server.until(1, 30)
        time.sleep(0.3)
        # Of the processor: a machine that does other things too may take longer on the clock.
        before, spent, began = processor(server.process.pid), 0.0, time.monotonic()
        server.process.send_signal(sent)
        while server.process.poll() is None and time.monotonic() - began < 30:
            spent = max(spent, processor(server.process.pid) - before)
            time.sleep(0.02)
        connection.close()
        assert server.process.wait(30) is not None and spent < 2
        assert server.process.returncode in (130, 143, -sent)
        assert not any("Traceback" in line for line in server.lines), "".join(server.lines)
    finally:
        server.close()


@pytest.mark.parametrize("body", [InfillBody, CompletionBody, ImageBody])
def test_null_is_what_is_not_given(body: Any) -> None:
    needed = {} if body is InfillBody else {"prompt": "x"}
    assert body.model_validate({name: None for name in body.model_fields} | needed) == body.model_validate(
        needed
    )


def test_results_of_a_request_are_bounded() -> None:
    for prompts, n in ((MOST_RESULTS + 1, 1), (5, 32), (0, 1)):
        with pytest.raises(ValidationError):
            CompletionBody.model_validate({"prompt": ["x"] * prompts, "n": n})
    assert len(CompletionBody.model_validate({"prompt": ["x"] * MOST_RESULTS}).prompts) == MOST_RESULTS

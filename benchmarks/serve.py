"""The local server under many clients at once, and what it says to those that may not talk to it.

python benchmarks/serve.py -m pictures --clients 50
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import uvicorn

import cm3kit
from cm3kit.serve.app import build
from cm3kit.serve.run import hosts

TOKEN = "a-token-of-the-benchmark-0123456789"
PAGE = "<!DOCTYPE html><title>Fruit</title><p>A red <mask> on the table.</p>"
PATHS = (
    ("GET", "/"), ("GET", "/app.js"), ("GET", "/model"), ("POST", "/look"), ("POST", "/infill"), ("GET", "/v1/models"),
    ("POST", "/v1/completions"), ("POST", "/v1/images/generations"), ("GET", "/../../etc/passwd"), ("PUT", "/infill"),
)  # fmt: skip
STRANGERS: tuple[dict[str, str], ...] = (
    {}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {TOKEN}x"}, {"Cookie": f"cm3kit={TOKEN}"},
    {"Authorization": f"Bearer {TOKEN}", "Host": "evil.test"},
    {"Authorization": f"Bearer {TOKEN}", "Origin": "http://evil.test"},
)  # fmt: skip


def ask(port: int, method: str, path: str, headers: dict[str, str], body: object = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3600)
    content = None if body is None else json.dumps(body)
    connection.request(method, path, content, {"Content-Type": "application/json", **headers})
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def client(port: int, number: int) -> tuple[str, int, float]:
    """One request of one of four kinds, and whether its answer is whole."""
    allowed = {"Authorization": f"Bearer {TOKEN}"}
    started = time.perf_counter()
    kind = ("infill", "stream", "completion", "look")[number % 4]
    short = {"max_tokens": 4}
    if kind == "completion":
        body = {"prompt": "<p>A red ", "suffix": "</p>", "max_tokens": 4, "seed": number}
        status, content = ask(port, "POST", "/v1/completions", allowed, body)
        whole = status == 200 and len(json.loads(content)["choices"]) == 1
    elif kind == "look":
        status, content = ask(port, "POST", "/look", allowed, {"html": PAGE})
        whole = status == 200 and len(json.loads(content)["gaps"]) == 1
    else:
        body = {"html": PAGE, "seed": number, "options": short, "stream": kind == "stream"}
        status, content = ask(port, "POST", "/infill", allowed, body)
        before, after = PAGE.split("<mask>")
        last = content.decode().strip().split("data: ")[-1]
        page = json.loads(last)["variants"][0]["html"] if status == 200 else ""
        whole = page.startswith(before) and page.endswith(after)
    return kind, status if whole else -1, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", default="pictures")
    parser.add_argument("--clients", type=int, default=50)
    given = parser.parse_args()
    kit = cm3kit.load(given.model, device="cpu")
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        port = listener.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(build(kit, TOKEN, hosts(port)), log_level="error"))
        threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True).start()
        while not server.started:
            time.sleep(0.01)
        refused = Counter(ask(port, method, path, each)[0] for each in STRANGERS for method, path in PATHS)
        print(
            f"{sum(refused.values())} requests without the token, or of another host or origin: {dict(refused)}"
        )
        started = time.perf_counter()
        with ThreadPoolExecutor(given.clients) as pool:
            got = list(pool.map(lambda number: client(port, number), range(given.clients)))
        wrong = [each for each in got if each[1] != 200]
        slowest = max(seconds for *_, seconds in got)
        print(
            f"{given.clients} clients at once, {dict(Counter(kind for kind, *_ in got))}: {len(wrong)} errors,"
            f" all answered after {time.perf_counter() - started:.1f} s, the slowest after {slowest:.1f} s"
        )
        server.should_exit = True
        time.sleep(0.5)


if __name__ == "__main__":
    main()

"""What a client gets that must not get an answer (must-show 5)."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest

from graftlm.serve.guard import Limits, is_local

CHAT = {"model": "one", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
CHATS = "/v1/chat/completions"


def ask(
    port: int, path: str = CHATS, body: Any = CHAT, method: str = "POST", **headers: str
) -> tuple[int, dict[str, str], Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    named.setdefault("content-type", "application/json")
    try:
        connection.request(method, path, data if method == "POST" else None, named)
        answer = connection.getresponse()
        text = answer.read()
        return answer.status, dict(answer.headers), json.loads(text or b"null")
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "evil.example"}, 403),
        ({"content_type": "text/plain"}, 415),
        ({"content_type": "application/x-www-form-urlencoded"}, 415),
        ({"body": b"{"}, 400),
        ({"body": b"[" * 100_000}, 400),
        ({"body": []}, 400),
        ({"body": {}}, 400),
        ({"body": CHAT | {"model": "../../etc/passwd"}}, 404),
        ({"body": CHAT | {"model": "/etc/passwd"}}, 404),
        ({"body": CHAT | {"model": "one\x00"}}, 404),
        ({"body": CHAT | {"messages": []}}, 400),
        ({"body": CHAT | {"messages": "hi"}}, 400),
        ({"path": "/v1/completions", "body": {"model": "one", "prompt": [-1]}}, 400),
        ({"path": "/v1/completions", "body": {"model": "one", "prompt": [10**9]}}, 400),
        ({"path": "/v1/completions", "body": {"model": "one", "prompt": []}}, 400),
        ({"path": "/v1/completions", "body": {"model": "one", "prompt": [[1]]}}, 400),
        ({"path": "/v1/models/..%2f..%2fetc%2fpasswd", "method": "GET"}, 404),
        ({"path": "/v1/../etc/passwd", "method": "GET"}, 404),
        ({"path": "/etc/passwd", "method": "GET"}, 404),
        ({"path": CHATS, "method": "GET"}, 405),
        ({"path": "/v1/models", "method": "OPTIONS", "origin": "https://evil.example"}, 403),
    ],
)
def test_wrong_requests_are_refused_in_json(port: int, given: Any, status: int) -> None:
    found, headers, tree = ask(port, **given)
    assert found == status
    assert set(tree["error"]) == {"message", "type", "param", "code"}
    assert not any(name.lower().startswith("access-control") for name in headers)
    assert headers["x-content-type-options"] == "nosniff"
    assert ask(port)[0] == 200


def test_html_stays_text(port: int) -> None:
    page = "<script>alert(1)</script>"
    status, headers, _ = ask(port, body=CHAT | {"messages": [{"role": "user", "content": page}]})
    assert status == 200
    assert headers["content-type"] == "application/json"
    status, headers, tree = ask(port, body=CHAT | {"model": page})
    assert status == 404
    assert headers["content-type"] == "application/json"
    assert page in tree["error"]["message"]


def test_same_origin_is_taken(port: int) -> None:
    assert ask(port, origin=f"http://127.0.0.1:{port}")[0] == 200


def test_a_body_that_is_too_large_is_not_read(serve: Any) -> None:
    with serve(Limits(body_bytes=1000)) as port:
        assert ask(port, body=CHAT | {"user": "x" * 2000})[0] == 413
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            client.sendall(b"800\r\n" + b"x" * 0x800 + b"\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 413")
        assert ask(port)[0] == 200


def test_slow_clients_are_sent_away(serve: Any) -> None:
    limits = Limits(body_seconds=0.3, header_seconds=0.3)
    with serve(limits) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as silent:
            assert silent.recv(100) == b""
        with socket.create_connection(("127.0.0.1", port), timeout=30) as dribble:
            dribble.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: local")
            assert dribble.recv(100) == b""
        with socket.create_connection(("127.0.0.1", port), timeout=30) as half:
            half.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
            )
            assert half.recv(100).startswith(b"HTTP/1.1 408")
        assert ask(port)[0] == 200


def within_30_seconds(true: Callable[[], bool]) -> bool:
    end = time.monotonic() + 30
    while not (done := true()) and time.monotonic() < end:
        time.sleep(0.02)
    return done


def held_by_the_server(port: int) -> set[int]:
    """The ports of the clients that a server of this process has a connection with."""
    process = psutil.Process()  # psutil 6 has a new name for it
    name = "net_connections" if hasattr(process, "net_connections") else "connections"
    every = getattr(process, name)("tcp")
    return {one.raddr.port for one in every if one.raddr and one.laddr.port == port}


@contextlib.contextmanager
def asked_for_a_stream(port: int) -> Iterator[socket.socket]:
    """A client with hardly any room, which has asked for 150 tokens as they come."""
    body = json.dumps(CHAT | {"max_tokens": 150, "stream": True}).encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        client.settimeout(30)
        client.connect(("127.0.0.1", port))
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        yield client


@pytest.mark.skipif(sys.platform != "linux", reason="the sizes of buffers are Linux's")
def test_a_client_that_takes_nothing_of_its_answer_is_sent_away(serve: Any) -> None:
    with serve(Limits(requests=1, send_seconds=0.5)) as port, asked_for_a_stream(port) as deaf:
        address = deaf.getsockname()[1]
        assert within_30_seconds(lambda: ask(port)[0] == 429)
        assert address in held_by_the_server(port)
        assert within_30_seconds(lambda: address not in held_by_the_server(port))
        assert within_30_seconds(lambda: ask(port)[0] == 200)


def test_a_slow_client_that_takes_something_is_not_sent_away(serve: Any) -> None:
    with serve(Limits(send_seconds=0.5)) as port, asked_for_a_stream(port) as slow:
        begun, taken = time.monotonic(), b""
        while some := slow.recv(4096):
            taken += some
            time.sleep(0.1 if time.monotonic() < begun + 2 else 0)
        assert b"[DONE]" in taken


def test_two_hundred_connections_are_answered(port: int) -> None:
    idle = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(200)]
    try:
        begun = time.monotonic()
        with ThreadPoolExecutor(40) as pool:
            found = list(pool.map(lambda _: ask(port)[0], range(60)))
        assert found == [200] * 60
        assert time.monotonic() - begun < 120
    finally:
        for connection in idle:
            connection.close()


def test_more_requests_than_may_wait_are_told_so(serve: Any) -> None:
    with serve(Limits(requests=2)) as port:
        body = CHAT | {"max_tokens": 150}
        with ThreadPoolExecutor(12) as pool:
            found = list(pool.map(lambda _: ask(port, body=body)[0], range(12)))
        assert set(found) == {200, 429}


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("", False),
     ("127.0.0.1.evil.example", False), ("192.168.0.2", False)],
)  # fmt: skip
def test_local_addresses(host: str, local: bool) -> None:
    assert is_local(host) == local

"""Connections of clients that are slow on purpose: each ends, and the service goes on."""

import asyncio
import contextlib
import socket

import pytest
import uvicorn
from uvicorn.server import ServerState

from lorahub_edge.serve import OnnxModel
from lorahub_edge.serve.connection import connection_class
from lorahub_edge.serve.server_settings import ServerSettings

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def model(folders):
    return OnnxModel(folders["t5"], n_threads=1)


@contextlib.contextmanager
def connected(client):
    """A socket whose own limit fails the test where the service does nothing."""
    with socket.create_connection(("127.0.0.1", client.port), timeout=30) as client_side:
        yield client_side


def rest(client_side):
    """What the service sends until it closes the connection."""
    return b"".join(iter(lambda: client_side.recv(1 << 16), b""))


@pytest.mark.parametrize("part", [b"", HEALTH], ids=["nothing", "half a head"])
def test_a_head_that_does_not_come_closes_the_connection(model, serve, part):
    with serve(model, header_s=0.1) as client, connected(client) as client_side:
        client_side.sendall(part)
        assert rest(client_side) == b""
        assert client.request("GET", "/health")[0] == 200


def test_nor_may_the_second_head_of_a_connection_take_longer(model, serve):
    with serve(model, header_s=0.5) as client, connected(client) as client_side:
        client_side.sendall(HEALTH + b"\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += client_side.recv(1 << 16)
        client_side.sendall(HEALTH)
        assert rest(client_side) == b""


def test_a_request_that_takes_longer_than_a_head_may_is_not_cut(model, serve):
    with serve(model, header_s=0.05, body_s=0.3) as client, connected(client) as client_side:
        client_side.sendall(POST + b"Content-Length: 100\r\n\r\n")
        assert rest(client_side).startswith(b"HTTP/1.1 408 ")


def test_a_body_that_trickles_gets_its_answer_and_is_closed(model, serve):
    with serve(model, body_s=0.1) as client, connected(client) as client_side:
        client_side.sendall(POST + b"Content-Length: 100\r\n\r\n{")
        received = rest(client_side)
        assert received.startswith(b"HTTP/1.1 408 ")
        assert b'"code": "slow_body"' in received


@pytest.mark.parametrize("body", [b"", b"x" * 3_000_000], ids=["waits", "sends"])
def test_a_large_body_is_refused_by_its_length_and_the_client_can_read_why(model, serve, body):
    with serve(model, max_body_bytes=1000) as client, connected(client) as client_side:
        client_side.sendall(POST + b"Content-Length: 3000000\r\n\r\n" + body)
        assert rest(client_side).startswith(b"HTTP/1.1 413 ")


class Transport(asyncio.Transport):
    """Remembers whether it was aborted."""

    is_aborted = False

    def abort(self):
        self.is_aborted = True


@pytest.mark.parametrize("reads_again", [False, True])
def test_a_client_that_leaves_its_answer_unread_is_cut_off(reads_again):
    async def aborted():
        config = uvicorn.Config(lambda: None)
        made = connection_class(ServerSettings(send_s=0.01))(config, ServerState(), {})
        made.connection_made(transport := Transport())
        made.pause_writing()
        if reads_again:
            made.resume_writing()
        await asyncio.sleep(0.05)
        made.connection_lost(ConnectionAbortedError())
        return transport.is_aborted

    assert asyncio.run(aborted()) is not reads_again

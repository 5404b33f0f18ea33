"""The guard alone, around an application that always answers: who may ask, what is read, and what the log says."""

import asyncio
import json
import logging

import pytest

from lorahub_edge.errors import InvalidInput
from lorahub_edge.serve.guard import Guard
from lorahub_edge.serve.server_settings import ServerSettings

HEADERS = {"host": "localhost:8000", "content-type": "application/json"}


class App:
    """Answers with the body that it was sent, unless it has something to raise."""

    def __init__(self, error=None):
        self.error = error
        self.bodies = []

    async def __call__(self, scope, receive, send):
        self.bodies.append((await receive())["body"])
        if self.error is not None:
            raise self.error
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


def ask(
    settings=None,
    *,
    method="POST",
    path="/v1/completions",
    root_path="",
    parts=(b"{}",),
    delay_s=0.0,
    app=None,
    **headers,
):
    """One request; returns status, error's code, headers, what the application read, and how many parts were taken."""
    app = app or App()
    names = {name.encode(): value for name, value in HEADERS.items()}
    names |= {name.replace("_", "-").encode(): value for name, value in headers.items()}
    raw = [(name, value if isinstance(value, bytes) else value.encode()) for name, value in names.items() if value]
    scope = {"type": "http", "method": method, "path": path, "headers": raw, "client": ("127.0.0.1", 1)}
    scope["root_path"] = root_path
    sent, taken, done = [], [], []

    async def receive():
        if len(taken) == len(parts):
            await asyncio.sleep(delay_s)
            return {"type": "http.disconnect"}
        taken.append(parts[len(taken)])
        await asyncio.sleep(delay_s if len(taken) > 1 else 0)
        return {"type": "http.request", "body": taken[-1], "more_body": len(taken) < len(parts)}

    async def send(message):
        sent.append((message, len(taken)))

    asyncio.run(Guard(app, settings or ServerSettings(), done.append)(scope, receive, send))
    start, n_taken = sent[0]
    body = json.loads(b"".join(message["body"] for message, _ in sent[1:]) or b"{}")
    [exchange] = done
    assert exchange.status == start["status"]
    code = body["error"]["code"] if "error" in body else None
    return start["status"], code, {k.decode(): v.decode() for k, v in start["headers"]}, app.bodies, n_taken


@pytest.mark.parametrize(("is_stopping", "expected"), [(False, (499, "client_went_away")), (True, (503, "stopped"))])
def test_an_answer_that_is_cancelled_has_lost_its_client_unless_the_service_stops(is_stopping, expected):
    """Proxies such as Ray's cancel what nobody waits for any more."""

    async def cancelled(scope, receive, send):
        raise asyncio.CancelledError

    async def receive():
        return {"type": "http.request", "body": b"{}"}

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    done = []
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(Guard(cancelled, ServerSettings(), done.append, lambda: is_stopping)(scope, receive, None))
    assert (done[0].status, done[0].code) == expected


def test_a_service_below_another_path_knows_its_own():
    settings = ServerSettings(api_keys=("a-key-of-some-length",))
    for path, status in (("/below/livez", 200), ("/livez", 200), ("/below/metrics", 401)):
        assert ask(settings, method="GET", path=path, root_path="/below", authorization="")[0] == status


@pytest.mark.parametrize(
    ("host", "allowed_hosts", "status"),
    [
        ("localhost", (), 200),
        ("LocalHost:1", (), 200),
        ("127.0.0.1:8000", (), 200),
        ("[::1]:8000", (), 200),
        ("", (), 200),  # HTTP/1.0; a browser always names a host
        ("evil.example", (), 403),
        ("localhost.evil.example:8000", (), 403),
        ("127.0.0.1.evil.example", (), 403),
        ("192.168.1.5:8000", (), 403),
        ("192.168.1.5:8000", ("192.168.1.5",), 200),
        ("192.168.1.5:8000", ("0.0.0.0",), 200),
        ("[fe80::1]:8000", ("::",), 200),
        ("evil.example", ("0.0.0.0",), 403),
        ("my.example:8000", ("My.Example",), 200),
        ("other.example", ("*",), 200),
    ],
)
def test_only_names_of_this_service_are_answered(host, allowed_hosts, status):
    found, code, _, bodies, _ = ask(ServerSettings(allowed_hosts=allowed_hosts), host=host)
    assert found == status
    assert (code, bodies) == (("host_not_allowed", []) if status == 403 else (None, [b"{}"]))


@pytest.mark.parametrize(
    ("origin", "allowed_origins", "method", "status"),
    [
        ("http://localhost:8000", (), "POST", 200),
        ("https://LOCALHOST:8000", (), "POST", 200),  # TLS ends in front of the service
        ("http://localhost", (), "POST", 403),
        ("http://localhost:8001", (), "POST", 403),
        ("https://evil.example", (), "POST", 403),
        ("https://evil.example", (), "DELETE", 403),
        ("https://evil.example", (), "GET", 200),  # a browser keeps the answer from the page
        ("null", (), "POST", 403),
        ("https://good.example", ("https://good.example",), "POST", 200),
        ("https://good.example.evil", ("https://good.example",), "POST", 403),
        ("null", ("*",), "POST", 200),
    ],
)
def test_pages_of_other_sites_may_not_ask(origin, allowed_origins, method, status):
    found, code, *_ = ask(ServerSettings(allowed_origins=allowed_origins), method=method, origin=origin)
    assert (found, code) == (status, "origin_not_allowed" if status == 403 else None)


def test_a_page_without_a_site_is_not_the_one_without_a_host():
    assert ask(host="", origin="null")[0] == 403


@pytest.mark.parametrize(
    ("authorization", "path", "status"),
    [
        ("Bearer secret", "/v1/completions", 200),
        ("bearer  secret", "/metrics", 200),
        ("", "/v1/completions", 401),
        ("", "/v1/models", 401),
        ("", "/metrics", 401),
        ("", "/no/such/path", 401),
        ("", "/health", 200),
        ("", "/", 200),
        ("Bearer secre", "/v1/completions", 401),
        ("Bearer secret2", "/v1/completions", 401),
        ("Basic secret", "/v1/completions", 401),
        (b"Bearer \xff\xfe", "/v1/completions", 401),
    ],
)
def test_with_a_key_only_its_holders_are_answered(authorization, path, status):
    found, code, headers, bodies, _ = ask(
        ServerSettings(api_keys=("other", "secret")), path=path, authorization=authorization
    )
    assert found == status
    if status == 401:
        assert (code, headers["www-authenticate"], bodies) == ("invalid_api_key", "Bearer", [])


def test_the_key_is_in_no_repr():
    assert "secret" not in repr(ServerSettings(api_keys=("secret",)))


@pytest.mark.parametrize(
    ("kind", "method", "status"),
    [
        ("application/json; charset=utf-8", "POST", 200),
        ("Application/JSON", "POST", 200),
        ("text/plain", "POST", 415),
        ("application/x-www-form-urlencoded", "POST", 415),
        ("", "POST", 415),
        ("", "GET", 200),
    ],
)
def test_only_json_is_read(kind, method, status):
    assert ask(method=method, content_type=kind)[0] == status


@pytest.mark.parametrize("length", ["101", "9" * 30, "-1", "+1", "1e2", "²"])
def test_a_wrong_or_too_large_length_is_refused_before_the_body(length):
    """The response stands before anything was taken; then the body is drained, and the connection closed."""
    found, _, headers, bodies, n_taken = ask(ServerSettings(max_body_bytes=100), content_length=length)
    assert found == (413 if length.isdigit() and length.isascii() else 400)
    assert (bodies, n_taken, headers["connection"]) == ([], 0, "close")


def test_a_body_without_a_length_is_read_no_further_than_the_limit():
    found, code, _, bodies, n_taken = ask(ServerSettings(max_body_bytes=100), parts=[b"x" * 60] * 10)
    assert (found, code, bodies, n_taken) == (413, "too_large", [], 2)
    assert ask(ServerSettings(max_body_bytes=120), parts=[b"x" * 60] * 2)[3] == [b"x" * 120]


def test_a_body_that_trickles_is_given_up():
    found, code, _, bodies, _ = ask(ServerSettings(body_s=0.05), parts=[b"x"] * 100, delay_s=0.04)
    assert (found, code, bodies) == (408, "slow_body", [])


def test_a_client_that_hangs_up_in_its_body_is_counted_as_gone():
    class Gone(App):
        """Never reached."""

    app = Gone()
    status, code, *_ = ask(parts=(), app=app)
    assert (status, code, app.bodies) == (499, "client_went_away", [])


@pytest.mark.parametrize(("error", "status"), [(InvalidInput("wrong"), 400), (KeyError("prompt text"), 500)])
def test_errors_are_answers_and_only_our_own_faults_leave_a_traceback(error, status, caplog):
    caplog.set_level(logging.INFO, "lorahub_edge.serve")
    found, _, headers, *_ = ask(app=App(error))
    assert found == status
    traces = [record for record in caplog.records if record.exc_info and record.levelno == logging.ERROR]
    assert [headers["x-request-id"] in record.getMessage() for record in traces] == [True] * (status == 500)


def test_every_request_is_one_line_without_its_body_or_control_characters(caplog):
    caplog.set_level(logging.INFO, "lorahub_edge.serve")
    ask(parts=[b"private text"])
    ask(path="/\x1b[31m\nPOST /forged 200\x9b" + "x" * 1000, host="evil.example", method="GET")
    first, second = caplog.messages
    assert first.startswith("127.0.0.1 POST /v1/completions 200 ")
    assert " ms 0+0 tokens " in first
    assert second.startswith("127.0.0.1 GET /\\x1b[31m\\nPOST /forged 200\\x9bxxx")
    assert " 403 host_not_allowed " in second
    assert len(second) < 400
    assert "private" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timeout_s": float("nan")}, "timeout_s: expected a finite number above 0, received nan"),
        ({"shutdown_s": float("inf")}, "shutdown_s: expected a finite number above 0"),
        ({"max_batch": 0}, "max_batch: expected a finite number above 0"),
        ({"api_keys": ("",)}, "api_key: expected printable ASCII"),
        ({"api_keys": ("two words",)}, "api_key: expected printable ASCII"),
        ({"api_keys": ("schlüssel",)}, "api_key: expected printable ASCII"),
        ({"allowed_hosts": ("http://a.example",)}, "allowed_host: expected a name without scheme and port"),
        ({"allowed_hosts": ("a.example:80",)}, "allowed_host: expected a name without scheme and port"),
        ({"allowed_origins": ("a.example",)}, "allowed_origin: expected a site such as https://example.org"),
        ({"allowed_origins": ("https://a.example/path",)}, "allowed_origin: expected a site"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, message):
    with pytest.raises(InvalidInput, match=message) as refused:
        ServerSettings(**settings)
    assert "schlüssel" not in str(refused.value)

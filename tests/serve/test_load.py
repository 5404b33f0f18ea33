"""Load on loopback: many clients at once, among them some that hang up, talk nonsense or ask for too much."""

import collections
import re
import time

from bench import serve_load
from lorahub_edge.serve import GenerationSettings, OnnxModel, generate
from tests import tiny

TEXTS = [text for text, _ in tiny.ROWS]


class SlowModel(OnnxModel):
    """Slow enough for a queue to form."""

    def step(self, state, tokens):
        time.sleep(0.003)
        return super().step(state, tokens)


def test_a_service_under_load_answers_everyone_and_stays_as_it_was(folders, serve):
    model = SlowModel(folders["t5"], n_threads=1)
    expected = generate(model, TEXTS[:1], GenerationSettings(max_new_tokens=8))[0].text
    with serve(model, max_batch=4, max_waiting=4) as client:
        outcomes = serve_load.load(client.port, TEXTS, n_clients=16, n_requests=240, max_tokens=8)
        assert serve_load.wrong(outcomes) == []
        seen = {(outcome.kind, outcome.status) for outcome in outcomes}
        assert {("whole", 200), ("whole", 429), ("stream", 200), ("stream", 429), ("hang up", 0)} <= seen
        status, body = client.complete(prompt=TEXTS[0], max_tokens=8)
        assert (status, body["choices"][0]["text"]) == (200, expected)
        assert client.request("GET", "/health")[1]["waiting"] == 0
        counted = collections.Counter()  # over the served model, and over what was refused before one was known
        for code, n in re.findall(r'requests_total{.*status="(\d+)"} (\d+)', client.request("GET", "/metrics")[1]):
            counted[code] += int(n)
        for code in ("400", "429"):
            assert int(counted[code]) == sum(str(outcome.status) == code for outcome in outcomes)
        assert int(counted["413"]) == sum(outcome.kind == "too large" for outcome in outcomes)
        # who hangs up may do so when the last piece is on its way already
        assert int(counted["200"]) + int(counted.get("499", 0)) == 1 + sum(o.status in (0, 200) for o in outcomes)


def test_the_command_serves_under_load_and_stops_when_told(folders):
    with serve_load.service(folders["t5"], "--max-waiting", "2", "--threads", "1") as (port, process):
        outcomes = serve_load.load(port, TEXTS, n_clients=8, n_requests=60, max_tokens=4)
        assert serve_load.wrong(outcomes) == []
        process.terminate()
        assert process.wait(30) in serve_load.STOPPED

"""kill -9 of a worker, of a node and of the driver: the table is the undisturbed one, and nothing is computed twice."""

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest

import lorahub_edge
from tests.sweeping.conftest import settled


def workers_of(pid):
    """The worker processes of a driver."""
    children = psutil.Process(pid).children(recursive=True)
    return [child for child in children if any("spawn_main" in word for word in child.cmdline())]


def names(events, kind):
    return [event["point"] if isinstance(event, dict) else event.point for event in events if kind_of(event) == kind]


def kind_of(event):
    return event["event"] if isinstance(event, dict) else event.kind


def test_killed_workers_cost_only_what_they_were_computing(study, undisturbed, tmp_path):
    events, killed = [], []

    def kill_both(event):
        events.append(event)
        if len(event.running) == 2 and not killed:  # one computes; the other has nothing to do yet
            killed.extend(workers_of(os.getpid()))
            for worker in killed:
                worker.kill()

    swept = lorahub_edge.sweep(study, tmp_path / "out", workers=2, threads=1, on_event=kill_both)
    assert settled(swept) == settled(undisturbed)
    lost = names(events, "lost")
    assert lost
    assert sorted(names(events, "started")) == sorted(names(events, "done") + lost)
    assert workers_of(os.getpid()) == []
    assert swept.rows[0]["costs"]["memory_plan"]["mapping"] == "mmap"  # one stack for both


def toml_of(study, path):
    """The study as a file."""
    tables = "".join(f"[{t}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in study[t].items()) for t in TABLES)
    path.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in study.items() if k not in TABLES) + tables)
    return path


TABLES = ("pools", "settings")


def start(study, folder, *more):
    """The command as a process of its own, with its events on stdout."""
    command = [sys.executable, "-m", "lorahub_edge.cli", "sweep", str(toml_of(study, folder / "study.toml")), "--json"]
    process = subprocess.Popen([*command, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return process


def read_until(process, done):
    """Events until so many points are done and another one has been started; and the workers, who are there by then."""
    events, workers = [], []
    for line in process.stdout:
        events.append(json.loads(line))
        workers = workers or workers_of(process.pid)
        if len(names(events, "done")) >= done and kind_of(events[-1]) == "started":
            break
    return events, workers


@pytest.mark.parametrize(("how", "n_workers"), [(signal.SIGKILL, 2), (signal.SIGINT, 1)])
@pytest.mark.usefixtures("ctrl_c")
def test_a_sweep_whose_driver_ends_goes_on(study, undisturbed, tmp_path, how, n_workers):
    process = start(study, tmp_path, "--workers", str(n_workers), "--threads", "1")
    events, workers = read_until(process, 1)
    process.send_signal(how)
    rest, errors = process.communicate(timeout=60)
    events += [json.loads(line) for line in rest.splitlines()]
    assert process.returncode == (130 if how == signal.SIGINT else -how), errors
    assert ("the same command goes on" in errors) == (how == signal.SIGINT)
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert alive == []
    again = []
    swept = lorahub_edge.sweep(tmp_path / "study.toml", on_event=again.append)
    assert settled(swept) == settled(undisturbed)
    running = set(names(events, "started")) - set(names(events, "done"))
    assert len(running) <= n_workers
    assert set(names(again, "started")) == {e.point for e in again if e.kind == "done"}
    assert set(names(again, "started")) & set(names(events, "started")) <= running
    assert set(names(events, "done")) <= set(names(again, "known"))


def test_a_lost_node_costs_only_what_it_was_computing(study, undisturbed, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="needs the extra ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        node = cluster.add_node(num_cpus=1)
        events = []

        def remove_node(event):
            events.append(event)
            both_compute = len(event.running) == 2 and names(events, "done")
            if node in cluster.list_all_nodes() and both_compute:
                cluster.remove_node(node)

        swept = lorahub_edge.sweep(study, tmp_path / "out", ray=cluster.address, on_event=remove_node)
        assert node not in cluster.list_all_nodes()
    finally:
        cluster.shutdown()
    assert settled(swept) == settled(undisturbed)
    assert names(events, "lost")
    assert sorted(names(events, "started")) == sorted(names(events, "done") + names(events, "lost"))


def test_ray_that_is_missing_or_not_there_is_one_line(study, tmp_path, monkeypatch):
    from lorahub_edge.errors import InvalidInput, NotInstalled

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        with pytest.raises(NotInstalled, match=r"--ray needs ray, which is not installed; pip install .*\[ray\]"):
            lorahub_edge.sweep(study, tmp_path / "out", ray="local")
    pytest.importorskip("ray", reason="needs the extra ray")
    with pytest.raises(InvalidInput, match=r"ray: no cluster answers at '127\.0\.0\.1:1'"):
        lorahub_edge.sweep(study, tmp_path / "out", ray="127.0.0.1:1")

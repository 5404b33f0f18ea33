"""A file or folder has its name only once it is whole; what a dead process left is removed; nothing else ever is."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from lorahub_edge.errors import LorahubEdgeError, OutputExists
from lorahub_edge.outputs import fingerprint, locked, publish, whole_file, whole_folder, write_text

LEAVE_BEHIND = """
import os, sys
from pathlib import Path
from lorahub_edge.outputs import whole_file, whole_folder
with {call}(Path(sys.argv[1])) as partial:
    (partial / "part" if {call} is whole_folder else partial).write_text("half")
    print("writing", flush=True)
    if sys.argv[2] == "die":
        os.kill(os.getpid(), 9)
    sys.stdin.read()
"""


def start(call: str, place: Path, how: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LEAVE_BEHIND.format(call=call), str(place), how]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    return process


@pytest.mark.parametrize("call", ["whole_file", "whole_folder"])
def test_a_dead_process_leaves_nothing_for_long_and_a_living_one_is_left_alone(tmp_path, call):
    with start(call, tmp_path / "living", "wait") as living:
        with start(call, tmp_path / "dead", "die"):
            pass
        assert not (tmp_path / "dead").exists()
        assert len(list(tmp_path.iterdir())) == 2, "one is being written, one is dead"
        write_text(tmp_path / "next", "any next start")
        assert len(list(tmp_path.iterdir())) == 2, "the dead one is gone"
        living.stdin.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["living", "next"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("ours")])
def test_an_error_half_way_leaves_what_was_there(tmp_path, error):
    write_text(tmp_path / "file", "old")
    expected = LorahubEdgeError if isinstance(error, OSError) else type(error)

    def write_half(context, name):
        with context as partial:
            (partial / name).write_text("new")
            raise error

    with pytest.raises(expected):
        write_half(whole_file(tmp_path / "file"), "")
    with pytest.raises(expected):
        write_half(whole_folder(tmp_path / "folder"), "file")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_all_files_get_the_mode_that_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        with whole_folder(tmp_path / "new" / "folder") as partial:
            (partial / "inner").mkdir()
            save_file({}, partial / "inner" / "weights.safetensors")
            (partial / "text").write_text("")
            (partial / "text").chmod(0o600)
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "new").rglob("*")}
    assert modes == {"folder": 0o750, "inner": 0o750, "weights.safetensors": 0o640, "text": 0o640}


def test_what_appeared_meanwhile_stays_and_the_new_folder_is_kept_beside_it(tmp_path):
    (tmp_path / "run-2").mkdir()

    def write_while_another_writes():
        with whole_folder(tmp_path / "run") as partial:
            (partial / "file").write_text("new")
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / "thesis").write_text("ten years")

    with pytest.raises(OutputExists, match=r"the new folder is .*run-3"):
        write_while_another_writes()
    assert (tmp_path / "run" / "thesis").read_text() == "ten years"
    assert (tmp_path / "run-3" / "file").read_text() == "new"


@pytest.mark.parametrize("change", ["another folder", "a further file", "a file that was edited"])
def test_only_what_was_seen_is_replaced(tmp_path, change):
    old, new = tmp_path / "run", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "file").write_text(folder.name)
    seen = fingerprint(old)
    if change == "another folder":
        old.rename(tmp_path / "moved")
        old.mkdir()
        (old / "file").write_text("run")
    else:
        (old / ("other" if change == "a further file" else "file")).write_text("mine")
    with pytest.raises(OutputExists):
        publish(new, old, replaces=seen)
    assert (old / "file").exists()
    assert (tmp_path / "run-2" / "file").read_text() == "new"
    publish(tmp_path / "run-2", old, replaces=fingerprint(old))
    assert (old / "file").read_text() == "new"


@pytest.mark.parametrize("taken", ["file", "folder", "link"])
def test_a_place_that_holds_something_is_refused_before_anything_is_written(tmp_path, taken):
    place = tmp_path / "place"
    if taken == "file":
        place.write_text("")
    elif taken == "folder":
        place.mkdir()
        (place / "file").write_text("")
    else:
        place.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputExists), whole_folder(place):
        pytest.fail("not reached")


def test_a_lock_ends_with_its_block(tmp_path):
    with locked(tmp_path), pytest.raises(BlockingIOError), locked(tmp_path):
        pytest.fail("not reached")
    with locked(tmp_path) as is_locked:
        assert is_locked


def test_threads_that_write_one_file_leave_one_whole_one(tmp_path):
    def write(k: int) -> None:
        for _ in range(20):
            write_text(tmp_path / "file", str(k) * 1000)

    threads = [threading.Thread(target=write, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set((tmp_path / "file").read_text())) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["file"]

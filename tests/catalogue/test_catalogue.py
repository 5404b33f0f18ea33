"""What the catalogue knows, how it is asked, and what two writers, a kill and changed files leave of it."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from lorahub_edge.catalogue import Catalogue, Query, database, entry
from lorahub_edge.errors import InvalidInput, LorahubEdgeError
from tests import tiny
from tests.catalogue.conftest import N_MODULES

PROGRAM = """
import os, signal, sys
from lorahub_edge.catalogue import Catalogue, catalogue
path, last, *folders = sys.argv[1:]
insert, count = catalogue.insert, iter(range(10**6))

def insert_or_die(connection, entry):
    named = insert(connection, entry)
    if next(count) == int(last):
        os.kill(os.getpid(), signal.SIGKILL)
    return named

catalogue.insert, catalogue._COMMIT_EVERY_S = insert_or_die, -1
print(len(Catalogue(path).add(folders).added))
"""


def adding(catalogue, folders, *, last=-1) -> subprocess.Popen:
    """A process that adds folders, one transaction each, and kills itself in the transaction number `last`."""
    arguments = [sys.executable, "-c", PROGRAM, str(catalogue.path), str(last), *map(str, folders)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def names(entries):
    return [entry.name for entry in entries]


def test_a_large_catalogue_answers_without_any_file_of_its_modules(many, catalogued):
    away = many.with_name("away")
    many.rename(away)
    try:
        assert len(catalogued.entries()) == N_MODULES
        found = catalogued.search("sentim review rank:4 licence:mit tag:group-5")
        assert names(sorted(found, key=lambda e: e.name)) == [f"n{k:04d}" for k in range(5, N_MODULES, 10)]
        assert names(catalogued.search("1234")) == ["n1234"]
        assert len(catalogued.search("all base:Other")) == N_MODULES // 20
        assert catalogued.search("sentiment verbs") == []
    finally:
        away.rename(many)


def test_without_an_index_texts_are_searched_all_the_same(few, tmp_path, monkeypatch):
    (few / "m1" / "README.md").write_text("Trained on 100% of_it.")
    indexed = Catalogue(tmp_path / "indexed")
    indexed.add(few)
    monkeypatch.setattr(database, "_has_fts5", lambda connection: False)
    with pytest.raises(LorahubEdgeError, match="needs a SQLite with FTS5"):
        indexed.entries()
    plain = Catalogue(tmp_path / "plain")
    plain.add(few)
    for words, found in {"train 100%": ["m1"], "of_it": ["m1"], "1%0": [], "m": ["m0", "m1", "m2", "m3"]}.items():
        assert names(plain.search(words)) == found
    monkeypatch.undo()
    assert names(plain.search("trained")) == names(indexed.search("trained")) == ["m1"]
    plain.remove(["m1"])
    assert plain.search("trained") == []


def test_an_entry_has_what_the_folder_says(bases, few, catalogue):
    tiny.save_module(bases["t5"], few / "wide", "t5", seed=1, r=8, lora_alpha=4, base_name="org/base")
    head = "---\nlicense: 'mit'\ntags: [a, \"b c\"]\n---\nA card."
    (few / "wide" / "README.md").write_text(head)
    (few / "wide" / "training_rows.jsonl").write_text('{"input": "a question", "target": "its answer"}\n')
    catalogue.add(few)
    found = catalogue.get("wide")
    assert (found.rank, found.alpha, found.base, found.weights) == (8, 4, "org/base", "F32")
    assert (found.targets, found.licence, found.tags) == (("q", "v"), "mit", ("a", "b c"))
    assert (found.card, found.words) == (head, f"{head}\na question\nits answer")
    assert names(catalogue.search("answer")) == ["wide"]
    sizes = {path.name: path.stat().st_size for path in (few / "wide").iterdir()}
    assert {name: record.n_bytes for name, record in found.files.items()} == sizes
    assert found.n_bytes == sum(sizes.values())
    assert (catalogue.search("answer")[0].words, catalogue.pool("answer")[0].words) == ("", found.words)


def test_what_is_unchanged_is_not_read_again(few, catalogue, monkeypatch):
    hashed = []
    real = entry.sha256_file
    monkeypatch.setattr(entry, "sha256_file", lambda path: hashed.append(path) or real(path))
    catalogue.add(few)
    assert {path.parent.name for path in hashed} == {"m0", "m1", "m2", "m3"}
    hashed.clear()
    (few / "m2" / "README.md").write_text("A card.")
    os.utime(few / "m3" / "adapter_config.json")
    again = catalogue.add([few, few / "m0"])
    assert (len(again.added), names(again.updated), again.n_unchanged) == (0, ["m2", "m3"], 3)
    assert {path.parent.name for path in hashed} == {"m2", "m3"}
    assert (names(catalogue.search("card")), len(catalogue.entries())) == (["m2"], 4)


def test_modules_of_one_name_are_told_apart(few, catalogue, tmp_path):
    other = shutil.copytree(few, tmp_path / "other")
    third = shutil.copytree(few / "m0", tmp_path / "third" / "other" / "m0")
    catalogue.add([few, other, third, "pocket/sound"])
    expected = ["m0", "m1", "m2", "m3", "other/m0", "other/m1", "other/m2", "other/m3", str(third), "sound"]
    assert sorted(names(catalogue.entries())) == sorted(expected)
    catalogue.remove(["m0", "other/m1"])
    assert len(catalogue.entries()) == 8
    with pytest.raises(InvalidInput, match="has no module 'm0'; see lorahub-edge hub list"):
        catalogue.remove(["m1", "m0"])
    assert catalogue.get("m1").folder == few / "m1"


def test_verify_names_what_is_missing_or_changed(few, catalogue):
    catalogue.add(few)
    weights = few / "m1" / "adapter_model.safetensors"
    content, status = weights.read_bytes(), weights.stat()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))  # only its hash tells
    (few / "m2" / "adapter_config.json").unlink()
    shutil.rmtree(few / "m3")
    faults = {check.name: check.faults for check in catalogue.verify()}
    assert faults["m0"] == ()
    assert faults["m1"] == ("adapter_model.safetensors: changed",)
    assert "adapter_config.json: missing" in faults["m2"]
    assert len(faults["m3"]) == len(list((few / "m0").iterdir()))
    assert [check.name for check in catalogue.verify(["m2"])] == ["m2"]


def test_a_pool_is_by_name_without_other_bases_and_whole(few, catalogue, bases):
    tiny.save_module(bases["t5"], few / "x", "t5", seed=1, base_name="org/other")
    tiny.save_module(bases["t5"], few / "y", "t5", seed=1, base_name="org/this")
    catalogue.add(few)
    assert names(catalogue.pool("all", ["here/This@main"])) == ["m0", "m1", "m2", "m3", "y"]
    assert names(catalogue.pool("base:other")) == ["x"]
    with pytest.raises(
        InvalidInput, match="no module matches; 1 that match are for another base; see lorahub-edge hub"
    ):
        catalogue.pool("x", ["org/this"])
    os.utime(few / "m0" / "adapter_config.json")  # its content is what counts
    catalogue.pool("m0")
    (few / "m0" / "adapter_config.json").write_text("{}")
    with pytest.raises(
        InvalidInput, match=r"module 'm0' .*adapter_config.json: changed since.*lorahub-edge hub verify"
    ):
        catalogue.pool("all")
    shutil.rmtree(few / "m0")
    with pytest.raises(InvalidInput, match=r"module 'm0' .*: missing since.*lorahub-edge hub verify"):
        catalogue.pool("all")
    assert names(catalogue.pool("m1")) == ["m1"]


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("all", Query()),
        ("all rank:16", Query(rank=16)),
        ("a b licence:mit base:org/x tag:t", Query(("a", "b"), "org/x", None, "mit", "t")),
        ("", None),
        ("rank:", None),
        ("rank:many", None),
        ("rank:1 rank:2", None),
        ("colour:red", None),
    ],
)
def test_a_query_is_words_and_filters(text, query):
    if query is None:
        with pytest.raises(InvalidInput, match=r"^query"):
            Query.parse(text)
    else:
        assert Query.parse(text) == query


@pytest.mark.parametrize("words", ['"', '"" OR name', "*", "NEAR(", "a\x00b", "'; DROP TABLE modules", "\udcff"])
def test_words_are_never_a_language(few, catalogue, words):
    catalogue.add(few)
    assert catalogue.search(Query((words,))) == []
    assert len(catalogue.entries()) == 4


def test_two_processes_that_add_at_once_lose_nothing(many, catalogue):
    folders = sorted(many.iterdir())[:120]
    shared = folders[40:80]
    processes = [adding(catalogue, part) for part in (folders[:80], [*shared, *folders[80:]])]
    added = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum(added) <= 120  # what the other one had already added was updated, or unchanged
    assert names(catalogue.entries()) == [folder.name for folder in folders]
    assert len(catalogue.search("n")) == 120


@pytest.mark.parametrize("last", [0, 5])
def test_a_kill_in_mid_add_leaves_all_that_was_added_before(many, catalogue, last):
    folders = sorted(many.iterdir())[:10]
    process = adding(catalogue, folders, last=last)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    if last:
        assert names(catalogue.entries()) == [folder.name for folder in folders[:last]]
    again = catalogue.add(folders)
    assert (len(again.added), again.n_unchanged) == (10 - last, last)
    assert len(catalogue.search("trained")) == 10


def test_one_that_is_refused_keeps_no_other_out(few, catalogue):
    (few / "m0" / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    (few / "m1" / "adapter_model.safetensors").write_bytes(b"\x00" * 20)
    (few / "m2").rename(few / "m\x1b[2J")
    done = catalogue.add([few, few / "none"])
    assert names(done.added) == ["m3"]
    reasons = [done.refused[str(few / name)] for name in ("m0", "m1", "m\x1b[2J", "none")]
    for reason, part in zip(reasons, ["'LORA'", "not a whole", "control characters", "was not found"], strict=True):
        assert part in reason
        assert "\x1b" not in reason


def test_what_was_read_before_an_interrupt_is_kept(few, catalogue):
    def stop_at_m2(name):
        if name == "m2":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        catalogue.add(few, on_added=stop_at_m2)
    assert names(catalogue.entries()) == ["m0", "m1"]

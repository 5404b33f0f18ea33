"""The cache keeps what it was given, notices what is broken, and never stands in the way."""

import os
import threading

import pytest

from lorahub_edge.cache import Cache, CacheWarning, default_cache, key_of
from lorahub_edge.sources import sha256_file


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache", max_bytes=10_000, min_bytes=0)


def write(content=b"values"):
    def into(folder):
        (folder / "data.bin").write_bytes(content)
        return {"n": len(content)}

    return into


def test_an_entry_comes_back_with_its_files_and_its_record(cache):
    assert cache.open("a") is None
    cache.store("a", write())
    entry = cache.open("a")
    assert entry.record == {"n": 6}
    assert (entry.folder / "data.bin").read_bytes() == b"values"


@pytest.mark.parametrize("harm", ["flip a bit", "cut", "delete", "break the record", "empty the record"])
def test_a_broken_entry_is_dropped_with_a_warning_and_can_be_made_again(cache, harm):
    cache.store("a", write())
    folder = cache.open("a").folder
    data, record = folder / "data.bin", folder / "entry.json"
    {
        "flip a bit": lambda: data.write_bytes(b"valueS"),
        "cut": lambda: data.write_bytes(b"value"),
        "delete": data.unlink,
        "break the record": lambda: record.write_text("{"),
        "empty the record": lambda: record.write_text("{}"),
    }[harm]()
    with pytest.warns(CacheWarning, match="made again"):
        assert cache.open("a") is None
    assert not folder.exists()
    cache.store("a", write())
    assert cache.open("a") is not None


def test_starts_at_the_same_time_leave_one_whole_entry(cache):
    barrier = threading.Barrier(8)

    def start():
        def slowly(folder):
            barrier.wait()
            return write(b"x" * 100)(folder)

        cache.store("a", slowly)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (cache.open("a").folder / "data.bin").read_bytes() == b"x" * 100
    assert [p.name for p in (cache.folder / "entries").iterdir()] == ["a"]


def test_an_entry_that_fails_half_way_leaves_nothing(cache):
    def fail(folder):
        write()(folder)
        raise OSError("No space left on device")

    with pytest.warns(CacheWarning, match="No space left"):
        cache.store("a", fail)
    assert cache.open("a") is None
    assert list((cache.folder / "entries").iterdir()) == []


def test_a_folder_that_cannot_be_made_costs_a_warning_only(tmp_path):
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file" / "cache")
    with pytest.warns(CacheWarning, match="cannot be written"):
        cache.store("a", write())
    assert cache.open("a") is None


def test_entries_used_longest_ago_make_room(cache):
    for second, name in enumerate("abc"):
        cache.store(name, write(b"x" * 3000))
        os.utime(cache.open(name).folder / "entry.json", (second, second))
    assert cache.open("a") is not None, "b is now the one used longest ago"
    cache.store("d", write(b"x" * 3000))
    assert [cache.open(name) is not None for name in "abcd"] == [True, False, True, True]


def test_a_hash_is_remembered_until_the_file_changes(cache, tmp_path, monkeypatch):
    path = tmp_path / "weights"
    path.write_bytes(b"1" * (5 << 20))
    first = cache.sha256_file(path)
    assert first == sha256_file(path)
    monkeypatch.setattr("lorahub_edge.cache.sha256_file", lambda _: "read again")
    assert cache.sha256_file(path) == first
    path.write_bytes(b"2" * (5 << 20))
    assert cache.sha256_file(path) == "read again"


def test_keys_depend_on_every_part():
    assert key_of("base", a=1, b=2) == key_of("base", b=2, a=1)
    assert len({key_of("base", a=1), key_of("base", a=2), key_of("stack", a=1), key_of("base", a=1, b=None)}) == 4


def test_the_users_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("LORAHUB_EDGE_CACHE", str(tmp_path))
    monkeypatch.setenv("LORAHUB_EDGE_CACHE_BYTES", "123")
    assert default_cache() == Cache(tmp_path, max_bytes=123)
    monkeypatch.setenv("LORAHUB_EDGE_CACHE", "off")
    assert default_cache() is None
    monkeypatch.delenv("LORAHUB_EDGE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert default_cache().folder == tmp_path / "home" / "lorahub_edge"

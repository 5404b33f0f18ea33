"""A catalogue, a card or a folder name that a stranger made: one clear line, and nothing of it is carried out."""

import json
import sqlite3
from contextlib import closing

import pytest
from typer.testing import CliRunner

from lorahub_edge.catalogue import Catalogue, rows
from lorahub_edge.catalogue.card import CardHead, card_head
from lorahub_edge.cli import app
from lorahub_edge.errors import LorahubEdgeError
from lorahub_edge.modules import find_modules


def changed_by(statement):
    def change(path):
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA writable_schema = ON")
            connection.execute(statement)
            connection.commit()

    return change


def damaged(path):
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)


def huge(path):
    with open(path, "r+b") as file:
        file.truncate((4 << 30) + 1)


def a_folder(path):
    path.unlink()
    path.mkdir()


def another(path):
    path.unlink()
    changed_by("CREATE TABLE modules (id INTEGER)")(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(b"no database, but long enough to be one" * 50), "is no SQLite file"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "damaged"),
        (damaged, "damaged"),
        (huge, "expected at most 4 GiB"),
        (a_folder, "is no file"),
        (another, "is another program's SQLite file"),
        (changed_by("PRAGMA user_version = 2"), "schema 2, made by a newer lorahub-edge; this one reads 1"),
        (changed_by("PRAGMA application_id = 1"), "is another program's SQLite file"),
        (changed_by("CREATE TRIGGER t AFTER DELETE ON modules BEGIN SELECT 1; END"), "is another program's"),
        (changed_by("CREATE VIEW v AS SELECT load_extension('x')"), "is another program's"),
        (changed_by("CREATE INDEX i ON modules (hex(name))"), "is another program's"),
        (changed_by("UPDATE sqlite_master SET sql = sql || ' STRICT' WHERE name = 'modules'"), "another program's"),
        (changed_by("UPDATE sqlite_master SET type = 'view', sql = 'CREATE VIEW modules AS SELECT 1'"), "damaged"),
        (changed_by("UPDATE modules SET files = '{'"), "'m0|module m0 of the catalogue is damaged"),
        (changed_by('UPDATE modules SET files = \'{"../x": ["", 1, 1]}\''), "'../x' is no name of a file"),
        (changed_by("UPDATE modules SET tags = 7, rank = 'x'"), "is damaged"),
    ],
)
def test_a_file_that_is_no_catalogue_of_ours_is_one_line(few, catalogue, change, message):
    catalogue.add(few)
    change(catalogue.path)
    for command in (["list"], ["search", "m0"], ["add", str(few)], ["verify"], ["remove", "m0"]):
        result = CliRunner().invoke(app, ["hub", *command, "--catalogue", str(catalogue.path)])
        lines = result.stderr.splitlines()
        assert (result.exit_code, result.stdout, len(lines)) == (1, "", 1), result.output
        assert lines[0].startswith("error: ")
        assert any(part in lines[0] for part in message.split("|"))


def test_an_early_file_is_made_a_catalogue_and_none_is_one_line(few, catalogue):
    result = CliRunner().invoke(app, ["hub", "list", "--catalogue", str(catalogue.path)])
    assert result.exit_code == 1
    assert result.stderr == f"error: catalogue {catalogue.path} does not exist; lorahub-edge hub add makes it\n"
    catalogue.path.touch()  # as a start that was killed leaves it
    assert len(catalogue.add(few).added) == 4


@pytest.mark.parametrize("place", ["/proc/nowhere/catalogue", "{few}/m0/README/x", "{few}/m0/adapter_config.json/x"])
def test_a_place_that_cannot_be_written_is_one_line(few, place):
    catalogue = Catalogue(place.format(few=few))
    if "README" in place:
        (few / "m0" / "README").touch()
    with pytest.raises(LorahubEdgeError, match=r"^catalogue .* cannot be read or written \("):
        catalogue.add(few)


def test_a_transaction_that_fails_leaves_nothing_of_it(few, catalogue, monkeypatch):
    catalogue.add(few / "m0")
    monkeypatch.setattr(rows, "_JSON", (*rows._JSON, "no column"))
    with pytest.raises(KeyError):
        catalogue.add(few)
    monkeypatch.undo()
    assert [entry.name for entry in catalogue.entries()] == ["m0"]


BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghij", "bcdefghijk", strict=True))


@pytest.mark.parametrize(
    ("card", "head"),
    [
        ("---\nlicense: mit\ntags:\n  - a\n- 'b'\nbase: x\n---\nlicense: other", CardHead("mit", ("a", "b"))),
        ("---\r\nlicense: MIT # why\r\ntags: []\r\n---\r\n", CardHead("MIT # why")),
        ("license: mit", CardHead()),
        ("---\n!!python/object/apply:os.system ['touch /tmp/x']\nlicense: mit\n---", CardHead("mit")),
        (f"---\n{BOMB}license: mit\ntags: *k\n---", CardHead("mit", ("*k",))),
        ("---\n" + "[" * 60000, CardHead()),
        ("---\n" + "- x\n" * 60000, CardHead()),
        ("---\nlicense:\n  name: mit\ntags:\n" + "- t\n" * 1000, CardHead(None, ("t",) * 100)),
        ("---\nlicense: " + "m" * 60000, CardHead("m" * 100)),
        ("", CardHead()),
    ],
)
def test_a_cards_head_is_read_line_by_line(card, head):
    assert card_head(card) == head


def test_texts_of_strangers_have_no_power_over_the_terminal(few, catalogue):
    config = json.loads((few / "m0" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "org/\x1b]0;base\x07"
    (few / "m0" / "adapter_config.json").write_text(json.dumps(config))
    (few / "m0" / "README.md").write_bytes(b"---\nlicense: \x1b[2Jmit\ntags: [\x9b1m, \xff]\n---\nA \x1b[31mcard\r.\n")
    for command in (["add", str(few)], ["list"], ["search", "m0"], ["show", "m0"], ["verify"], ["remove", "m0"]):
        for flags in ([], ["--json"]):
            if command[0] == "remove" and flags:
                catalogue.add(few)
            result = CliRunner().invoke(app, ["hub", *command, *flags, "--catalogue", str(catalogue.path)])
            assert result.exit_code == 0, result.output
            assert result.output.isprintable() or set(result.output) & {*map(chr, range(32)), "\x9b"} == {"\n"}


def test_a_catalogue_cannot_name_a_module_by_control_characters(few, catalogue, monkeypatch):
    catalogue.add(few)
    changed_by("UPDATE modules SET name = 'a' || char(27) || '[2J' WHERE name = 'm0'")(catalogue.path)
    monkeypatch.setenv("LORAHUB_EDGE_CATALOGUE", str(catalogue.path))
    with pytest.raises(LorahubEdgeError, match="its name has control characters"):
        find_modules("hub:all")

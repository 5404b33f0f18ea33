"""A sweep's file is checked whole, before anything slow begins, and a mistake is one line."""

import pytest

from lorahub_edge.errors import InvalidInput
from lorahub_edge.sweeping.file import read_sweep

GOOD = """
tasks = ["pocket"]
[pools]
all = "pocket"
[settings]
budget = 4
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("tasks", "task"), r"s\.toml: key 'task' is not known; did you mean 'tasks'\?"),
        (("budget = 4", "buget = 4"), r"settings: key 'buget' is not known; did you mean 'budget'\?"),
        (("budget = 4", "max_memory = '1GB'"), "settings: key 'max_memory' is not known"),
        (('tasks = ["pocket"]', ""), r"'tasks' is missing; expected a list of tasks, such as"),
        (('tasks = ["pocket"]', "tasks = [1]"), "tasks: expected a list of tasks, .* received 1"),
        (('tasks = ["pocket"]', 'tasks = ["pocket", "pocket"]'), "tasks: expected a list"),
        (("[pools]", 'seeds = "1"\n[pools]'), "seeds: expected a number n for seeds 1 to n, or a list"),
        (("[pools]", "seeds = [1, 1]\n[pools]"), "seeds: expected .*, each once, received"),
        (("[pools]", "seeds = 0\n[pools]"), "seeds: expected"),
        (("[pools]", 'presets = ["egde"]\n[pools]'), "preset 'egde' is not known; expected edge"),
        (("all =", '"a/b" ='), "pools: expected short names of letters, .* received 'a/b'"),
        (("all =", '"a--b" ='), "pools: expected short names"),
        (('[pools]\nall = "pocket"', 'pools = "pocket"'), "pools: expected a table of names and modules"),
        (("budget = 4", "budget = 0"), r"s\.toml: budget: expected a whole number"),
        (("budget = 4", 'null_control = "no"'), "settings.null_control: expected true or false, received 'no'"),
        (("budget = 4", "device = 1"), "settings.device: expected a text, received 1"),
        (("budget = 4", "n_test = -1"), "n_test: expected a whole number"),
        (("budget = 4", 'choose_modules = "random"'), "expected max_modules, how many"),
        (("[pools]", "[pools"), r"s\.toml: not readable as TOML \(.*line 3"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_place(tmp_path, change, message):
    assert change[0] in GOOD
    path = tmp_path / "s.toml"
    path.write_text(GOOD.replace(*change))
    with pytest.raises(InvalidInput, match=message) as raised:
        read_sweep(path)
    assert "\n" not in str(raised.value)
    assert "s.toml" in str(raised.value)


def test_what_is_left_out_has_a_default_and_paths_are_the_file_s(tmp_path):
    (tmp_path / "mine").mkdir()
    path = tmp_path / "s.toml"
    path.write_text(GOOD.replace('"pocket"]', '"mine", "pocket"]'))
    file = read_sweep(path)
    assert (file.base, file.presets, file.seeds, file.pools) == ("pocket", ("edge",), (1,), {"all": ("pocket",)})
    assert file.tasks == (str((tmp_path / "mine").resolve()), "pocket")
    assert [file.draw(seed)["example_seed"] for seed in (1, 2)] == [42, 43]
    with pytest.raises(InvalidInput, match=r"nowhere\.toml: not readable as TOML \(.*No such file"):
        read_sweep(tmp_path / "nowhere.toml")

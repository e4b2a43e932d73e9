"""The command line that a recipe gets from its Config: values, presets, help, errors, and what Ctrl-C says."""

import dataclasses
import importlib
import io
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Literal

import pytest

from recipes import _main
from recipes.__main__ import list_programs

PROJECT = Path(__file__).resolve().parents[2]
PROGRAMS = list_programs()


@dataclasses.dataclass(frozen=True)
class Seeded:
    seed: int = 0  # of everything that is drawn


@dataclasses.dataclass(frozen=True)
class Config(Seeded):
    population: int = 16  # cells that are alive at once
    # step size
    # of the optimiser
    rate: float = 0.1
    replacement: Literal["aging", "worst"] = "aging"  # which cell dies
    cutout: bool = True  # blank a square
    sizes: tuple[int, ...] = (1, 2)
    crop: tuple[int, float] = (3, 0.5)
    names: list[str] = dataclasses.field(default_factory=list, metadata={"help": "from the metadata"})  # not from here
    limit: int | None = dataclasses.field(default=None, metadata={"old_names": ("bound",)})
    tag: str = "a # b"  # after a text with a #
    image_size: int = 8
    folder: Path = Path("runs/toy")  # what is kept
    derived: int = dataclasses.field(default=1, init=False)

    def __post_init__(self):
        if self.population < 1:
            raise ValueError(f"population={self.population}: a population has at least 1 cell")


PRESETS = {"laptop": Config(), "paper": Config(population=100, cutout=False), "smoke": Config(population=2)}


def parse(*arguments: str) -> Config:
    return _main.parse(arguments, PRESETS)


def test_no_flags_give_the_first_preset():
    assert parse() == PRESETS["laptop"]


def test_a_preset_gives_the_defaults_and_explicit_flags_win_in_any_order():
    assert parse("--preset=paper") == PRESETS["paper"]
    assert parse("--population=3", "--preset=paper") == Config(population=3, cutout=False)
    assert parse("--preset", "paper", "--population", "3") == Config(population=3, cutout=False)


def test_a_flag_that_repeats_the_laptop_value_still_wins_over_the_preset():
    assert parse("--preset=paper", "--population=16").population == 16


@pytest.mark.parametrize(
    ("argument", "field", "value"),
    [
        ("--seed=0", "seed", 0),
        ("--seed=-1", "seed", -1),
        ("--rate=1e-3", "rate", 0.001),
        ("--rate=1", "rate", 1.0),
        ("--cutout", "cutout", True),
        ("--nocutout", "cutout", False),
        ("--cutout=false", "cutout", False),
        ("--replacement=worst", "replacement", "worst"),
        ("--sizes=4, 5,6", "sizes", (4, 5, 6)),
        ("--sizes=", "sizes", ()),
        ("--crop=8,0.25", "crop", (8, 0.25)),
        ("--names=a,b", "names", ["a", "b"]),
        ("--limit=7", "limit", 7),
        ("--limit=none", "limit", None),
        ("--folder=a b/c", "folder", Path("a b/c")),
        ("--folder=~/c", "folder", Path.home() / "c"),
    ],
)
def test_a_flag_becomes_a_value_of_its_fields_type(argument: str, field: str, value: object):
    found = getattr(parse(argument), field)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("--populaton=3", "unknown flag --populaton; did you mean --population?"),
        ("--preset=papr", "expected one of laptop, paper, smoke; did you mean paper?"),
        ("--replacement=agin", "--replacement=agin: expected one of aging, worst; did you mean aging?"),
        ("--population=ten", "--population=ten: expected a whole number"),
        ("--population=1.5", "--population=1.5: expected a whole number"),
        ("--rate=fast", "--rate=fast: expected a number"),
        ("--cutout=maybe", "--cutout=maybe: expected true or false"),
        ("--crop=1", "--crop=1: expected 2 values separated by commas, got 1"),
        ("--sizes=1,x", "--sizes=1,x: expected a whole number"),
        ("--limit=x", "--limit=x: expected a whole number"),
        ("--derived=3", "unknown flag --derived"),
        ("--population", "Missing value for flag --population"),
        ("paper", "unexpected 'paper': every option is written --name=value"),
    ],
)
def test_a_wrong_command_line_is_named_with_what_was_expected(argument: str, text: str):
    with pytest.raises(_main.UsageError) as error:
        parse(argument)
    assert text in str(error.value)


def test_the_config_checks_its_own_values():
    with pytest.raises(ValueError, match="population=0: a population has at least 1 cell"):
        parse("--population=0")


def test_an_old_name_is_taken_with_a_warning(capsys: pytest.CaptureFixture):
    assert parse("--bound=7").limit == 7
    assert "--bound is called --limit now" in capsys.readouterr().err
    with pytest.raises(_main.UsageError, match="--bound is the old name of --limit"):
        parse("--bound=7", "--limit=7")
    assert "bound" not in _main.help_text(PRESETS, "", "")


def test_flags_can_come_from_a_file(tmp_path: Path):
    (tmp_path / "flags").write_text("--population=5\n# a remark\n--nocutout\n")
    assert parse(f"--flagfile={tmp_path / 'flags'}") == Config(population=5, cutout=False)


def test_a_field_that_no_flag_can_hold_fails_at_once():
    @dataclasses.dataclass(frozen=True)
    class Odd:
        table: dict = dataclasses.field(default_factory=dict)

    with pytest.raises(TypeError, match="no flag can hold"):
        _main.parse([], {"laptop": Odd()})


def test_help_shows_each_flag_with_its_comment_type_and_presets():
    text = _main.help_text(PRESETS, "python -m recipes.toy", "A toy.")
    assert "usage: python -m recipes.toy [--preset=laptop|paper|smoke]" in text
    assert "A toy." in text
    sections = {section.split()[0]: " ".join(section.split()) for section in text.split("\n  --")[1:]}
    assert sections["population=int"].endswith("cells that are alive at once default: laptop 16, paper 100, smoke 2")
    assert sections["rate=float"].endswith("step size of the optimiser default: 0.1")
    assert sections["seed=int"].endswith("of everything that is drawn default: 0")
    assert sections["tag=text"].endswith("after a text with a # default: a # b")
    assert "from the metadata" in sections["names=text,..."]
    assert "replacement=aging|worst" in sections
    assert "[no]cutout" in sections
    assert "limit=int|none" in sections
    assert "logtostderr" not in text


def test_a_comment_for_a_formatter_is_no_help():
    @dataclasses.dataclass(frozen=True)
    class Skipped:
        # which one
        width: int = 1  # fmt: skip
        depth: int = 2  # how deep  # fmt: skip

    assert _main.field_help(Skipped) == {"width": "which one", "depth": "how deep"}


def test_usage_names_the_field_that_takes_words():
    from recipes import predict

    usage = _main.help_text(predict.PRESETS, "python -m recipes.predict", "").splitlines()[0]
    assert usage == "usage: python -m recipes.predict [--preset=laptop] [--flag=value ...] IMAGES"


def test_run_calls_the_recipe_with_the_config(capsys: pytest.CaptureFixture):
    seen = []
    _main.run(seen.append, PRESETS, ["--seed=4"])
    assert seen == [Config(seed=4)]
    assert capsys.readouterr() == ("", "")


def test_help_is_an_exit_of_zero(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as stop:
        _main.run(parse, PRESETS, ["--help", "--seed=4"])
    assert stop.value.code == 0
    assert "The command line that a recipe gets" in capsys.readouterr().out  # the docstring of the recipe's module


def _raise_ours(config: Config) -> None:
    parse("--populaton=1")


def _open_a_missing_file(config: Config) -> None:
    Path("/nowhere/at/all").read_bytes()


def _stumble(config: Config) -> None:
    textwrap.wrap("x", width=0)  # a ValueError from deep inside a library is no message for a user


def _refuse(config: Config) -> None:
    raise ValueError("image_size is 8, and limit=3: give the size=, or data.limit=, a larger input_shape, 'image_size'")


def test_errors_name_flags_as_a_user_types_them(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(_main, "_OUR_PACKAGES", (__name__.partition(".")[0],))
    for recipe, arguments in [(_refuse, []), (parse, ["--population=0"])]:
        with pytest.raises(SystemExit):
            _main.run(recipe, PRESETS, arguments)
    assert capsys.readouterr().err.splitlines() == [
        "error: --image_size is 8, and --limit=3: give the --image_size=, or data.limit=, a larger --image_size, "
        "'image_size'",
        "error: --population=0: a population has at least 1 cell",
    ]


@pytest.mark.parametrize("folder", ["file/results", "file"])
def test_a_folder_that_cannot_be_made_is_found_before_the_work(folder, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "file").touch()
    seen = []
    with pytest.raises(SystemExit):
        _main.run(seen.append, PRESETS, [f"--folder={tmp_path / folder}"])
    error = capsys.readouterr().err
    assert f"error: --folder={tmp_path / folder}: nothing can be written there (Not a directory)" in error
    assert not seen


def test_a_folder_that_is_free_to_use_is_not_made_before_the_work(tmp_path: Path):
    seen = []
    _main.run(seen.append, PRESETS, [f"--folder={tmp_path / 'new'}"])
    assert [config.folder for config in seen] == [tmp_path / "new"]
    assert not list(tmp_path.iterdir())


def test_a_name_that_the_terminal_cannot_show_is_printed_all_the_same(monkeypatch: pytest.MonkeyPatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    _main.run(lambda config: print("caf\xe9", flush=True), PRESETS, ["--folder=."])
    assert written.getvalue() == b"caf\\xe9\n"


def test_programs_say_that_they_need_tensorflow(monkeypatch, tmp_path: Path, capsys: pytest.CaptureFixture):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(SystemExit):
        _main.run(parse, PRESETS, [])
    monkeypatch.delenv("KERAS_BACKEND")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "keras.json").write_text('{"backend": "torch"}')
    with pytest.raises(SystemExit):
        _main.run(parse, PRESETS, [])
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: Keras' backend is 'jax', and the programs need TensorFlow: set KERAS_BACKEND=")
    assert second.startswith("error: Keras' backend is 'torch'")


@pytest.mark.parametrize(
    ("recipe", "text"),
    [(_raise_ours, "error: unknown flag --populaton"), (_open_a_missing_file, "/nowhere/at/all")],
)
def test_an_error_for_the_user_is_one_line_and_an_exit_of_two(recipe, text: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as stop:
        _main.run(recipe, PRESETS, [])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ValueError, match="width"):
        _main.run(_stumble, PRESETS, [])


def test_traceback_flag_shows_where_an_error_for_the_user_was_raised():
    with pytest.raises(_main.UsageError):
        _main.run(_raise_ours, PRESETS, ["--traceback"])


TOY = '''
"""A toy that waits."""
import dataclasses, signal, sys, time
from pathlib import Path
from recipes import _main
from recipes.__main__ import list_programs

@dataclasses.dataclass(frozen=True)
class Config:
    seconds: float = 0.0  # how long it waits
    lines: int = 1  # how much it prints
    folder: Path = Path("runs/toy")  # what is kept

def wait(config):
    for _ in range(config.lines):
        print("ready", flush=True)
    time.sleep(config.seconds)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background have it ignored
    _main.run(wait, {"laptop": Config()})
'''


@pytest.fixture
def toy(tmp_path: Path) -> dict:
    """Arguments of subprocess for `python -m toy` in a folder of its own."""
    (tmp_path / "toy.py").write_text(TOY)
    path = os.pathsep.join([str(PROJECT), str(tmp_path)])
    return {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": path}, "text": True}


def test_ctrl_c_exits_with_130_and_one_line_that_tells_how_to_resume(toy: dict):
    command = [sys.executable, "-m", "toy", "--seconds=60", "--folder=a b"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **toy) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert error.strip() == (
        "Stopped. Finished work is kept in a b; the same command resumes: python -m toy --seconds=60 '--folder=a b'"
    )


LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
sys.argv = ["toy", "--folder=kept"]
runpy.run_module("toy", run_name="__main__", alter_sys=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit of a file's size")
def test_a_full_disk_is_found_before_the_work(toy: dict):
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, timeout=30, check=False, **toy)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --folder=kept: nothing can be written there (File too large). Free some")
    assert done.stdout == ""


def test_a_reader_that_has_seen_enough_is_no_error(toy: dict):
    command = f"{sys.executable} -m toy --lines=100000 | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, timeout=30, check=True, **toy)
    assert (done.stdout, done.stderr) == ("ready\n", "")


MUTED = """
import os, sys
sys.argv = ["-m"]
import recipes
import tensorflow
print(os.environ["TF_CPP_MIN_LOG_LEVEL"], tensorflow.__spec__.name)
"""


def test_programs_import_tensorflow_without_its_log_and_what_fails_is_shown(tmp_path: Path):
    package = tmp_path / "tensorflow.py"
    package.write_text("import os\nos.write(2, b'chatter\\n')\n")
    variables = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    variables["PYTHONPATH"] = os.pathsep.join([str(PROJECT), str(tmp_path)])
    command = [sys.executable, "-c", MUTED]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=30, check=True)
    assert (done.stdout, done.stderr) == ("3 tensorflow\n", "")

    chosen = variables | {"TF_CPP_MIN_LOG_LEVEL": "0"}
    done = subprocess.run(command, env=chosen, capture_output=True, text=True, timeout=30, check=True)
    assert (done.stdout, done.stderr) == ("0 tensorflow\n", "chatter\n")

    package.write_text("import os\nos.write(2, b'why\\n')\nraise ImportError('broken')\n")
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "why" in done.stderr
    assert "broken" in done.stderr


def test_the_package_lists_its_programs():
    command = [sys.executable, "-m", "recipes"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=30, check=True)
    listed = [line.split()[0] for line in done.stdout.splitlines()[2:] if line[2] != " "]
    searches = {"amoebanet", "darts", "enas", "mnasnet", "nasnet", "pnasnet", "tinynas"}
    assert searches | {"train", "finetune", "deploy", "quantize", "report", "tour"} <= set(listed)
    assert listed == list(PROGRAMS)
    assert "AmoebaNet: aging evolution over cells" in done.stdout


# What takes seconds to import.
HEAVY = {"tensorflow", "keras", "keras_tuner", "tf_keras", "tensorflow_datasets", "matplotlib", "ray"}
ANSWERS = """
import contextlib, io, runpy, sys
programs, heavy = sys.argv[1].split(","), set(sys.argv[2].split(","))
for name in programs:
    for argument, code in [("--help", 0), ("--nonsense=1", 2), ("--preset=nonsense", 2)]:
        sys.argv = [name, argument]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                runpy.run_module(f"recipes.{name}", run_name="__main__", alter_sys=True)
            except SystemExit as stop:
                assert stop.code == code, (name, argument, stop.code)
            else:
                raise AssertionError((name, argument))
    assert not heavy & set(sys.modules), (name, heavy & set(sys.modules))
"""


def test_help_and_errors_of_programs_import_nothing_that_takes_seconds():
    command = [sys.executable, "-c", ANSWERS, ",".join(PROGRAMS), ",".join(HEAVY)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_recipe_has_presets_and_a_help_text_for_every_flag(name: str):
    recipe = importlib.import_module(f"recipes.{name}")
    assert next(iter(recipe.PRESETS)) == "laptop"
    assert recipe.__doc__
    comments = _main.field_help(recipe.Config)
    for preset, config in recipe.PRESETS.items():
        assert type(config) is recipe.Config
        assert _main.parse([f"--preset={preset}"], recipe.PRESETS) == config
    assert not [field.name for field in dataclasses.fields(recipe.Config) if field.init and field.name not in comments]


@pytest.mark.parametrize(
    ("name", "old"), [("train", "scale"), ("finetune", "scale"), ("deploy", "size"), ("quantize", "size")]
)
def test_the_preset_of_the_model_has_one_name_and_the_old_ones_work(name: str, old: str, capsys):
    presets = importlib.import_module(f"recipes.{name}").PRESETS
    assert _main.parse([f"--{old}=cifar10"], presets) == _main.parse(["--model_preset=cifar10"], presets)
    assert f"--{old} is called --model_preset now" in capsys.readouterr().err

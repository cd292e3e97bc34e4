"""Command lines: config files that are none, and the list of settings."""

import dataclasses
import logging
from pathlib import Path

import pytest
from absl import flags
from refusals import one_line

from osdhuman_jax.cli import CommandError
from osdhuman_jax.commands.config_flags import define_config, load_config, settings, take_flag
from osdhuman_jax.commands.flags import speak
from osdhuman_jax.config import Config


@pytest.mark.parametrize(
    ("line", "value", "rest"),
    [
        ("train.py --config a.py --workdir=w", "a.py", "train.py --workdir=w"),
        ("train.py --config.run.steps=3 -config=b.py", "b.py", "train.py --config.run.steps=3"),
        ("train.py --config a.py --config=b.py", "b.py", "train.py"),
        ("train.py --config", None, "train.py"),
        ("train.py config a.py", None, "train.py config a.py"),
    ],
)
def test_a_flag_is_taken_from_the_line(line, value, rest):
    assert take_flag(line.split(), "config") == (value, rest.split())


def test_a_config_file_is_run_once(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from pathlib import Path\nfrom osdhuman_jax.config import Config\n"
        f"open({str(tmp_path / 'runs')!r}, 'a').write('x')\n"
        "def get_config():\n    return Config()\n"
    )
    values = flags.FlagValues()
    rest = define_config(["t", f"--config={path}", "--config.run.steps=3"], values)
    values(rest)
    assert values["config"].value.run.steps == 3
    assert (tmp_path / "runs").read_text() == "x"


@pytest.fixture
def plain(tmp_path) -> Path:
    """A config file that changes nothing."""
    path = tmp_path / "mine.py"
    path.write_text("from osdhuman_jax.config import Config\nget_config = Config\n")
    return path


@pytest.mark.parametrize("flag", ["nope", "optim.nope", "optim.nope.x", "run.steps.nope"])
def test_an_unknown_setting_is_one_line(plain, flag):
    with one_line(CommandError, f"--config.{flag}: .*no such setting: 'nope'.*see --help"):
        define_config(["t", f"--config={plain}", f"--config.{flag}=1"], flags.FlagValues())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def get_config(:", "SyntaxError"),
        ("import nothing_of_this_name", r"ModuleNotFoundError: .*\(line 1\)"),
        ("x = 3", "get_config"),
        ("import sys\ndef get_config():\n    sys.exit(0)", r"SystemExit: 0 \(line 3\)"),
        ("def get_config():\n    raise ValueError('no\\nway')", r"ValueError: no way \(line 2\)"),
        ("def get_config():\n    return {}", "gives no"),
        ("run:\n  steps: [", "SyntaxError"),
    ],
)
def test_a_file_that_is_no_config_is_one_line(tmp_path, text, said):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with one_line(CommandError, f"^{path}: .*{said}"):
        load_config(str(path))


def test_what_is_no_python_file_is_one_line(tmp_path):
    (tmp_path / "a.yaml").write_text("run: {}")
    for name, said in (("", "a folder"), ("b.py", "no such file"), ("a.yaml", "not a Python file")):
        with pytest.raises(CommandError, match=said):
            load_config(str(tmp_path / name))


def test_every_setting_is_listed_with_its_default():
    def names(kind: type, prefix: str) -> list[str]:
        found = []
        for field in dataclasses.fields(kind):
            name = f"{prefix}.{field.name}"
            nested = isinstance(field.type, type) and dataclasses.is_dataclass(field.type)
            found += names(field.type, name) if nested else [name]  # type: ignore[arg-type]
        return found

    lines = list(settings(Config, "config"))
    found = [line.strip().split("=")[0] for line in lines if line.startswith("  --")]
    assert found == [f"--{name}" for name in names(Config, "config")] and len(found) > 90
    bare = [line for line in lines if line.startswith("  --") and "  " not in line[4:]]
    assert not bare, "settings without a comment in the source"
    assert "  --config.lora.rank=4  paper" in lines
    assert any(
        line.startswith("  --config.model.unet.down_block_types=('Cross") and "mirrors" in line
        for line in lines
    )


def test_the_package_speaks_once(capfd):
    root, package = logging.getLogger(), logging.getLogger("osdhuman_jax")
    before = root.handlers[:], root.level, package.level
    try:
        speak()
        speak()
        logging.getLogger("osdhuman_jax.inference.programs").info("compiling")
        logging.getLogger("another").warning("chat")
    finally:
        root.handlers[:], root.level = before[:2]
        root.setLevel(before[1])
        package.setLevel(before[2])
    said = capfd.readouterr().err
    assert said.count("compiling") == 1 and "chat" not in said


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("optim.learning_rate=fast", "fast"),
        ("optim.warmup_steps=1.5", "1.5"),
        ("data.flip=maybe", "maybe"),
        ("optim=3", "optim"),
    ],
)
def test_a_value_of_another_type_is_refused(plain, flag, said):
    values = flags.FlagValues()
    with pytest.raises((flags.Error, TypeError, ValueError), match=said):
        values(define_config(["t", f"--config={plain}", f"--config.{flag}"], values))

"""Command lines: config files that are none, and the list of settings."""

import dataclasses
import logging
from pathlib import Path

import pytest

from osdhuman_jax.config import Config, ConfigError
from osdhuman_jax.flags import check_folder, flag_value, load_config, settings, speak


@pytest.mark.parametrize(
    ("argv", "value"),
    [
        (["train.py", "--config", "a.py", "--workdir=w"], "a.py"),
        (["train.py", "--config.run.steps=3", "-config=b.py"], "b.py"),
        (["train.py", "--config", "a.py", "--config=b.py"], "b.py"),
        (["train.py", "--config"], None),
        (["train.py", "config", "a.py"], None),
    ],
)
def test_value_of_a_flag(argv: list[str], value: str | None) -> None:
    assert flag_value(argv, "config") == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def get_config(:", "SyntaxError"),
        ("import nothing_of_this_name", r"ModuleNotFoundError: .*\(line 1\)"),
        ("x = 3", "get_config"),
        ("def get_config():\n    raise ValueError('no\\nway')", r"ValueError: no way \(line 2\)"),
        ("def get_config():\n    return {}", "gives no"),
        ("run:\n  steps: [", "SyntaxError"),
    ],
)
def test_a_file_that_is_no_config_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(str(path))
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_what_is_no_python_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("run: {}")
    for name, said in ((tmp_path, "a folder"), (tmp_path / "b.py", "no such file")):
        with pytest.raises(ConfigError, match=said):
            load_config(str(name))
    with pytest.raises(ConfigError, match="not a Python file"):
        load_config(str(tmp_path / "a.yaml"))


def test_a_config_may_take_an_argument(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from osdhuman_jax.config import Config\n"
        "def get_config(kind):\n    made = Config()\n    made.run.kind = kind\n    return made\n"
    )
    assert load_config(f"{path}:vae").run.kind == "vae"


@pytest.mark.parametrize("name", ["file", "file/run", "file/a/b", "dangling"])
def test_a_folder_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="--workdir .* is no folder"):
        check_folder("workdir", tmp_path / name)
    for fine in (tmp_path, tmp_path / "new" / "run"):
        check_folder("workdir", fine)
    assert not (tmp_path / "new").exists()


def test_every_setting_is_listed_with_its_default() -> None:
    def names(kind: type, prefix: str) -> list[str]:
        found = []
        for field in dataclasses.fields(kind):
            name = f"{prefix}.{field.name}"
            nested = isinstance(field.type, type) and dataclasses.is_dataclass(field.type)
            found += names(field.type, name) if nested else [name]  # type: ignore[arg-type]
        return found

    lines = list(settings(Config, "config"))
    flags = [line.strip().split("=")[0] for line in lines if line.startswith("  --")]
    assert flags == [f"--{name}" for name in names(Config, "config")] and len(flags) > 90
    assert "  --config.lora.rank=4  paper" in lines
    assert any(
        line.startswith("  --config.model.unet.down_block_types=('Cross") and "mirrors" in line
        for line in lines
    )


def test_the_package_speaks_once(capfd: pytest.CaptureFixture[str]) -> None:
    root, package = logging.getLogger(), logging.getLogger("osdhuman_jax")
    before = root.handlers[:], root.level, package.level
    try:
        speak()
        speak()
        logging.getLogger("osdhuman_jax.programs").info("compiling")
        logging.getLogger("another").warning("chat")
    finally:
        root.handlers[:], root.level = before[:2]
        root.setLevel(before[1])
        package.setLevel(before[2])
    said = capfd.readouterr().err
    assert said.count("compiling") == 1 and "chat" not in said

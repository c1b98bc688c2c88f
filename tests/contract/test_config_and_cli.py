"""Configuration precedence, and a command line whose errors and exit codes can be relied on."""

from __future__ import annotations

import importlib
import json
import pickle
import pkgutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

from skillserve import errors
from skillserve.cli import COMMANDS, Command, app, main
from skillserve.config import load_settings
from skillserve.errors import ConfigError, ParityError, SkillserveError
from skillserve.flags import Json, with_settings
from skillserve.settings import SearchSettings, Section, Settings


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "skillserve.toml"
    path.write_text('[search]\ncandidates = 10\ntop_k = 7\n[client]\nurl = "a:1"\n')
    return path


def test_flags_win_over_the_environment_and_that_over_the_file(toml: Path) -> None:
    environ = {"SKILLSERVE_SEARCH_CANDIDATES": "20", "SKILLSERVE_SEARCH_RERANK_DEPTH": "3", "HOME": "/"}
    settings = load_settings(toml, flags={"search.candidates": 30, "search.top_k": None}, environ=environ)
    assert settings.search.candidates == 30
    assert settings.search.rerank_depth == 3
    assert settings.search.top_k == 7
    assert settings.client.url == "a:1"


def test_the_file_can_be_named_by_the_environment(toml: Path) -> None:
    assert load_settings(environ={"SKILLSERVE_CONFIG": str(toml)}).search.candidates == 10


def test_without_anything_every_default_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings(environ={}) == Settings()


def test_what_kubernetes_puts_into_a_pod_and_empty_variables_are_no_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environ = {
        "SKILLSERVE_SERVICE_HOST": "10.0.0.1",
        "SKILLSERVE_SERVICE_PORT": "8001",
        "SKILLSERVE_SERVICE_PORT_GRPC": "8001",
        "SKILLSERVE_PORT": "tcp://10.0.0.1:8001",
        "SKILLSERVE_PORT_8001_TCP_ADDR": "10.0.0.1",
        "SKILLSERVE_SEARCH_TOP_K": "",
        "SKILLSERVE_TRACEBACK": "1",
    }
    assert load_settings(environ=environ) == Settings()


@pytest.mark.parametrize(
    ("text", "environ", "said"),
    [
        ("[search]\ncandidate = 1\n", {}, "setting candidate.*candidates"),
        ("[searches]\n", {}, "section .searches."),
        ("[search\n", {}, "TOML"),
        ("[search]\ncandidates = 0\n", {}, r"candidates.*0.*greater than or equal to 1"),
        ("", {"SKILLSERVE_SEARCH_TOP_K": "many"}, "SKILLSERVE_SEARCH_TOP_K.*'many'"),
        ("", {"SKILLSERVE_COLOUR": "blue"}, "SKILLSERVE_COLOUR"),
        ("", {"SKILLSERVE_SEARCH_COLOUR": "blue"}, "colour"),
        ("", {"SKILLSERVE_PORTS": "1"}, "SKILLSERVE_PORTS"),
    ],
)
def test_a_wrong_setting_is_named_with_its_source(
    tmp_path: Path, text: str, environ: dict[str, str], said: str
) -> None:
    path = tmp_path / "skillserve.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_settings(path, environ=environ)


def test_every_error_names_its_four_parts_and_an_exit_code() -> None:
    kinds = [getattr(errors, name) for name in errors.__all__]
    for kind in kinds:
        error = kind("index `x`", got="a", wanted="b", fix="Run: y")
        assert str(error) == "index `x`: got a; wanted b. Run: y"
        assert error.to_dict()["error"] == kind.__name__
        assert isinstance(error, SkillserveError)
        assert kind.__name__ in (errors.__doc__ or "")
    assert {kind.exit_code for kind in kinds} == {1, 2, 3, 4, 5}


def test_an_error_is_told_behind_what_was_found_out_before_it() -> None:
    error = ParityError("graph", got="2", wanted="1", fix="Export it again.")
    error.findings = {"checks": [1, 2]}
    for each in (error, pickle.loads(pickle.dumps(error))):  # noqa: S301 -- our own
        assert list(each.to_dict()) == ["checks", "error", "subject", "got", "wanted", "fix", "exit_code"]
        assert each.to_dict()["checks"] == [1, 2]


def test_help_lists_all_commands_and_imports_no_room() -> None:
    """The command line answers in milliseconds, whatever is installed."""
    code = (
        "import sys; from skillserve.cli import main; main(['--help']);"
        "heavy = {'torch', 'onnxruntime', 'faiss', 'tritonclient', 'transformers'} & set(sys.modules);"
        "rooms = [m for m in sys.modules if m.startswith('skillserve_')];"
        "print('LOADED', sorted(heavy), rooms)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "LOADED [] []" in result.stdout
    for name in COMMANDS:
        assert f"  {name} " in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_explains_all_it_takes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = typer.main.get_command(app)
    assert isinstance(command, click.Group)
    found = command.get_command(click.Context(command), name)
    each = {name: found} if not isinstance(found, click.Group) else found.commands
    for part, leaf in each.items():
        assert leaf is not None
        assert all(getattr(parameter, "help", None) for parameter in leaf.params), part
        assert main([name, "--help"] if part == name else [name, part, "--help"]) == 0
        assert "\\[" not in capsys.readouterr().out


def test_a_missing_extra_names_the_pip_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    for module in [name for name in sys.modules if name.startswith("skillserve_client")]:
        monkeypatch.delitem(sys.modules, module)
    assert main(["search", "x"]) == 3
    assert "pip install 'skillserve[client]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "kind", "code"),
    [
        (["nonsense", "--json"], "UsageError", 2),
        (["export", "--json"], "UsageError", 2),
        (["export", "weights", "--json", "--colour"], "UsageError", 2),
        (["export", "weights", "--json", "--version", "0"], "ConfigError", 2),
        (["export", "weights", "--json"], "CardError", 4),
    ],
)
def test_with_json_every_error_is_one_object(
    arguments: list[str],
    kind: str,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    written = capsys.readouterr()
    printed = json.loads(written.out)
    assert (printed["error"], printed["exit_code"]) == (kind, code)
    assert printed["got"] in " ".join(written.err.split())
    assert main([each for each in arguments if each != "--json"]) == code
    assert not capsys.readouterr().out


def test_an_unexpected_exception_is_one_line_and_the_way_to_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.py").write_text("def command(as_json: bool = False):\n    raise KeyError('two\\nlines')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(COMMANDS, "broken", Command("broken:command", None, "Fail."))
    assert main(["broken"]) == 1
    written = capsys.readouterr()
    assert written.err.count("\n") == 1
    assert "KeyError" in written.err
    assert "SKILLSERVE_TRACEBACK=1" in written.err
    assert not written.out
    monkeypatch.setenv("SKILLSERVE_TRACEBACK", "1")
    with pytest.raises(KeyError):
        main(["broken"])


def test_a_command_is_the_same_whatever_the_process_was_started_with(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pytest", "--help"])
    assert main(["search", "--help"]) == 0
    assert "--top-k" in capsys.readouterr().out


def test_a_command_gets_a_flag_for_every_field_and_the_merged_settings(
    toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sections give all their fields, single fields themselves; the rest of the signature stays."""
    seen: list[object] = []
    app = typer.Typer()

    @app.command()
    @with_settings("search", "client.url")
    def command(query: str, *, settings: Settings, as_json: Json = False) -> None:
        """Find."""
        seen.extend((query, settings, as_json))

    monkeypatch.setenv("SKILLSERVE_SEARCH_TOP_K", "9")
    given = ["x", "--candidates", "30", "--config", str(toml), "--json"]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    query, settings, as_json = seen
    assert (query, as_json) == ("x", True)
    assert isinstance(settings, Settings)
    assert (settings.search.candidates, settings.search.top_k, settings.client.url) == (30, 9, "a:1")
    flags = {parameter.opts[0] for parameter in typer.main.get_command(app).params}
    fields = {f"--{name.replace('_', '-')}" for name in SearchSettings.model_fields}
    assert {name for parameter in typer.main.get_command(app).params for name in parameter.secondary_opts} == {
        "--no-abstain"
    }
    assert fields | {"--url", "--config", "--json", "query"} <= flags | {"query"}
    assert "--timeout-s" not in flags


@pytest.mark.parametrize(("given", "merged"), [([], False), (["--abstain"], True), (["--no-abstain"], False)])
def test_a_yes_or_no_has_two_flags_and_neither_means_not_given(
    given: list[str],
    merged: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SKILLSERVE_SEARCH_ABSTAIN", "false")
    app, seen = typer.Typer(), []

    @app.command()
    @with_settings("search.abstain")
    def command(*, settings: Settings) -> None:
        """Find."""
        seen.append(settings.search.abstain)

    assert CliRunner().invoke(app, given).exit_code == 0
    assert seen == [merged]


def test_help_states_defaults_and_variables_in_brackets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Help is read as markup, in which brackets would be styles, and vanish."""
    monkeypatch.setenv("COLUMNS", "240")
    main(["search", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "[default: 50]" in text
    assert "SKILLSERVE_SEARCH_CANDIDATES]" in text


def test_every_section_stands_behind_the_one_door() -> None:
    door = importlib.import_module(Settings.__module__)
    files = [importlib.import_module(f"{door.__name__}.{file.name}") for file in pkgutil.iter_modules(door.__path__)]
    public = {name: getattr(file, name) for file in files for name in file.__all__}
    sections = {name: found for name, found in public.items() if isinstance(found, type)}
    assert {name: getattr(door, name) for name in sections} == sections
    assert {type(getattr(Settings(), name)) for name in Settings.model_fields} == {*sections.values()} - {Section}

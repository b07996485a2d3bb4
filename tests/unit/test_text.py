"""Files are UTF-8 whatever the locale says, and a terminal that lacks a character gets another."""

from __future__ import annotations

import ast
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import text
from pipeline.errors import ConfigError
from tests.conftest import ROOT

_TEXT = {"read_text": 0, "write_text": 1, "open": 1, "fdopen": 1, "NamedTemporaryFile": 0, "TemporaryFile": 0}
"""Calls that open text unless told otherwise → the position of the mode, or of what stands before the encoding."""


def _in_the_locale(tree: ast.AST) -> Iterator[int]:
    """Lines where a file or a program's output is read or written in the locale's encoding."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if "encoding" in given or None in given:
            continue
        if name in ("run", "Popen", "check_output"):
            if {"text", "universal_newlines"} & given.keys():
                yield node.lineno
        elif name in ("read_text", "write_text"):
            if len(node.args) <= (name == "write_text"):
                yield node.lineno
        elif name in ("open", "fdopen"):
            owner = node.func.value.id if isinstance(node.func, ast.Attribute) and isinstance(
                node.func.value, ast.Name) else ""
            place = 1 if name == "fdopen" or isinstance(node.func, ast.Name) else 0
            mode = given.get("mode") or (node.args[place] if len(node.args) > place else None)
            opens_text = mode is None or (isinstance(mode, ast.Constant) and "b" not in str(mode.value))
            if opens_text and (owner != "os" or name == "fdopen") and owner != "webbrowser":
                yield node.lineno


@pytest.mark.parametrize("path", sorted((ROOT / "pipeline").rglob("*.py")), ids=lambda path: path.stem)
def test_every_text_file_names_its_encoding(path: Path) -> None:
    assert list(_in_the_locale(ast.parse(path.read_text(encoding="utf-8")))) == [], "these lines"


@pytest.mark.parametrize(("encoding", "given", "shown"), [
    ("ascii", "−20.9 MiB ± 1 · f16 → q8_0 …", "-20.9 MiB +- 1 . f16 -> q8_0 ..."),
    ("latin-1", "−20.9 · Müller 潮", "-20.9 · Müller ??"),
    ("euc_jp", "潮 –", "潮 -"),
    ("utf-8", "− 潮 n\udce9e", "− 潮 n?e"),
])
def test_a_character_that_a_terminal_lacks_is_replaced_and_a_minus_stays_one(
        encoding: str, given: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    text.open_terminal()
    print(given, end="", flush=True)
    assert raw.getvalue().decode(encoding) == shown


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "euc_jp", "utf-8"])
@pytest.mark.parametrize("value", ["潮", "−", "n\udce9e\0"])
def test_json_is_the_same_document_on_every_terminal(encoding: str, value: Any,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    text.open_terminal()
    text.print_json({"a": [value]})
    sys.stdout.flush()
    assert json.loads(raw.getvalue().decode("utf-8")) == {"a": [value]}
    assert json.loads(text.to_json({"a": [value]}).encode()) == {"a": [value]}


def test_a_prompt_is_what_was_typed_whatever_the_locale_made_of_it() -> None:
    assert text.as_typed("Hi 潮", "prompt.text") == "Hi 潮"
    assert text.as_typed("潮".encode().decode("ascii", "surrogateescape"), "prompt.text") == "潮"
    with pytest.raises(ConfigError, match=r"prompt\.text=n�e is not allowed: .* neither UTF-8 nor .*LC_ALL"):
        text.as_typed("n\udce9e", "prompt.text")


@pytest.mark.parametrize(("said", "shown"), [
    ("tracking.uri=http://me:secret@host:5000/x", "tracking.uri=http://me:***@host:5000/x"),
    (r"tracking.uri=http\://me\:secret@host\:5000", r"tracking.uri=http\://me\:***@host\:5000"),
    ("postgresql://me:se@cret@host/db", "postgresql://me:***@host/db"),
    ("mysql://host/db?user=me&password=secret", "mysql://host/db?user=me&password=***"),
    ("http://host:5000 of me@host", "http://host:5000 of me@host"),
    ('{"a": "http://host:5000", "b": "me@host"}', '{"a": "http://host:5000", "b": "me@host"}')])
def test_a_password_in_an_address_is_masked_and_nothing_else(said: str, shown: str) -> None:
    assert text.masked(said) == shown


def test_a_document_on_a_terminal_holds_no_control_character_and_the_same_values(
        capsys: pytest.CaptureFixture[str]) -> None:
    value = {"question": "a\x1b[2J\x9b2J\u202eb潮"}
    text.print_json(value)
    said = capsys.readouterr().out
    assert json.loads(said) == value and "潮" in said
    assert not set(said) & {"\x1b", "\x9b", "\u202e"}

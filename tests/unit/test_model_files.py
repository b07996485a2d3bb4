"""A model is a list of files: found from any of them, evicted, measured and told apart as a whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.clear import clear_caches
from pipeline.config import Clear, Model
from pipeline.errors import ConfigError
from pipeline.meter import model_file
from pipeline.meter.base import Available, Target
from pipeline.meter.model_file import resident_bytes
from pipeline.model import weights
from pipeline.model.digest import digest, known_digest
from pipeline.model.files import as_path, files_of, read_model, stem, titles
from tests.ggufs import Tensors, write_model, write_split

PARTS: list[Tensors] = [
    [("token_embd.weight", [256, 4], 3, 0)], [("blk.0.attn_k.weight", [256, 4], 8, 0)],
    [("output_norm.weight", [64], 0, 0)],
]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLACKWATER_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("given", [0, 1, 2])
def test_any_part_stands_for_the_whole_model(tmp_path: Path, given: int) -> None:
    paths = write_split(tmp_path, "some model", PARTS)
    found = read_model(paths[given])
    assert list(found.files) == list(files_of(paths[given])) == paths
    assert found.path == paths[0]
    assert found.file_bytes == sum(path.stat().st_size for path in paths)
    assert [tensor.name for tensor in found.tensors] == [part[0][0] for part in PARTS]
    assert found.quantisation == "q8_0"
    assert found.facts()["model_files"] == "3"


def test_the_first_part_may_hold_metadata_alone(tmp_path: Path) -> None:
    paths = write_split(tmp_path, "m", [[], *PARTS])
    assert read_model(paths[0]).block_count == 30
    assert len(read_model(paths[2]).tensors) == 3


def test_a_link_to_a_part_finds_the_links_beside_it(tmp_path: Path) -> None:
    """As the cache of a model hub lays them out: names that link to blobs."""
    (tmp_path / "snapshot").mkdir()
    for number, path in enumerate(write_split(tmp_path, "m", PARTS)):
        (tmp_path / "snapshot" / path.name).symlink_to(path.rename(tmp_path / f"blob{number}"))
    assert len(read_model(tmp_path / "snapshot" / "m-00002-of-00003.gguf").files) == 3


def test_parts_that_do_not_make_a_model_are_refused_by_name(tmp_path: Path) -> None:
    paths = write_split(tmp_path, "m", PARTS)
    second = paths[1].read_bytes()
    paths[1].unlink()
    with pytest.raises(ConfigError, match=r"one of 3 parts, and 1 are missing: m-00002-of-00003\.gguf\. Put"):
        read_model(paths[0])
    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(ConfigError, match=r"m-00002-of-00003\.gguf is called part 2 .* its header says part 3 of 3"):
        read_model(paths[0])
    write_split(tmp_path, "m", [PARTS[0], [], PARTS[2]])[1].unlink()
    paths[1].write_bytes(second)
    with pytest.raises(ConfigError, match=r"do not belong together: they hold 3 tensors, and the model has 2"):
        read_model(paths[2])
    alone = paths[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(ConfigError, match=r"renamed\.gguf is part 1 of 3, .* NAME-00001-of-00003\.gguf"):
        read_model(alone)
    wrong = paths[2].rename(tmp_path / "m-00003-of-00009.gguf")
    with pytest.raises(ConfigError, match=r"is part 3 of 3, as its header says, and its name does not say so"):
        read_model(wrong)


def test_a_name_that_only_looks_like_a_part_is_a_model_of_its_own(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m-00002-of-00003.gguf")
    assert list(files_of(path)) == [path]


def test_the_page_cache_is_emptied_and_read_of_every_file(tmp_path: Path) -> None:
    paths = write_split(tmp_path, "m", PARTS)
    for path in paths:
        with path.open("ab") as stream:
            stream.write(os.urandom(2**20))
    sizes = [path.stat().st_size for path in paths]
    eviction = clear_caches(Clear(name="unload", evict_model=True), paths[0])
    assert eviction is not None
    assert eviction.verified
    assert eviction.before is not None
    assert eviction.before >= sum(sizes)
    assert [resident_bytes(path) for path in paths] == [0, 0, 0]
    for path in paths:
        path.read_bytes()
    found = model_file.find(target=Target(model_path=paths[0]))
    assert isinstance(found, Available)
    assert found.meter.read()["resident_bytes"] >= sum(sizes)


def test_the_digest_of_a_model_is_that_of_all_its_files(tmp_path: Path) -> None:
    paths = write_split(tmp_path, "m", PARTS)
    weights.resolve(Model(name="gguf", kind="file", path=str(paths[1])))
    whole = known_digest(paths)
    assert whole == digest(paths)
    assert whole not in [known_digest([path]) for path in paths]
    with paths[2].open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"x")
    assert known_digest(paths) is None
    assert digest(paths) != whole


def test_a_file_that_was_replaced_under_its_own_size_and_time_is_another(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf")
    first, was = digest([path]), path.stat()
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"x")
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert known_digest([path]) is None
    assert digest([path]) != first


@pytest.mark.parametrize(("name", "title"), [
    ("SmolLM2-135M.Q4_1.gguf", "SmolLM2-135M.Q4_1"), ("モデル (1).GGUF", "モデル (1)"), ("m-00002-of-00003.gguf", "m"),
    ("no suffix.Q4_1", "no suffix.Q4_1"), ("sha256-" + "ab" * 32, "sha256-abababababab"), (".gguf", ".gguf"),
])
def test_a_model_is_called_by_its_files_own_name(name: str, title: str) -> None:
    assert stem(Path("/somewhere", name)) == title


def test_files_of_one_name_are_told_apart_by_their_folders() -> None:
    paths = [Path(each) for each in ("/x/a/m.gguf", "/x/b/m.gguf", "/x/b/n.gguf", "/y/b/m.gguf", "/x/b/m")]
    found = titles(paths)
    assert found[2] == "n"
    assert len(set(found)) == len(found)
    assert found[0] == "a/m"


def test_a_path_is_taken_as_people_type_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    assert as_path("~/x y/モデル (1).gguf") == Path("/home/me/x y/モデル (1).gguf")
    assert as_path("./m.gguf") == tmp_path / "m.gguf"
    assert as_path("file:///models/x%20y.gguf") == Path("/models/x y.gguf")
    with pytest.raises(ConfigError, match="unknown home"):
        as_path("~nobody-of-this-name/m.gguf")

"""GGUF files in pieces: joined once, in the cache folder, and refused where they do not belong together."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from buzz.evaluation.errors import ConfigError
from buzz.evaluation.models import pieces as model_pieces
from buzz.evaluation.models.gguf import read_tensors
from buzz.evaluation.models.section import ModelConfig, model_name
from buzz.evaluation.models.source import check_model

CUTS = (2000, 6000, 10000)  # within the second tensor, and twice within later ones


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "buzz" / "gguf"


def whole_file(path: Path, seed: int = 0) -> Path:
    """A GGUF file of 16 tensors, large ones in random bytes and small ones in float32, as in a quantised model."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(2048)
    for layer in range(8):
        packed = rng.integers(0, 256, (32, 34), dtype=np.uint8)  # Q8_0: 34 bytes for 32 numbers
        writer.add_tensor(f"blk.{layer}.ffn_up.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(f"blk.{layer}.ffn_norm.weight", rng.normal(size=32).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def cut(path: Path, folder: Path, names: str = "model.gguf.part{:02}") -> list[str]:
    """The pieces of a file, cut at `CUTS`."""
    data = path.read_bytes()
    folder.mkdir()
    paths = [folder / names.format(i) for i in range(len(CUTS) + 1)]
    for piece, start, end in zip(paths, (0, *CUTS), (*CUTS, len(data)), strict=True):
        piece.write_bytes(data[start:end])
    return [str(piece) for piece in paths]


@pytest.fixture
def parts(tmp_path) -> list[str]:
    return cut(whole_file(tmp_path / "whole.gguf"), tmp_path / "parts")


def refusal(names: list[str], **keys: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check_model(ModelConfig(gguf=names, **keys))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tensors_are_where_gguf_finds_them(tmp_path):
    path = whole_file(tmp_path / "whole.gguf")
    tensors = gguf.GGUFReader(path).tensors
    assert len(tensors) == 16
    places = [(t.name, t.tensor_type.name, t.data_offset, t.data_offset + t.n_bytes) for t in tensors]
    assert read_tensors(path) == places


def test_pieces_make_the_file_they_were_cut_from(parts, tmp_path, cache):
    source = check_model(ModelConfig(gguf=parts))
    whole = tmp_path / "whole.gguf"
    assert source.path.read_bytes() == whole.read_bytes()
    assert source.path.name == "model.gguf"
    assert source.path.is_relative_to(cache)
    assert (source.model_type, source.max_positions) == ("llama", 2048)
    assert source.fingerprint == hashlib.sha256(whole.read_bytes()).hexdigest()
    assert source.fingerprint == check_model(ModelConfig(gguf=str(whole))).fingerprint
    assert [path for path in cache.rglob("*") if path.is_file()] == [source.path]


def test_the_joined_file_is_used_again(parts, monkeypatch):
    first = check_model(ModelConfig(gguf=parts)).path
    monkeypatch.setattr(model_pieces, "_write", lambda *_: pytest.fail("joined twice"))
    assert check_model(ModelConfig(gguf=parts)).path == first


def test_a_joined_file_that_was_cut_off_is_made_anew(parts):
    path = check_model(ModelConfig(gguf=parts)).path
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert check_model(ModelConfig(gguf=parts)).path == path
    assert path.read_bytes() == whole


def test_other_weights_have_another_place(parts, tmp_path):
    others = cut(whole_file(tmp_path / "other.gguf", seed=1), tmp_path / "others")
    first, second = (check_model(ModelConfig(gguf=names)) for names in (parts, others))
    assert first.path != second.path
    assert first.fingerprint != second.fingerprint


def test_pieces_inside_a_folder_and_a_package(parts, tmp_path, monkeypatch):
    whole = (tmp_path / "whole.gguf").read_bytes()
    names = [Path(part).name for part in parts]
    assert check_model(ModelConfig(id=str(tmp_path / "parts"), gguf=names)).path.read_bytes() == whole
    shutil.copytree(tmp_path / "parts", tmp_path / "pieces_of_a_model")
    (tmp_path / "pieces_of_a_model" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    packaged = [f"package:pieces_of_a_model/{name}" for name in names]
    assert check_model(ModelConfig(gguf=packaged)).path.read_bytes() == whole


def test_one_piece_is_a_whole_file(tmp_path):
    path = whole_file(tmp_path / "whole.gguf")
    assert check_model(ModelConfig(gguf=[str(path)])).path.read_bytes() == path.read_bytes()


def test_missing_pieces(parts):
    missing = parts[2] + "x"
    assert refusal([*parts[:2], missing]).startswith(f"model.gguf[2]: {missing} does not exist")
    absent = "package:no_such_package/x.part00"
    assert refusal([absent, *parts]).startswith("model.gguf[0]: package 'no_such_package' is not installed")
    assert refusal([parts[0], parts[2], parts[3]]) == (
        f"model.gguf[1]: {parts[2]} follows model.gguf.part00, the pieces of one GGUF file in their order are wanted"
    )
    assert refusal(parts[1:]).startswith(f"model.gguf[0]: {parts[1]} does not begin a GGUF file")
    assert refusal(parts[:3]).startswith(f"model.gguf[2]: {parts[2]} ends ")


@pytest.mark.parametrize(
    ("order", "start"),
    [
        ((1, 0, 2, 3), "model.gguf[0]: {1} does not begin a GGUF file"),
        ((0, 2, 1, 3), "model.gguf[1]: {2} has no weights where blk.0.ffn_norm.weight should be"),
        ((0, 1, 3, 2), "model.gguf[3]: {2} has no weights where blk.4.ffn_norm.weight should be"),
    ],
)
def test_the_wrong_order(tmp_path, order, start):
    """Of names without numbers, which say nothing."""
    whole = whole_file(tmp_path / "whole.gguf")
    numbered = cut(whole, tmp_path / "parts")
    parts = [str(Path(name).rename(tmp_path / f"x{letter}")) for name, letter in zip(numbered, "abcd", strict=True)]
    assert refusal([parts[i] for i in order]).startswith(start.format(*parts))


def test_the_wrong_order_of_numbered_names(parts):
    assert refusal([parts[i] for i in (0, 1, 3, 2)]).startswith(f"model.gguf[2]: {parts[3]} follows model.gguf.part01")


def test_pieces_of_different_files(parts, tmp_path, cache):
    whole = str(tmp_path / "whole.gguf")
    assert refusal([whole, parts[3]]).startswith(f"model.gguf[1]: {parts[3]} goes on for ")
    assert refusal([*parts, whole]).startswith(f"model.gguf[4]: {whole} begins a GGUF file")
    short = tmp_path / "short"
    short.write_bytes(Path(whole).read_bytes()[:100])
    assert refusal([str(short), parts[1]]).startswith(f"model.gguf[0]: {short} begins a GGUF file that is damaged")
    short.write_bytes(b"")
    assert refusal([*parts, str(short)]).startswith(f"model.gguf[4]: {short} is empty")
    assert [path for path in cache.rglob("*") if path.is_file()] == []  # nothing of them stays


@pytest.mark.parametrize("where", ["write", "open"])
def test_no_room_is_one_line(parts, cache, monkeypatch, where):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((model_pieces.os, "fsync") if where == "write" else (model_pieces.tempfile, "mkstemp")), full)
    text = refusal(parts)
    assert text.startswith(f"model.gguf: its pieces make {cache}/")
    assert "which cannot be written (No space left on device), a folder with room for 0 MB" in text
    assert text.endswith("is wanted as XDG_CACHE_HOME")
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_a_cache_that_is_a_file(parts, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", parts[0])
    assert "(Not a directory)" in refusal(parts)


def test_pieces_that_change_while_they_are_read(parts, monkeypatch):
    digest = model_pieces._read

    def changed(pieces):
        sizes, known = digest(pieces)
        return sizes, known[::-1]

    monkeypatch.setattr(model_pieces, "_read", changed)
    assert refusal(parts).startswith("model.gguf: its pieces changed while they were read")


def test_two_processes_at_once(parts, cache, tmp_path):
    code = (
        "import sys\n"
        "from buzz.evaluation.models.section import ModelConfig\n"
        "from buzz.evaluation.models.source import check_model\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "print(check_model(ModelConfig(gguf=sys.argv[1:])).path)\n"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code, *parts], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    found = {process.communicate(timeout=60)[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    (path,) = found
    assert Path(path).read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert [str(file) for file in cache.rglob("*") if file.is_file()] == [path]


@pytest.mark.parametrize(
    ("gguf", "name"),
    [
        ("weights/x.Q4_1.gguf", "x.Q4_1"),
        (["package:part1/data/x-q4_k.gguf.part00", "package:part2/data/x-q4_k.gguf.part01"], "x-q4_k"),
        (["xaa", "xab"], "xaa"),
        ([".gguf.00"], "model"),
        (None, "b"),
    ],
)
def test_model_name(gguf, name):
    assert model_name("a/b", gguf) == name

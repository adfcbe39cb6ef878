"""Imports point one way: a module imports only from levels below its own (design, section 5)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# longest prefix wins; the package itself is lazy and belongs to nobody
LEVELS = {
    "consist.errors": 0,
    "consist.models.adapters": 0,
    "consist.models.packages": 1,
    "consist.runs.many.worklist": 0,
    "consist.digests": 0,
    "consist.spectra.random_matrix": 0,
    "consist.spectra.rules": 0,
    "consist.spectra.decomposition": 0,
    "consist.spectra.approximation": 0,
    "consist.attention.bank": 0,
    "consist.runs.config": 0,
    "consist.models.noising": 0,
    "consist.evaluation.crops": 0,
    "consist.evaluation.intervals": 0,
    "consist.attention.masks": 0,
    "consist.attention.common_tokens": 0,
    "consist.attention.correspondence": 0,
    "consist.evaluation.metrics": 0,
    "consist_kernels": 0,
    "consist.attention.backends": 1,
    "consist.attention.batch_split": 1,
    "consist.runs.many.ranks": 1,
    "consist.runs.many.ray_actors": 1,
    "consist.prompts.packs": 1,
    "consist.prompts.phrases": 1,
    "consist.runs.pictures": 1,
    "consist.runs.folder": 1,
    "consist.runs.subject": 2,
    "consist.attention.layers": 2,
    "consist.methods": 2,
    "consist.evaluation.scores": 2,
    "consist.attention.recorders": 3,
    "consist.attention.cross_attention": 3,
    "consist.prompts.one_prompt": 3,
    "consist.attention.processor": 3,
    "consist.attention.lora_guidance": 3,
    "consist.models.loading": 3,
    "consist.evaluation.encoders": 2,
    "consist.evaluation.encoder_loading": 3,
    "consist.runs.versions": 4,
    "consist.runs.cache_file": 4,
    "consist.runs.references": 4,
    "consist.runs.preparing": 4,
    "consist.runs.drawing": 5,
    "consist.runs.baseline": 5,
    "consist.mini": 3,
    "consist.runs.many.benchmarks": 1,
    "consist.evaluation.judges": 4,
    "consist.runs.extending": 6,
    "consist.runs.many.one_batch": 6,
    "consist.runs.many.sets": 7,
    "consist.evaluation.summary": 5,
    "consist.evaluation.evaluate": 6,
    "consist.evaluation.report": 6,
    "consist.cli.doctor": 5,
    "consist.training": 6,
    # files of what was learned: read wherever a model is loaded
    "consist.models.tensor_files": 2,
    "consist.models.lora_names": 2,
    "consist.models.lora_layouts": 2,
    "consist.models.lora_files": 2,
    "consist.models.embedding_files": 2,
    "consist.models.new_words": 3,
    "consist.evaluation.ablation": 7,
    "learning": 7,
    "consist.app": 7,
    "consist.cli": 8,
    "consist.__main__": 9,
}
# who may import what from outside, beside torch, numpy and the standard library
FOREIGN = {
    "consist.errors": set(),
    "consist.runs.many.worklist": set(),
    "consist.runs.many.ranks": {"torch", "accelerate"},
    "consist.attention.batch_split": {"torch", "einops"},
    "consist.runs.many.ray_actors": {"ray"},
    "consist.app.limits": set(),
    "consist.app.root": set(),
    "consist.app.jobs": set(),
    "consist.app.settings": set(),
    "consist.app.command": set(),
    "consist.app.view": set(),
    "consist.app.actions": {"gradio"},
    "consist.app.page": {"gradio"},
    "consist.runs.config": set(),
    "consist.attention.layers": {"torch", "diffusers"},
    "consist.attention.masks": {"torch", "einops"},
    "consist.attention.common_tokens": {"torch", "einops"},
    "consist.attention.correspondence": {"torch", "einops"},
    "consist.attention.recorders": {"torch", "einops", "diffusers"},
    "consist.attention.cross_attention": {"torch", "einops", "diffusers"},
    "consist.prompts.one_prompt": {"torch", "diffusers"},
    "consist.runs.cache_file": {"torch", "safetensors"},
    "consist.evaluation.crops": {"PIL"},
    "consist.evaluation.intervals": set(),
    "consist.evaluation.metrics": set(),
    "consist.prompts.packs": {"yaml"},
    "consist.prompts.phrases": set(),
    "consist.runs.pictures": {"PIL"},
    "consist.evaluation.scores": set(),
    "consist.runs.subject": set(),
    "consist.evaluation.report": {"PIL"},
    "consist.spectra.random_matrix": {"torch"},
    "consist.models.noising": {"torch", "einops"},
    "consist.spectra.rules": {"torch"},
    "consist.spectra.decomposition": {"torch"},
    "consist.spectra.approximation": {"torch"},
    "consist.attention.bank": {"torch", "einops"},
    "consist.attention.lora_guidance": {"torch", "einops", "peft"},
    "consist.attention.backends": {"torch", "einops"},
    "consist.methods": {"torch", "einops"},
    "consist.runs.references": {"torch", "PIL"},
    "consist.runs.folder": {"PIL"},
    "consist.mini.canvas": {"PIL"},
    "consist.mini.subjects": set(),
    "consist.mini.actions": set(),
    "consist.mini.styles": {"PIL"},
    "consist.mini.prompts": set(),
    "consist.mini.scenes": {"PIL"},
    "consist.mini.world": {"PIL"},
    "consist.training.config": set(),
    "consist.training.inversion": {"einops", "torch"},
    "consist.training.samples": set(),
    "consist.training.losses": {"torch", "einops"},
    "consist.training.checkpoints": {"torch", "safetensors"},
    "consist.models.new_words": {"torch", "einops"},
    "consist_kernels": {"torch", "triton"},
}
# inside a level, who may import whom
SIBLINGS = {
    "consist.runs.many.worklist": {"consist.errors"},
    "consist.runs.config": {"consist.errors"},
    "consist.spectra.rules": {"consist.errors", "consist.spectra.random_matrix"},
    "consist.spectra.decomposition": {"consist.spectra.rules"},
    "consist.spectra.approximation": {"consist.spectra.decomposition", "consist.spectra.rules"},
    "consist_kernels": {"consist_kernels"},
    "consist.attention.bank": {"consist.errors"},
    "consist.attention.correspondence": {"consist.attention.masks"},
    "consist.attention.common_tokens": {"consist.attention.masks"},
    "consist.attention.processor": {
        "consist.attention.recorders",
        "consist.attention.cross_attention",
    },
    "consist.attention.lora_guidance": {"consist.attention.recorders"},
    "consist.methods": {"consist.methods"},
    "consist.runs.cache_file": {"consist.runs.versions"},
    "consist.mini": {"consist.mini"},
    "consist.evaluation.judges": {"consist.evaluation.judges"},
    "consist.evaluation.report": {"consist.evaluation.report"},
    "consist.training": {"consist.training"},
    "consist.models.tensor_files": set(),
    "consist.models.lora_names": set(),
    "consist.models.lora_layouts": {"consist.models.lora_names"},
    "consist.models.lora_files": {
        *(
            "consist.models.tensor_files",
            "consist.models.lora_layouts",
            "consist.models.lora_names",
        ),
    },
    "consist.models.embedding_files": {"consist.models.tensor_files"},
    "consist.evaluation.ablation": {"consist.evaluation.ablation"},
    "learning": {"learning"},
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

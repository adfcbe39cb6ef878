"""What is set on the page, and what it means for a run."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from typing import Any

from consist.errors import ConsistError, unknown
from consist.methods import METHODS, build, defaults_of
from consist.runs.config import RunConfig, parse_size, spread_seeds
from consist.runs.extending import check_weights_of
from consist.runs.subject import NAME, Subject


@dataclass(frozen=True)
class Rule:
    """A spectrum with one number of 0 to 1, or none."""

    title: str
    meaning: str
    usual: float | None = None  # the number to begin with; None: it takes none


# by their names in consist.spectra.rules
RULES = {
    "identity": Rule("as it is", "Every direction counts as it does in the picture itself."),
    "energy": Rule(
        "the strongest, by energy",
        "The share of the energy that is kept: less keeps the few directions that are said to "
        "carry the subject, 1 keeps the background too.",
        0.95,
    ),
    "fraction": Rule(
        "the strongest, by number",
        "The share of the directions that is kept, the strongest first; 1 keeps all.",
        0.5,
    ),
    "log": Rule("flattened, by logarithm", "Strong directions lose, weak ones gain."),
    "log2": Rule("flattened less, by its square", "The same, but less of it."),
    "power": Rule(
        "flattened, by a power",
        "The power that the strengths are raised to: less is flatter, 1 changes nothing.",
        0.5,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Form:
    """All inputs of the page that a new run is drawn from, as they come."""

    prompts: str  # one per line
    compare: bool
    steps: str
    seeds: str
    like: str  # a saved subject, or ""; with it, the run has its settings and not those below
    model: str
    method: str
    keys_rule: str
    keys_amount: float
    values_rule: str
    values_amount: float
    anchors: str
    strength: float
    subject: str  # phrases, with commas between
    guidance: str
    size: str
    negative: str
    at_once: str


FIELDS = tuple(field.name for field in fields(Form))


def read_form(form: Form, models: tuple[str, ...]) -> RunConfig:
    """The run that a form asks for.

    Args:
        form: As it comes.
        models: The only ones that may be asked for.

    Raises:
        ConsistError: An input does not fit.
    """
    prompts = read_lines(form.prompts)
    seeds = read_seeds(form.seeds)
    batch_size = read_number("pictures at a time", form.at_once)
    own = {"compare": bool(form.compare), "batch_size": batch_size}
    if form.like:
        return RunConfig(**{**vars(_scenes(form.like, prompts, seeds)), **own})
    if form.model not in models:
        raise ConsistError(unknown("model", str(form.model), models))
    width, height = parse_size(form.size.strip()) if form.size.strip() else (None, None)
    return RunConfig(
        prompts=prompts,
        seeds=spread_seeds(seeds or (0,), len(prompts)),
        model=form.model,
        method=read_method(form),
        steps=read_number("steps", form.steps),
        guidance=read_number("guidance", form.guidance, float),
        negative=form.negative.strip(),
        width=width,
        height=height,
        **own,
    )


def read_method(form: Form) -> dict[str, Any]:
    """The settings of a method as the command line has them: those that differ from its own."""
    given: dict[str, Any] = {
        "keys": write_spectrum(form.keys_rule, form.keys_amount),
        "values": write_spectrum(form.values_rule, form.values_amount),
        "anchors": str(form.anchors),
        "strength": float(form.strength),
    }
    usual = defaults_of(form.method)
    phrases = [phrase.strip() for phrase in form.subject.split(",") if phrase.strip()]
    settings = {"name": form.method, **({"subject": phrases} if phrases else {})}
    for name, value in given.items():
        if name in usual and value != type(value)(usual[name]):
            settings[name] = value
    build(settings)
    return settings


def explain(method: str) -> str:
    """What a method does, in one sentence."""
    return (inspect.getdoc(METHODS[method]) or "").splitlines()[0]


def write_spectrum(rule: str, amount: float) -> str:
    """The text of a spectrum.

    >>> write_spectrum("energy", 0.9), write_spectrum("log", 0.9)
    ('energy:0.9', 'log')

    Raises:
        ConsistError: There is no such rule.
    """
    if rule not in RULES:
        raise ConsistError(unknown("spectrum", str(rule), RULES))
    return rule if RULES[rule].usual is None else f"{rule}:{amount:g}"


def split_spectrum(text: str) -> tuple[str, float]:
    """The rule of a spectrum that is one of ``RULES``, and its number, 1 where it has none.

    >>> split_spectrum("energy:0.9"), split_spectrum("log")
    (('energy', 0.9), ('log', 1.0))
    """
    rule, _, amount = text.partition(":")
    return rule, float(amount or 1)


def read_lines(text: str) -> tuple[str, ...]:
    """The lines of a text; empty ones are skipped."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def read_seeds(text: str) -> tuple[int, ...]:
    """Whole numbers with spaces or commas between.

    Raises:
        ConsistError: Something else was given.
    """
    words = text.replace(",", " ").split()
    if strange := [word for word in words if not word.isdecimal()]:
        raise ConsistError(f"seeds are whole numbers such as 7 or 7 8 9, not {strange[0]!r}")
    return tuple(map(int, words))


def read_number(name: str, text: str, kind: type[int] | type[float] = int) -> Any:
    """A number, or None where nothing was given.

    Raises:
        ConsistError: It is none of that kind.
    """
    if not text.strip():
        return None
    try:
        return kind(text)
    except ValueError:
        what = "whole number" if kind is int else "number"
        raise ConsistError(f"{name} must be a {what}, not {text!r}") from None


def check_name(name: str) -> str:
    """A subject's name; unlike on the command line, never a path.

    Raises:
        ConsistError: It has other characters than letters, digits, - and _.
    """
    if not NAME.fullmatch(name.strip()):
        raise ConsistError(f"a subject's name has letters, digits, - and _, not {name!r}")
    return name.strip()


def _scenes(name: str, prompts: tuple[str, ...], seeds: tuple[int, ...]) -> RunConfig:
    subject = Subject.load(check_name(name))
    check_weights_of(subject)
    return subject.scenes(prompts, seeds)

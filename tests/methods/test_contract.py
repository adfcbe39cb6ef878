"""What every method owes, and what a method is that overrides nothing."""

from dataclasses import fields

import pytest
import torch

import consist
from consist.attention.method import (
    CACHE,
    EXTEND,
    METHODS,
    ONE_STEP,
    PROCESSES,
    REFERENCES,
    USES,
    Method,
    Site,
)
from consist.settings.fields import field_help

SITE = Site(layer="up_blocks.0.attn1", height=2, width=2, progress=0.5, g=1, n=3)


@pytest.mark.parametrize("name", METHODS)
def test_every_field_is_explained_where_help_shows_it(name):
    told = field_help(METHODS[name])
    for one in fields(METHODS[name]):
        assert told[one.name].endswith("."), one.name
        assert f"{one.name}: " in METHODS[name].__doc__


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_public_and_says_what_it_does(name):
    method = METHODS[name]
    assert getattr(consist, method.__name__) is method
    assert method.name == name
    assert method.sees


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("use", USES)
def test_every_method_says_what_it_allows(name, use):
    reason = METHODS[name]().obstacle(use)
    assert reason == reason.strip().rstrip(".")


@pytest.mark.parametrize(
    ("method", "refused"),
    [
        (consist.Isolated(), {EXTEND, CACHE, REFERENCES}),
        (consist.Shared(), set()),
        (consist.Shared(anchors="random"), {EXTEND}),
        (consist.Spectral(), set()),
        (consist.Spectral(masks="matches"), {ONE_STEP}),
        (consist.Notch(), set()),
        (consist.StoryDiffusion(), set()),
        (consist.Sdsa(), {CACHE, ONE_STEP}),
        (consist.Sdsa(subject=("cat",)), {ONE_STEP}),
        (consist.Consistory(subject=("cat",)), {PROCESSES, ONE_STEP}),
        (consist.Matched(), {PROCESSES, ONE_STEP}),
        (consist.StyleAligned(), {CACHE, PROCESSES}),
        (consist.OnePrompt(), {EXTEND, CACHE, REFERENCES, PROCESSES}),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, Method) else ",".join(sorted(one)),
)
def test_what_each_method_refuses(method, refused):
    assert {use for use in USES if method.obstacle(use)} == refused


def test_a_method_that_overrides_nothing_is_neutral():
    method = Method()
    q, k, v = torch.rand(3, 3, 1, 4, 2)
    assert method(q, k, v, SITE) is None
    assert method.rewrite(q, k, v, SITE) == (q, k, v)
    assert method.inject(q, SITE) is q
    assert method.reweight(q, [[0]], 0, [1]) is q
    assert not method.text_bias(torch.ones(3, 5).bool(), SITE).any()
    assert method.anchor_images(SITE) == ()
    assert method.anchor_count(3) == 0
    assert not method.blends(SITE.layer, 0.0)
    assert not method.wants_subject


def test_a_method_without_a_name_is_not_offered():
    before = dict(METHODS)

    class Silent(Method):
        """Shares nothing."""

    assert before == METHODS
    assert Silent.name == ""

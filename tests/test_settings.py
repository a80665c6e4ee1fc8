"""Settings are read from signatures and checked: their types, their ranges, their names."""

import math
from typing import Annotated, Literal

import pytest

from crosspair.errors import UserError
from crosspair.settings import Range, apply_settings, asks_for, check_settings, settings_of


class Loss:
    def __init__(self, num_classes, margin: float = 0.2, *, learned: bool = True): ...


def plain(share: Annotated[float, Range(at_least=0, below=1), "Of the first."] = 0.5): ...


def typed(
    *,
    share: Annotated[float, Range(at_least=0, below=1), "Of the first."] = 0.5,
    count: int = 3,
    kind: Literal["a", "b"] = "a",
    scale: Annotated[float | None, Range(above=0)] = None,
    sizes: list[int] = [1, 2],  # noqa: B006
    bare=2.5,
): ...


def test_a_functions_settings_are_its_keyword_only_parameters():
    found = settings_of(typed)
    assert list(found) == ["share", "count", "kind", "scale", "sizes", "bare"]
    assert (found["share"].type, found["share"].meaning) == (float, "Of the first.")
    assert str(found["share"].range) == "at least 0 and below 1"
    assert (found["bare"].type, found["bare"].default) == (float, 2.5)
    assert not settings_of(plain)


def test_annotations_that_say_nothing_leave_the_type_of_the_default():
    def odd(*, count: "not a type" = 1): ...  # noqa: F722

    assert settings_of(odd)["count"].type is int


def test_a_classs_settings_are_what_its_constructor_has_defaults_for():
    assert list(settings_of(Loss, given=["num_classes"])) == ["margin", "learned"]
    assert asks_for(Loss, "num_classes")
    assert not asks_for(Loss, "embedding_dim")


def test_a_setting_without_a_default_is_one_sentence():
    def needs(*, share): ...

    with pytest.raises(UserError, match=r"the parameter share of .*needs has no default; a setting needs one"):
        settings_of(needs)


def test_values_come_from_yaml_or_as_text_and_defaults_fill_the_rest():
    known = settings_of(typed)
    given = {"share": "0.25", "count": 4, "scale": "null", "sizes": "[3, 4]", "kind": "b"}
    expected = {"share": 0.25, "count": 4, "kind": "b", "scale": None, "sizes": [3, 4], "bare": 2.5}
    assert check_settings(known, given, "x.") == expected
    assert check_settings(known, {"share": 0, "scale": "1e-3"}, "x.")["share"] == 0
    assert check_settings(known, {"scale": "1e-3"}, "x.")["scale"] == 1e-3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shar": 1}, "unknown field 'x.shar', did you mean 'x.share'?"),
        ({"else": 1}, "unknown field 'x.else'; expected one of share, count"),
        ({"share": "much"}, "x.share is 'much'; expected a number"),
        ({"share": 1}, "x.share is 1.0; expected at least 0 and below 1"),
        ({"share": math.nan}, "x.share is nan; expected at least 0 and below 1"),
        ({"count": 1.5}, "x.count is 1.5; expected a whole number"),
        ({"kind": "c"}, "x.kind is 'c'; expected a or b"),
        ({"scale": 0}, "x.scale is 0.0; expected null, or above 0"),
        ({"scale": "x"}, "x.scale is 'x'; expected a number or null"),
    ],
)
def test_a_wrong_value_is_one_sentence(values, message):
    with pytest.raises(UserError) as caught:
        check_settings(settings_of(typed), values, "x.")
    assert str(caught.value).startswith(message)


def test_a_thing_is_given_what_it_asks_for_by_name():
    def sampler(labels, images, *, size=1):
        return labels, images, size

    assert apply_settings(sampler, {"size": 2}, images="b", classes="c")("a") == ("a", "b", 2)

import os

import pytest

from toe_train.data import compare_classes, examine, legible, shorten

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize("name", ["bee", "golden retriever", "n01440764", COMPOSED, "\u72ac", "it's", "a\\b", "Пчела"])
def test_plain_names_are_shown_as_they_are(name):
    assert legible(name) == name


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("bee ", "'bee '"),
        (" bee", "' bee'"),
        ("bee\u00a0", r"'bee\xa0'"),
        ("b\u200bee", r"'b\u200bee'"),
        ("bee\n", r"'bee\n'"),
        (DECOMPOSED, r"'cafe\u0301'"),
        ("b\u0435e", r"'b\u0435e'"),  # a Cyrillic letter among Latin ones
        (os.fsdecode(b"caf\xe9"), r"'caf\xe9'"),
    ],
)
def test_names_whose_look_deceives_are_quoted(name, shown):
    assert legible(name) == shown
    assert shorten(["ant", name]) == f"ant, {shown}"


@pytest.mark.parametrize(
    ("other", "shown"),
    [("bee ", "'bee '"), ("b\u00adee", r"'b\xadee'"), ("\uff42\uff45\uff45", r"'\uff42\uff45\uff45'")],
)
def test_classes_that_look_the_same_are_quoted(other, shown):
    fault = compare_classes(["ant", "bee"], ["ant", other])
    assert f"only in train (1): 'bee'; only in val (1): {shown}: rename" in fault


def test_classes_of_another_unicode_form_are_told_apart():
    fault = compare_classes(["ant", COMPOSED], ["ant", DECOMPOSED])
    assert r"only in train (1): 'caf\xe9'; only in val (1): 'cafe\u0301': rename" in fault


def test_those_that_look_the_same_come_first_of_many():
    first, second = [*"abcdefgh", "zebra"], [*"ijklmnop", "zebra "]
    fault = compare_classes(first, second)
    assert "only in train (9): 'zebra', a, b, c, d, ... (9 in all); only in val (9): 'zebra ', i, j" in fault


def test_two_classes_of_one_folder_that_look_the_same_are_told(image_root):
    for split in ("train", "val"):
        (image_root / split / "bird").rename(image_root / split / "cat ")
    found = examine("image_folder", image_root)
    assert found.faults == []
    assert found.notes == [
        f"{image_root / split}: classes 'cat' and 'cat ' look the same, and count as several"
        for split in ("train", "val")
    ]

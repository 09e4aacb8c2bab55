"""Which layer a name comes from, and what it hides."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from unionfs.union.explain import explain_of
from unionfs.union.stack import Config

if TYPE_CHECKING:
    from tests.union.conftest import Layers
    from unionfs.union.explain import Explanation


@pytest.fixture
def filled(layers: Layers) -> Layers:
    """Everything that can be said of a name."""
    layers.write(
        {
            "0/both": "0",
            "2/both": "2",
            "2/a/low": "",
            "1/a/mid": "",
            "0/a/top": "",
            "1/gone": "",
            "0/.wh.gone": "",
            "1/opaque/.wh..wh..opq": "",
            "1/opaque/new": "",
            "2/opaque/old": "",
            "0/mixed/in": "",
            "1/mixed": "a file",
            "2/mixed/below": "",
        }
    )
    return layers


def roles(layers: Layers, found: Explanation) -> list[str]:
    """Return what each layer has, in short: upper, then 0, 1, 2."""
    assert [fact.layer for fact in found.facts] == [str(layers.upper), *map(str, layers.lowers)]
    return [fact.kind if fact.kind == fact.role else f"{fact.role} {fact.kind}" for fact in found.facts]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("both", ["absent", "shown file", "absent", "hidden file"]),
        ("a", ["absent", "shown directory", "merged directory", "merged directory"]),
        ("a/low", ["absent", "absent", "absent", "shown file"]),
        ("/", ["shown directory", "merged directory", "merged directory", "merged directory"]),
        ("gone", ["absent", "deletes whiteout", "hidden file", "absent"]),
        ("opaque", ["absent", "absent", "shown directory", "hidden directory"]),
        ("opaque/old", ["absent", "absent", "absent", "hidden file"]),
        ("opaque/new", ["absent", "absent", "shown file", "absent"]),
        ("mixed", ["absent", "shown directory", "hidden file", "hidden directory"]),
        ("mixed/below", ["absent", "absent", "absent", "hidden file"]),
        ("nowhere", ["absent", "absent", "absent", "absent"]),
    ],
)
def test_roles(filled: Layers, path: str, expected: list[str]) -> None:
    """Of lower layers; the same from a union and from the directories."""
    with filled.union() as union:
        found = union.explain(path)
        assert roles(filled, found) == expected
        assert (found.source is not None) == union.exists(path)
    config = Config([os.fsencode(lower) for lower in filled.lowers], os.fsencode(filled.upper))
    assert explain_of(config, os.fsencode(path)) == found


def test_what_the_upper_does(filled: Layers) -> None:
    """Copied up, deleted, made anew, renamed."""
    with filled.union() as union:
        union.write_text("both", "changed")
        union.unlink("a/low")
        assert roles(filled, union.explain("both")) == ["shown file", "hidden file", "absent", "hidden file"]
        assert roles(filled, union.explain("a/low")) == ["deletes whiteout", "absent", "absent", "hidden file"]
        assert [fact.layer for fact in union.explain("both").hides] == [str(filled.lowers[0]), str(filled.lowers[2])]


def test_a_renamed_directory_says_where_its_parts_are(filled: Layers, dialect: object) -> None:
    """Where the dialect has redirects; elsewhere all was copied."""
    with filled.union() as union:
        union.rename("a", "moved")
        found = union.explain("moved")
        if found.facts[0].redirect is None:
            assert roles(filled, found) == ["shown directory", "absent", "absent", "absent"]
        else:
            assert found.facts[0].redirect == "/a"
            assert [fact.path for fact in found.facts] == ["/moved", "/a", "/a", "/a"]
            assert roles(filled, union.explain("moved/low")) == ["absent", "absent", "absent", "shown file"]


def test_as_text(filled: Layers) -> None:
    """A verdict, and a line for each layer that has something to say."""
    with filled.union() as union:
        assert str(union.explain("both")).splitlines() == [
            f"/both: from {filled.lowers[0]}",
            f"  {filled.lowers[0]}: file",
            f"  {filled.lowers[2]}: file (hidden)",
        ]
        assert str(union.explain("gone")).splitlines()[0] == f"/gone: deleted by {filled.lowers[0]}"
        assert str(union.explain("nowhere")) == "/nowhere: in no layer"
        assert "opaque" in str(union.explain("opaque"))


def test_a_name_in_no_directory(filled: Layers) -> None:
    """There is nothing to explain."""
    with filled.union() as union, pytest.raises(FileNotFoundError) as caught:
        union.explain("no/such")
    assert caught.value.filename == "no/such"

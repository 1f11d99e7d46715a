"""``requirements.md`` lists every requirement of the guide once, with the tests that name it, and is up to date."""

from __future__ import annotations

from tests.requirements import LIST, covering, listed, named_in, updated

TEXT = LIST.read_text("utf-8")
REQUIREMENTS = list(range(1, 167))


def test_every_requirement_is_listed_once_and_in_order() -> None:
    assert listed(TEXT) == REQUIREMENTS


def test_no_test_names_a_requirement_that_is_not_listed() -> None:
    assert sorted(covering().keys() - set(REQUIREMENTS)) == []


def test_the_list_names_the_tests_that_name_the_requirement() -> None:
    assert updated(TEXT) == TEXT, "run: python -m tests.requirements"


def test_a_requirement_has_a_test_or_a_reason() -> None:
    for block in TEXT.split("\n- **R")[1:]:
        assert "\n  - " in block, f"R{block.partition('*')[0]} has neither tests nor a line 'Not tested: ...'"


def test_names_docstrings_and_ids_count_and_nothing_else() -> None:
    source = '''
"""R1."""
R2 = "R3"

@pytest.mark.parametrize("x", [pytest.param(1, id="r4 r5"), "R6"])
def test_r7_and_r8():
    """R9, R10 ... R12: not R1x, nor B13."""
    "R14"

def helper_r15():
    """R16."""
'''
    assert sorted(named_in(source)) == [(number, "test_r7_and_r8") for number in (4, 5, 7, 8, 9, 10, 11, 12)]

"""Numbers in a row, as the database writes them and as a reader wants them."""

from __future__ import annotations

import pytest

from leadprotect.audit.seals import canonical, joined, listed, numbers


@pytest.mark.parametrize(
    ("text", "ranges"),
    [
        (None, ()),
        ("{}", ()),
        ("{[1,2)}", (range(1, 2),)),
        ("{[1,4),[7,8),[10,12)}", (range(1, 4), range(7, 8), range(10, 12))),
    ],
)
def test_a_multirange_is_read(text: str | None, ranges: tuple[range, ...]) -> None:
    assert ranges == numbers(text)


def test_numbers_in_a_row_become_a_range() -> None:
    assert (range(1, 4), range(5, 6), range(8, 10)) == joined([1, 2, 3, 5, 8, 9])
    assert () == joined([])


def test_long_lists_are_cut_and_counted() -> None:
    assert "1-3, 5" == listed((range(1, 4), range(5, 6)))
    assert "1 and 1,002 more" == listed((range(1, 2), range(3, 1003), range(2000, 2002)), at_most=1)


def test_texts_are_written_as_postgresql_writes_them() -> None:
    assert '["a", 5, null, "q\\"\\\\\\n\\u0001\x7fé😀/"]'.encode() == canonical(["a", 5, None, 'q"\\\n\x01\x7fé😀/'])

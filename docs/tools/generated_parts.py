"""Parts of pages that programs write: from a marker in a comment to the next `<!-- end -->`."""

from __future__ import annotations

END = "<!-- end -->"


def replace_part(page: str, begin: str, content: str) -> str:
    """Return a page with another text between a marker and its end.

    Raises:
        ValueError: The page has no such marker, or no end after it.
    """
    start = page.index(begin) + len(begin)
    return page[:start] + "\n" + content.strip("\n") + "\n" + page[page.index(END, start) :]


def part_of(page: str, begin: str) -> str:
    """Return what stands between a marker and its end, without blank lines around it.

    Raises:
        ValueError: The page has no such marker, or no end after it.
    """
    start = page.index(begin) + len(begin)
    return page[start : page.index(END, start)].strip("\n")

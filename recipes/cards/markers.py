"""The places in a document that a program fills: the text between two comments, `<!-- NAME:begin -->` and `end`."""


def between(document: str, name: str, text: str) -> str:
    """Returns the document with `text` between the two marker comments of `name`, in place of what stands there.

    Raises:
        ValueError: it does not have each of them once, in this order.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, opened, rest = document.partition(begin)
    _, closed, after = rest.partition(end)
    if not (opened and closed) or begin in rest or end in after or end in before:
        raise ValueError(f"the document needs the lines {begin} and {end} once each, in this order")
    return f"{before}{begin}\n{text}{end}{after}"

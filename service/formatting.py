"""Numbers formatted for people, on the pages and on the command line."""


def percent(change: float | None) -> str:
    """Format a change such as `+12.3 %`, or a dash if there is nothing to compare with."""
    return "-" if change is None else f"{change:+.1%}".replace("%", " %")


def engineering(value: float, unit: str = "") -> str:
    """Format a value with three digits and a prefix, such as `1.64 M` or `268 G`."""
    for factor, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".strip()


def duration(seconds: float | None) -> str:
    """Format seconds such as `1:05` or `1:02:03`; a question mark if unknown."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

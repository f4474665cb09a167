"""A second implementation of GenEval's rules, in plain Python over JSON-like data, to compare with ours."""

import struct
from math import sqrt

COLOURS = ["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"]


def single(number: float) -> float:
    """The nearest float32."""
    return struct.unpack("f", struct.pack("f", number))[0]


def score_image(metadata: dict, rows: list[dict], max_overlap: float = 1.0) -> tuple[bool, str]:
    """Verdict and reasons for rows of {class, box, score, colour}."""
    pool: dict[str, list[dict]] = {}
    limit = single(0.9 if metadata["tag"] == "counting" else 0.3)
    for number, row in enumerate(rows):
        if single(row["score"]) > limit:
            pool.setdefault(row["class"], []).append({**row, "number": number})
    for name, candidates in pool.items():
        candidates.sort(key=lambda row: (single(row["score"]), row["number"]), reverse=True)
        del candidates[16:]
        if max_overlap != 1.0:
            pool[name] = suppress(candidates, max_overlap)

    complaints, groups = [], []
    for clause in metadata["include"]:
        chosen = pool.get(clause["class"], [])[: clause["count"]]
        complaint = complain(clause, chosen, groups)
        groups.append(chosen if complaint is None else None)
        if complaint is not None:
            complaints.append(complaint)
    for clause in metadata.get("exclude", []):
        number = len(pool.get(clause["class"], []))
        if not number < clause["count"]:
            complaints.append(f"expected {clause['class']}<{clause['count']}, found {number}")
    return complaints == [], "\n".join(complaints)


def suppress(candidates: list[dict], limit: float) -> list[dict]:
    """Repeatedly take the best and strike out what overlaps it too much."""
    survivors = []
    while candidates:
        best, *rest = candidates
        survivors.append(best)
        candidates = [row for row in rest if iou(best["box"], row["box"]) < limit]
    return survivors


def iou(a: list[float], b: list[float]) -> float:
    def size(x1: float, y1: float, x2: float, y2: float) -> float:
        return max(x2 - x1 + 1, 0) * max(y2 - y1 + 1, 0)

    both = size(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    return both / (size(*a) + size(*b) - both)


def complain(clause: dict, chosen: list[dict], groups: list[list[dict] | None]) -> str | None:
    name, count = clause["class"], clause["count"]
    if len(chosen) != count:
        return f"expected {name}>={count}, found {len(chosen)}"
    if "color" in clause:
        tally = {colour: sum(row["colour"] == colour for row in chosen) for colour in COLOURS}
        if tally[clause["color"]] < count:
            listed = ", ".join(f"{n} {colour}" for colour, n in tally.items() if n)
            colour = clause["color"]
            return f"expected {colour} {name}>={count}, found {tally[colour]} {colour}; and {listed}"
    if "position" in clause:
        relation, target = clause["position"]
        if groups[target] is None:
            return f"no target for {name} to be {relation}"
        for row in chosen:
            for other in groups[target]:
                seen = places(row["box"], other["box"])
                if relation not in seen:
                    return f"expected {name} {relation} target, found {' and '.join(seen)} target"
    return None


def places(a: list[float], b: list[float]) -> list[str]:
    """Relations of box a to box b."""
    axes = []
    for low, high in ((0, 2), (1, 3)):
        gap = (a[low] + a[high]) / 2 - (b[low] + b[high]) / 2
        slack = 0.1 * ((a[high] - a[low]) + (b[high] - b[low]))
        shrunk = 0.0 if abs(gap) <= slack else (abs(gap) - slack) * (1 if gap > 0 else -1)
        axes.append((gap, shrunk))
    if abs(axes[0][1]) < 1e-3 and abs(axes[1][1]) < 1e-3:
        return []
    distance = sqrt(axes[0][0] ** 2 + axes[1][0] ** 2)
    names = []
    for (_, shrunk), (negative, positive) in zip(
        axes, (("left of", "right of"), ("above", "below")), strict=True
    ):
        if shrunk / distance < -0.5:
            names.append(negative)
        elif shrunk / distance > 0.5:
            names.append(positive)
    return names

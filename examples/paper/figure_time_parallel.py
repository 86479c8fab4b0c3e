"""Steps per round of batched scores in parallel in time, against the spring: the figure of examples/time-parallel."""

from pathlib import Path

import time_parallel
from figures import Row

NAME = "time-parallel"
SHOWN = {"dense": "dense quasi-Newton", "identity": "Picard"}


def measure(picture: Path) -> list[Row]:
    found = time_parallel.rows()
    time_parallel.draw(found, picture)
    rows = []
    for one in found:
        if one.method in SHOWN:
            text = f"{one.system}, k = {one.spring:.3g} /nm², {SHOWN[one.method]}: steps per round"
            rows.append(Row(NAME, text, one.steps_per_round, None, (1.0, float(one.window))))
    for system in dict.fromkeys(one.system for one in found):
        own = [one for one in found if one.system == system and one.method == "dense"]
        text = f"{system}: largest distance from the sequential trajectory, in noise amplitudes"
        rows.append(Row(NAME, text, max(one.deviation for one in own), None, (0.0, 10 * time_parallel.TOLERANCE)))
        text = f"{system}, k = {own[-1].spring:.3g} /nm²: scores evaluated for each step"
        rows.append(Row(NAME, text, own[-1].evaluations_per_step))
    return rows

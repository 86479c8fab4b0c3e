"""Timing of two functions in turn, with nothing but the standard library."""

import statistics
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "examples/ala2/ala2.safetensors"
PAIRS = 9


def rate(function, count):
    start = time.perf_counter()
    function()
    return count / (time.perf_counter() - start)


def compare(name, what, ours, peer, peer_name, limit):
    """Time two functions (each returns its rate) in turn, after a warm-up of both."""
    ours(), peer()
    pairs = [(ours(), peer()) for _ in range(PAIRS)]
    return {
        "name": name,
        "unit": what,
        "ours": statistics.median(a for a, _ in pairs),
        "peer": statistics.median(b for _, b in pairs),
        "peer_name": peer_name,
        "ratio": statistics.median(a / b for a, b in pairs),
        "limit": limit,
    }

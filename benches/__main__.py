"""`make bench`: the same kernel and initramfs on ostler and on QEMU's TCG, in alternating pairs.

`python -m benches --pairs 5` for steadier medians; `--skip ostler` or `--skip qemu` for one engine.
"""

from __future__ import annotations

import argparse
import sys

from benches import engines, report
from guests import native
from guests.fetch import kernel
from guests.images import initrd
from guests.packages import BUILD, FetchError

RESULT = BUILD.parent / "bench.json"


def main() -> int:
    """Measure, print, write `build/bench.json`."""
    parser = argparse.ArgumentParser(prog="benches", description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--skip", choices=["ostler", "qemu"], action="append", default=[])
    options = parser.parse_args()
    try:
        return _measure(options.pairs, options.skip)
    except (engines.BenchError, FetchError) as error:
        print(error, file=sys.stderr)
        return 2


def _measure(pairs: int, skip: list[str]) -> int:
    program = native.bench()
    stock = kernel("cloud")
    image = initrd(stock, programs={"/bin/bench": program})
    samples: dict[str, list[engines.Sample]] = {"ostler": [], "qemu": [], "native": []}
    for pair in range(pairs):
        print(f"pair {pair + 1} of {pairs}", file=sys.stderr)
        samples["native"].append(engines.native(program))
        if "qemu" not in skip:
            samples["qemu"].append(engines.qemu(stock.image, image))
        if "ostler" not in skip:
            samples["ostler"].append(engines.ostler(stock.image, image))
    found = report.rows(samples)
    report.show(found, f"Linux {stock.version}, medians of {pairs}")
    report.write(found, RESULT, stock.version, pairs)
    print(f"written to {RESULT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

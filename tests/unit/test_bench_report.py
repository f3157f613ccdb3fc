"""What a run of the benches says of its numbers."""

from __future__ import annotations

import pytest

from benches import engines, report
from benches.engines import Sample


def _samples(ratios: dict[str, float]) -> dict[str, list[Sample]]:
    """One run of each engine, TCG at one nanosecond a row."""
    ostler, qemu = Sample(), Sample()
    for name, ratio in ratios.items():
        ostler.add(name, ratio, "ns/step")
        qemu.add(name, 1.0, "ns/step")
    return {"ostler": [ostler], "qemu": [qemu]}


@pytest.mark.parametrize(
    ("line", "unit"),
    [
        ("bench vector 3.7700 ns/16 bytes\n", "ns/16 bytes"),
        ("bench call 5.5800 ns/call\r\n", "ns/call"),
        ("[    1.0] bench done 0 -\n", "-"),
    ],
)
def test_line_of_the_program_keeps_its_whole_unit(line: str, unit: str) -> None:
    found = engines.LINE.search(line)
    assert found is not None
    assert found[3] == unit


def test_rows_have_their_targets_and_the_mean_of_those_that_compute() -> None:
    found = report.rows(
        _samples(dict.fromkeys(report.COMPUTE, 0.25) | {"integer": 1.0, "call": 0.0625})
    )
    row = {str(row["name"]): row for row in found}
    assert row["call"]["target"] == 0.35
    assert row["mean"]["ratio"] == pytest.approx(0.25)
    assert row["mean"]["target"] == 0.5
    assert report.missed(found) == ["floating point", "memcpy by rep movsb"]


def test_mean_is_left_out_where_a_row_was_not_measured() -> None:
    found = report.rows(_samples({"syscall": 0.9, "net_put": 3.0}))
    assert [row["name"] for row in found] == ["syscall", "net_put"]
    assert report.missed(found) == ["system call"]


def test_table_says_which_targets_were_missed(capsys: pytest.CaptureFixture[str]) -> None:
    report.show(report.rows(_samples({"call": 0.5, "load": 0.9})), "a run")
    printed = capsys.readouterr().out
    assert "at most" in printed
    assert "targets missed: call and return" in printed

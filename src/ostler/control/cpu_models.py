"""The processors that `--cpu` takes, and what this host's accelerators lack of each."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap

from ostler.config.accelerator import ACCELERATORS
from ostler.config.cpu_features import FEATURES, listed
from ostler.config.cpu_models import MODELS, SPECIAL, CpuModel
from ostler.control.session import offer_of
from ostler.engine import VirtualMachine
from ostler.errors import HostError
from ostler.host.processor import Offer, features_of


def describe() -> str:
    """Models and features, several lines; accelerators that this host lacks are left out."""
    return "\n".join(_lines([*_offers()]))


def _offers() -> Iterator[Offer]:
    for name in ACCELERATORS:
        try:
            vm = VirtualMachine(name)
        except HostError:
            continue
        yield offer_of(vm)
        vm.close()


def _lines(offers: list[Offer]) -> Iterator[str]:
    yield "models"
    for name, what in SPECIAL.items():
        yield f"  {name:<20} {what}"
    for name, model in MODELS.items():
        yield f"  {name:<20} {model.what}"
        for offer in offers:
            if why := _why_not(offer, model):
                yield f"  {'':<20}   {offer.accelerator}: {why}"
    for offer in offers:
        yield ""
        yield f"features of {offer.accelerator}"
        yield from _paragraph(listed(features_of(offer.everything)))
    there = frozenset[str]().union(*(features_of(offer.everything) for offer in offers))
    yield ""
    yield "features that this host has not"
    yield from _paragraph(listed(FEATURES.keys() - there))


def _why_not(offer: Offer, model: CpuModel) -> str:
    if offer.is_of_another_vendor(model):
        return f"no, the host's CPU is {offer.vendor}"
    lacking = offer.lacks(model)
    return f"without {listed(lacking)}" if lacking else ""


def _paragraph(text: str) -> list[str]:
    return wrap(text, width=100, initial_indent="  ", subsequent_indent="  ")

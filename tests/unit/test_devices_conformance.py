import pytest

from ostler.devices.registry import KINDS, DeviceKind
from ostler.testing import check_device


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.device.name)
def test_device_registered_conforms(kind: DeviceKind) -> None:
    check_device(kind.wire, kind.span)

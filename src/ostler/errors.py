"""What can go wrong, as one tree.

OstlerError                     every error this package raises on purpose
├── ConfigError                 what the user asked for cannot be built (exit code 2)
│   ├── KernelError             the kernel image is missing, damaged or of an unknown kind
│   └── DiskError               a disk is missing, damaged, in use or of the wrong size
├── HostError                   the host refuses: memory, permission, a missing feature
├── GuestError                  the guest ended in a way nobody asked for: triple fault, panic
├── StateError                  a saved state is damaged or from another version
└── WaitTimeout                 what was waited for did not come in time

Every message is one line that says what is wrong and what to do about it.
"""


class OstlerError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(OstlerError):
    """What the user asked for cannot be built."""


class KernelError(ConfigError):
    """The kernel image is missing, damaged or of an unknown kind."""


class DiskError(ConfigError):
    """A disk is missing, damaged, in use or of the wrong size."""


class HostError(OstlerError):
    """The host refuses: memory, permission, a missing feature."""


class GuestError(OstlerError):
    """The guest ended in a way nobody asked for."""


class StateError(OstlerError):
    """A saved state is damaged or from another version."""


class WaitTimeout(OstlerError):
    """What was waited for did not come in time."""

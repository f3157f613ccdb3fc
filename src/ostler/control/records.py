"""What a machine's boots have used: statistics, and a profile where one was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ostler.config import MachineConfig
from ostler.control.stats import VmStats
from ostler.errors import ConfigError

if TYPE_CHECKING:
    # Loaded for who wants a profile.
    from ostler.control.profile import VmProfile
    from ostler.control.session import Session
    from ostler.control.symbols import Symbols

NOT_RUN = "this VM has not run yet; start it"


class Records:
    """The boots that are over; each method adds those of the `session` that runs, if one does."""

    def __init__(self, config: MachineConfig) -> None:
        self._config = config
        self._stats = VmStats("")
        self._profile: VmProfile | None = None
        self._symbols: Symbols | None = None

    def prepare(self, accelerator: str) -> None:
        """Refuse a profile that cannot be made, and read the symbols for it."""
        if self._config.profile:
            from ostler.control.profile import check_accelerator
            from ostler.control.symbols import symbols_for

            check_accelerator(accelerator)
            self._symbols = symbols_for(self._config)

    def add(self, session: Session) -> None:
        """Keep what is known of a boot that is over."""
        self._stats = self.stats(session)
        if self._config.profile:
            self._profile = self.profile(session)

    def stats(self, session: Session | None) -> VmStats:
        """Statistics of all boots; `ConfigError` before the first."""
        if session is not None:
            return self._stats + session.stats()
        if not self._stats.vcpus:
            raise ConfigError(NOT_RUN)
        return self._stats

    def profile(self, session: Session | None) -> VmProfile:
        """The profile of all boots; `ConfigError` before the first, and without one."""
        from ostler.control.profile import VmProfile, collect

        if not self._config.profile:
            raise ConfigError("this VM makes no profile; make it with profile=True")
        past = self._profile or VmProfile()
        if session is not None and session.profiler is not None and self._symbols is not None:
            past += collect(session.profiler, self._symbols)
        if not past.vcpus:
            raise ConfigError(NOT_RUN)
        return past

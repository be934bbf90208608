"""A server that follows a registry: what is promoted, tried or rolled back there answers here, without a restart."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from hfchat.errors import UserError
from hfchat.registry.versions import Deployment, Registry
from hfchat.serving.engines.engine import Engine
from hfchat.serving.versions.models import ServedModels, Version, in_a_daemon_thread

_LOGGER = logging.getLogger("hfchat.serving")
_EVERY_S = 1.0
_RETRY_S = 60.0  # after this time a version that could not be loaded is tried again


class Follower:
    """Loads the versions that a registry names, and lets them answer under one name.

    A version that cannot be loaded changes nothing: the version before it goes on, and the log says why.

    Args:
        registry: Says which versions are to answer.
        load: Makes the engine for the model in a folder; called in a thread of its own.
    """

    def __init__(self, registry: Registry, load: Callable[[Path], Engine]):
        self._registry = registry
        self._load = load
        self._here: dict[str | None, Version] = {}  # what answers, by the version's name
        self._failed: dict[str, float] = {}  # when loading a version failed, on the event loop's clock
        self._deployed: Deployment | None = None
        self._complaint: str | None = None  # the last one, so that the log has it once

    def first(self) -> Version:
        """The version that answers when the server starts. `ServedModels` starts its engine.

        Raises:
            UserError: If it cannot be loaded.
        """
        current = self._registry.answering()
        version = self._here[current] = Version(self._load(self._registry.path(current)), current)
        self._deployed = Deployment(current)
        return version

    async def follow(self, models: ServedModels, name: str) -> None:
        """Look at the registry every second, for as long as the server runs, whatever is in its files."""
        while True:
            try:
                wanted = await asyncio.to_thread(self._registry.deployment)
                self._complain(wanted.problem)
                before = self._deployed
                # The candidate's file may be half written: then all stays as it is, unless another version answers.
                if wanted != before and (wanted.problem is None or before is None or wanted.current != before.current):
                    await self._deploy(wanted, models, name)
            except UserError as error:
                self._complain(str(error))
            except Exception as error:  # this must go on: a disk comes and goes, and people edit files
                self._complain(f"{self._registry.folder} cannot be read: {error} ({type(error).__name__})")
            await asyncio.sleep(_EVERY_S)

    def _complain(self, complaint: str | None) -> None:
        if complaint is not None and complaint != self._complaint:
            _LOGGER.error("%s", complaint)
        self._complaint = complaint

    async def _deploy(self, wanted: Deployment, models: ServedModels, name: str) -> None:
        current = await self._get(wanted.current, models)
        if current is None:
            return
        candidate, share = None, 0.0
        if wanted.candidate is not None:
            candidate, share = await self._get(wanted.candidate.version, models), wanted.candidate.share
        models.deploy(name, current, candidate, share if candidate else 0.0)
        self._here = {version.name: version for version in (current, candidate) if version is not None}
        if candidate is not None or wanted.candidate is None:
            self._deployed = wanted
            _LOGGER.info("%s: %s", name, _in_words(wanted))

    async def _get(self, name: str | None, models: ServedModels) -> Version | None:
        """The version, loaded and started; None if that is not possible now."""
        if name in self._here:
            return self._here[name]
        now = asyncio.get_running_loop().time()
        if name is None or now < self._failed.get(name, 0.0) + _RETRY_S:
            return None
        try:
            folder = self._registry.path(name)
            version = Version(await in_a_daemon_thread(lambda: self._load(folder)), name)
            await models.start_version(version)
        except UserError as error:
            _LOGGER.error("version %s does not answer: %s", name, error)
        except Exception:
            _LOGGER.exception("version %s does not answer: it could not be loaded", name)
        else:
            return version
        self._failed[name] = now
        return None


def _in_words(deployment: Deployment) -> str:
    words = f"version {deployment.current} answers"
    if deployment.candidate is not None:
        words += f", and {deployment.candidate.version} {deployment.candidate.share:.0%} of the requests"
    return words

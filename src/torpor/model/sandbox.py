"""How strongly a compute is shut in: the levels, and how they compare. Pure."""

from dataclasses import dataclass
from enum import StrEnum


class SandboxLevel(StrEnum):
    """What separates a compute from the host and from the others. Strongest first."""

    FULL = "full"  # own uid; own user, pid, mount, IPC, UTS and network namespaces; system-call filter; nothing but PostgreSQL to see
    NO_USER_NAMESPACE = "no_user_namespace"  # the same, but for the user namespace: root makes the others, and the uid is dropped inside
    SHARED_USER = "shared_user"  # all the namespaces and the filter, but every compute has Torpor's own uid: Torpor without root
    OWN_USER = "own_user"  # own uid and IPC namespace only: computes see the host's files and processes, and have its network
    NONE = "none"  # nothing but Torpor's own uid for all

    @property
    def is_sandbox(self) -> bool:
        """Whether the compute has namespaces of its own, so that it sees its own files, processes and network only."""
        return self in (SandboxLevel.FULL, SandboxLevel.NO_USER_NAMESPACE, SandboxLevel.SHARED_USER)

    @property
    def holds_superusers(self) -> bool:
        """Whether a tenant may be a real superuser of PostgreSQL, and so run any program inside."""
        return self in (SandboxLevel.FULL, SandboxLevel.NO_USER_NAMESPACE)

    def suffices(self, required: "SandboxLevel") -> bool:
        """Whether this is at least as strong as `required`."""
        order = list(SandboxLevel)
        return order.index(self) <= order.index(required)


AUTO = "auto"
"""As a setting: the strongest level that the host gives."""


@dataclass(frozen=True, slots=True)
class SandboxReport:
    """The level that computes get on this host; when it isn't the strongest, `why` and what to do (`remedy`)."""

    level: SandboxLevel
    why: str = ""
    remedy: str = ""

    @property
    def lacks(self) -> str:
        """Why it isn't the strongest and what to do, in one sentence; empty when it is."""
        return "; ".join(part for part in (self.why, self.remedy) if part)

"""The models of the course: embedded ones that need no network, and the hub's; ask for a role and get the right one.

Whatever is loaded comes from safetensors files whose digests were checked; no code and no pickle of a repository runs.
"""

from course_utils.models.hub import HubError, Snapshot, cached, fetch, pin
from course_utils.models.loading import KINDS, Loaded, load
from course_utils.models.registry import (
    EMBEDDED,
    Model,
    Role,
    embedded_models,
    hub_models,
    roles,
    seal,
    table,
    write_table,
)

__all__ = [
    "EMBEDDED",
    "KINDS",
    "HubError",
    "Loaded",
    "Model",
    "Role",
    "Snapshot",
    "cached",
    "embedded_models",
    "fetch",
    "hub_models",
    "load",
    "pin",
    "roles",
    "seal",
    "table",
    "write_table",
]

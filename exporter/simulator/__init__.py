"""Stand-ins for the platforms: the demo and the tests use the same ones.

``SIMULATORS`` is the one table that lists them: how a simulator is made, and the section of a config that reads it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from exporter.simulator.cognaize import CognaizeSimulator
from exporter.simulator.core import Simulator
from exporter.simulator.etlworks import EtlworksSimulator
from exporter.simulator.make import MakeSimulator
from exporter.simulator.n8n import N8nSimulator
from exporter.simulator.qlik import QlikSimulator

#: Demo credentials; open on purpose.
HOOK_SECRET = "0123456789abcdef0123456789abcdef"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """One simulator of the demo: its options beyond clock and seed, and the source section that reads it."""

    make: Callable[..., Simulator]
    options: Mapping[str, Any]
    section: Mapping[str, Any]


SIMULATORS: dict[str, Stand] = {
    "make": Stand(
        make=MakeSimulator,
        options={"api_limit": 600, "webhook_secret": HOOK_SECRET},
        section={
            "platform": "make",
            "token": "demo-token",
            "organization_id": 9,
            "webhook": {"scheme": "header", "header": "X-Webhook-Token", "secret": HOOK_SECRET},
        },
    ),
    "qlik": Stand(
        make=QlikSimulator,
        options={"secret": HOOK_SECRET},
        section={
            "platform": "qlik",
            "oauth": {"client_id": "demo-client", "client_secret": "demo-secret"},
            "webhook": {"scheme": "qlik", "secret": HOOK_SECRET},
        },
    ),
    "etlworks": Stand(
        make=EtlworksSimulator,
        options={"webhook_user": "demo", "webhook_password": HOOK_SECRET},
        section={
            "platform": "etlworks",
            "login": "demo",
            "password": "demo-password",
            "webhook": {"scheme": "basic", "username": "demo", "password": HOOK_SECRET},
        },
    ),
    "cognaize": Stand(
        make=CognaizeSimulator,
        options={"webhook_token": HOOK_SECRET},
        section={
            "platform": "cognaize",
            "token": "demo-token",
            "webhook": {"scheme": "bearer", "token": HOOK_SECRET},
        },
    ),
    "n8n": Stand(
        make=N8nSimulator,
        options={"webhook_secret": HOOK_SECRET},
        section={
            "platform": "n8n",
            "token": "demo-token",
            "webhook": {"scheme": "header", "header": "X-Webhook-Token", "secret": HOOK_SECRET},
        },
    ),
}

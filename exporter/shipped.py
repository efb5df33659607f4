"""What comes along with the code: dashboards, alert rules and runbooks.

In a checkout they lie where people look for them; the wheel carries them inside the package (see ``pyproject.toml``).
"""

from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Literal

__all__ = ["Kind", "shipped"]

Kind = Literal["dashboards", "alerts", "runbooks"]
#: Where each lies in a checkout.
PLACES: dict[Kind, str] = {"dashboards": "dashboards", "alerts": "alerts", "runbooks": "docs/runbooks"}
#: Where all of them lie in an installed package.
FOLDER = "_shipped"


def shipped(kind: Kind) -> Traversable:
    """The folder of what is asked for, to be read. Raises ``FileNotFoundError`` with one line if it was left out."""
    package = files(__package__)
    installed, checkout = package / FOLDER / kind, package / ".." / PLACES[kind]
    for folder in (installed, checkout):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"this installation of automation-exporter lacks its {kind}: install the wheel again")

"""The section ``store``: which database, its password, and how long it remembers."""

import re
from importlib.util import find_spec

from pydantic import Field, field_validator, model_validator

from exporter.config import wording
from exporter.log import register_secrets
from exporter.platform.fields import Duration, Secret, Section, secret_now
from exporter.store import address


class StoreConfig(Section):
    url: str = "sqlite:///automation-exporter.db"
    password: Secret | None = Field(
        default=None, description="of the user of a PostgreSQL; its file is read again at each new connection"
    )
    retention: Duration = Field(default="30d", validate_default=True)

    @field_validator("url")
    @classmethod
    def _known_engine(cls, value: str) -> str:
        if value.startswith("sqlite:///") and len(value) > len("sqlite:///"):
            return value
        if address.is_postgres(value):
            if (wrong := address.mistake(value)) is not None:
                raise ValueError(wrong)
            if find_spec("asyncpg") is None:
                raise ValueError("PostgreSQL needs the extra postgres: pip install 'automation-exporter[postgres]'")
            return value
        if re.fullmatch(r"[\w./-]+\.(db|sqlite3?)", value):  # anything else may be something else, and is not quoted
            raise ValueError(f"a path is no URL: write sqlite:///{value}")
        if ":" not in value:
            raise ValueError("a path is no URL: write sqlite:/// before it")
        if value.startswith("sqlite:"):
            raise ValueError("use sqlite:///FILE: three slashes, and a fourth where the path begins with one")
        raise ValueError("use sqlite:///FILE or postgresql://USER@HOST/DATABASE")

    @field_validator("retention")
    @classmethod
    def _long_enough(cls, seconds: float) -> float:
        if seconds < 86400:
            raise ValueError("the shortest retention is 1d: runs are recognised by the ledger for that long")
        return seconds

    @model_validator(mode="after")
    def _one_password(self) -> "StoreConfig":
        if self.password is not None:
            if not address.is_postgres(self.url):
                raise wording.found_below([".password: a SQLite database has none; remove it"])
            if self.secrets_in_url:
                raise wording.found_below([".password: store.url has a password, too; leave one of them out"])
        return self

    @property
    def secrets_in_url(self) -> list[str]:
        """Passwords within the URL."""
        return address.secrets_in(self.url)

    def password_now(self) -> str | None:
        """The password as its file has it at this moment: it may have been replaced. None where none is given here."""
        if self.password is None:
            return None
        found = secret_now(self.password).get_secret_value()
        if found != self.password.get_secret_value():
            register_secrets([found])
        return found

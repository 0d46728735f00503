"""Asks a Prometheus: what it answers, or in one sentence why that is no answer."""

from __future__ import annotations

import json
import math
import ssl
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from leadprotect.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    import httpx

    from leadprotect.settings import Settings

REQUEST_S = 5.0
"""How long one step of a request may take: to connect, to begin an answer, to go on with it."""

_LARGEST = 16 * 1024 * 1024
_SAID = 200


class Unanswered(Exception):
    """Prometheus gave no answer that can be used; the text says why, and never holds what it was asked with."""


@dataclass(frozen=True)
class Series:
    """One series of an instant query, at the moment of the query."""

    labels: dict[str, str]
    value: float


@dataclass(frozen=True)
class Rule:
    """An alert as Prometheus has it loaded; `interval` in seconds, `evaluated` None before the first time."""

    name: str
    query: str
    labels: dict[str, str]
    state: str
    health: str
    error: str
    evaluated: datetime | None
    interval: float
    file: str


@dataclass
class Prometheus:
    """A conversation of some requests; after one of them had no answer, none is sent any more."""

    settings: Settings
    warnings: list[str] = field(default_factory=list)
    _silent: str | None = None

    def __enter__(self) -> Self:
        """Read the files of the login anew; raises `Unanswered` where one can't be used."""
        self._client = _client(self.settings)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self._client.close()

    def instant(self, query: str) -> list[Series]:
        """The series of `query` now; a scalar is one without labels."""
        data = self._data("query", query=query)
        with _of_its_form():
            kind, found = data["resultType"], data["result"]
            if kind == "scalar":
                return [Series({}, _number(found))]
            if kind != "vector":
                raise Unanswered(f"answers a {_said(str(kind))}, where a vector was expected")
            return [Series(dict(one["metric"]), _number(one["value"])) for one in found]

    def alerts(self) -> list[Rule]:
        """The alerts that are loaded, whoever wrote them."""
        data = self._data("rules", type="alert")
        with _of_its_form():
            groups = data["groups"]
            return [_rule(rule, group) for group in groups for rule in group["rules"] if rule["type"] == "alerting"]

    def _data(self, what: str, **parameters: str) -> Any:
        if self._silent:
            raise Unanswered(self._silent)
        status, kind, body = self._answered(f"{self.settings.prometheus_url}/api/v1/{what}", parameters)
        found = _json(status, kind, body)
        with _of_its_form():
            self.warnings += [_said(str(warning)) for warning in found.get("warnings") or []]
            return found["data"]

    def _answered(self, url: str, parameters: dict[str, str]) -> tuple[int, str, bytes]:
        import httpx  # noqa: PLC0415 - an extra

        try:
            with self._client.stream("GET", url, params=parameters) as response:
                if response.is_redirect:
                    raise Unanswered(_redirect(response.headers.get("location", "")))
                body = b""
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > _LARGEST:
                        raise Unanswered(f"answers more than {_LARGEST // 2**20} MiB")
                return response.status_code, response.headers.get("content-type", ""), body
        except httpx.TimeoutException:
            self._silent = f"gave no answer within {REQUEST_S:g} s"
        except httpx.HTTPError as error:
            self._silent = f"can't be reached: {_said(str(error) or type(error).__name__)}"
        raise Unanswered(self._silent) from None


def needed() -> None:
    """Raise `SettingsError` without the extra `gates`."""
    try:
        import httpx  # noqa: F401, PLC0415 - an extra
    except ModuleNotFoundError:
        raise SettingsError("the gates need the extra gates: pip install 'leadprotect[gates]'") from None


def secret(key: str, path: str) -> str:
    """What the file of a setting holds, without the end of its line; raises `Unanswered`, never with its text."""
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Unanswered(f"was not asked: {key} can't be read ({type(error).__name__})") from None
    if not text:
        raise Unanswered(f"was not asked: {key} is empty")
    if not text.isprintable() or not text.isascii():
        raise Unanswered(f"was not asked: {key} holds a character that a request can't carry")
    return text


def _client(settings: Settings) -> httpx.Client:
    import httpx  # noqa: PLC0415 - an extra

    headers, auth = {}, None
    if bool(settings.prometheus_user) != bool(settings.prometheus_password_file):
        raise Unanswered("was not asked: prometheus_user and prometheus_password_file belong together")
    if settings.prometheus_token_file and settings.prometheus_user:
        raise Unanswered("was not asked: a request carries prometheus_token_file or prometheus_user, not both")
    if settings.prometheus_token_file:
        token = secret("prometheus_token_file", settings.prometheus_token_file)
        headers["authorization"] = f"Bearer {token}"
    elif settings.prometheus_user:
        password = secret("prometheus_password_file", settings.prometheus_password_file)
        auth = httpx.BasicAuth(settings.prometheus_user, password)
    return httpx.Client(
        auth=auth,
        headers=headers,
        timeout=REQUEST_S,
        trust_env=False,  # no proxy stands between a gate and its Prometheus because some shell names one
        follow_redirects=False,  # the login would go along
        verify=_tls(settings),
    )


def _tls(settings: Settings) -> ssl.SSLContext:
    ca, cert = settings.prometheus_ca_file, settings.prometheus_cert_file
    if not (ca or cert or settings.prometheus_url.startswith("https:")):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody, and reads no certificates for that
    try:
        context = ssl.create_default_context(cafile=ca or None)
    except (OSError, ssl.SSLError) as error:
        raise Unanswered(f"was not asked: prometheus_ca_file can't be read ({type(error).__name__})") from None
    if cert:
        try:
            context.load_cert_chain(cert, password="")
        except (OSError, ssl.SSLError, ValueError) as error:
            raise Unanswered(f"was not asked: prometheus_cert_file can't be read ({type(error).__name__})") from None
    return context


def _json(status: int, kind: str, body: bytes) -> dict[str, Any]:
    if status in {401, 403}:
        raise Unanswered(f"refuses this login (HTTP {status}): see prometheus_token_file, or prometheus_user")
    try:
        found = json.loads(body)
    except ValueError:
        if status != 200:  # noqa: PLR2004 - HTTP: OK
            raise Unanswered(f"answers HTTP {status}") from None
        if "json" not in kind:
            what = kind.partition(";")[0] or "nothing"
            raise Unanswered(f"answers {_said(what)}, not JSON: is prometheus_url a Prometheus?") from None
        raise Unanswered("answers JSON that ends in the middle") from None
    if not isinstance(found, dict) or found.get("status") not in {"success", "error"}:
        raise Unanswered("answers JSON that is not Prometheus's: is prometheus_url a Prometheus?")
    if status != 200 or found["status"] == "error":  # noqa: PLR2004
        raise Unanswered(f"answers HTTP {status}: {_said(str(found.get('error', 'without a reason')))}")
    return found


@contextmanager
def _of_its_form() -> Iterator[None]:
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise Unanswered("answers in a form that is not Prometheus's") from None


def _redirect(location: str) -> str:
    to = urlsplit(location)
    where = f"{to.scheme}://{to.netloc.rpartition('@')[2]}" if to.netloc else "another path"
    return f"redirects to {_said(where)}, which is not followed: set prometheus_url to where it is"


def _said(text: str) -> str:
    return " ".join(text.split())[:_SAID]


def _number(value: Any) -> float:
    return float(value[1])


def _rule(rule: dict[str, Any], group: dict[str, Any]) -> Rule:
    evaluated = datetime.fromisoformat(rule.get("lastEvaluation") or "0001-01-01T00:00:00Z")
    return Rule(
        name=str(rule["name"]),
        query=str(rule["query"]),
        labels={str(name): str(value) for name, value in (rule.get("labels") or {}).items()},
        state=str(rule["state"]),
        health=str(rule["health"]),
        error=_said(str(rule.get("lastError") or "")),
        evaluated=evaluated if evaluated.year > 1 else None,
        interval=float(group.get("interval") or math.nan),
        file=str(group.get("file") or ""),
    )

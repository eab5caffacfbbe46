"""The subscriptions file as it is written: every key, its form and its description.

The JSON Schema is generated from these models, so what an editor shows is what the loader checks.  A
model says what one map may hold; what must hold between maps, once `defaults` are filled in, is in
`build`.  Only keys that a file sets are taken from here: what it leaves out takes the defaults of
`service.core.subscription`, and a default here is for the schema.
"""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, model_validator

from service.core.subscription import STANDARD_SCHEDULE, Balance, Format, Scheme
from service.subscriptions import values
from service.subscriptions.fields import (
    Age,
    Delay,
    FilePath,
    FilterText,
    Headers,
    Id,
    Name,
    Pattern,
    Rate,
    Status,
    Text,
    Timeout,
    Url,
)

_NEVER_READ: Any = None  # a map of its own for each of very many subscriptions would cost time


class Model(BaseModel):
    """A map of the file: no key that it does not know, and no value of another type."""

    model_config = ConfigDict(extra="forbid")


def _shown(default: str | list[str]) -> dict[str, Any]:
    """Show a default in the schema as it would be written in the file."""
    return {"default": default}


class TargetModel(Model):
    """One URL of a subscription."""

    url: Url = Field(
        description="Where to POST. https, or http where the operator allows it.",
        examples=["https://billing.example.com/hooks"],
    )
    weight: Annotated[StrictInt, Field(ge=0, le=1000)] = Field(
        default=1, description="Share of the deliveries, relative to the other targets; 0 drains."
    )
    max_in_flight: Annotated[StrictInt, Field(ge=1, le=10_000)] = Field(
        default=32, description="Concurrent attempts of one process."
    )
    backup: StrictBool = Field(
        default=False, description="Serves only when no other target is eligible."
    )


class SecretModel(Model):
    """Where a secret is read: never the secret itself."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["env"]}, {"required": ["file"]}]}
    )

    env: Name | None = Field(
        default=None, description="Name of an environment variable.", examples=["BILLING_SECRET"]
    )
    file: FilePath | None = Field(
        default=None,
        description="Path of a file, relative to this one; a changed file is taken up.",
        examples=["/run/secrets/billing"],
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.env is None) == (self.file is None):
            raise ValueError("must be either {env: NAME} or {file: PATH}")
        return self


class SigningModel(Model):
    """How requests are signed."""

    scheme: Scheme = Field(
        default=Scheme.STANDARD,
        description="standard (v1), ed25519 (v1a), hub-sha256 (X-Hub-Signature-256), or none.",
    )
    secrets: Annotated[list[SecretModel], Field(max_length=10)] = Field(
        default=[],
        description="All of them sign, so that a secret can be rotated. whsec_ and base64 for "
        "standard, whsk_ and base64 for ed25519, any text for hub-sha256.",
    )


class RetryModel(Model):
    """When a failed round is followed by another."""

    schedule: Annotated[tuple[Delay, ...], Field(max_length=100)] = Field(
        default=(),
        description="Delays between the rounds, at most 36h each; an empty list retries never.",
        json_schema_extra=_shown(list(map(values.duration_text, STANDARD_SCHEDULE))),
    )
    jitter: Annotated[float, Field(ge=0, le=1, strict=True)] = Field(
        default=0.2, description="Share by which a delay may differ either way."
    )
    max_age: Age = Field(
        default=0.0,
        description="An older delivery becomes a dead letter.",
        json_schema_extra=_shown("5d"),
    )
    permanent_statuses: frozenset[Status] = Field(
        default=frozenset(),
        description="Answers that make a dead letter at once.",
        examples=[[422]],
    )


class TlsModel(Model):
    """PEM files, relative to this file."""

    ca_file: FilePath | None = Field(
        default=None, description="Certificates to trust instead of the system's."
    )
    client_cert_file: FilePath | None = Field(default=None, description="Client certificate.")
    client_key_file: FilePath | None = Field(
        default=None, description="Its private key, without a passphrase."
    )


class PolicyModel(Model):
    """What may stand in `defaults` and in a subscription, which overrides it key by key."""

    description: Text = Field(default="", description="For people.")
    enabled: StrictBool = Field(
        default=True, description="false: deliveries wait; nothing is dropped."
    )
    tenant: Name | None = Field(default=None, description="Only events of this tenant.")
    event_types: Annotated[list[Pattern], Field(min_length=1, max_length=1000)] = Field(
        default_factory=list,
        description="Topic patterns on the event type: * is one word, # any number of words.",
        examples=[["payment.*", "invoice.#"]],
    )
    filter: FilterText | None = Field(
        default=None,
        description="CEL on `data` and `event` (id, type, source, subject, time, tenant).",
        examples=['data.amount > 1000 && data.currency == "EUR"'],
    )
    balance: Balance = Field(
        default=Balance.WEIGHTED_ROUND_ROBIN, description="How the next target is chosen."
    )
    format: Format = Field(default=Format.STANDARD, description="The body of the request.")
    signing: SigningModel = Field(
        default=_NEVER_READ,
        description="How requests are signed; required, if only as none.",
    )
    headers: Headers = Field(
        default_factory=dict, description="Further request headers; null takes a default away."
    )
    timeout: Timeout = Field(
        default=0.0,
        description="One attempt, from connecting to the last byte.",
        json_schema_extra=_shown("15s"),
    )
    connect_timeout: Timeout = Field(
        default=0.0,
        description="Connecting, TLS included.",
        json_schema_extra=_shown("5s"),
    )
    retry: RetryModel = Field(default=_NEVER_READ, description="When a failed round is repeated.")
    rate_limit: Rate | None = Field(
        default=None,
        description="Attempts per second (s), minute (m) or hour (h).",
        examples=["100/s"],
    )
    tls: TlsModel = Field(default=_NEVER_READ, description="Certificates.")


class SubscriptionModel(PolicyModel):
    """Who wants which events, and where they go."""

    id: Id = Field(description="Unique over all files.", examples=["billing"])
    targets: Annotated[list[TargetModel], Field(min_length=1, max_length=100)] = Field(
        description="URLs that share the deliveries."
    )


class FileModel(Model):
    """Subscriptions of the webhook dispatcher."""

    schema_: str | None = Field(default=None, alias="$schema", description="For editors.")
    defaults: PolicyModel = Field(
        default_factory=PolicyModel,
        description="Values for what a subscription of this file leaves out.",
    )
    subscriptions: list[SubscriptionModel] = Field(description="May be empty.")

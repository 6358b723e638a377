"""Secrets of HTTP services, from environment variables: they stand in no file, log, error or command line."""

import os
import re

from nemo_moslim.checks import require

SERVICE_TOKEN = "MOSLIM_SERVICE_TOKEN"


def secret_of(key: str, variable: str | None) -> str | None:
    """The secret in an environment variable, blanks around it aside; None where no variable is named.

    Raises:
        ValueError: no such variable, or one that cannot be sent in a header. The message names it, not its content.
    """
    if variable is None:
        return None
    secret = os.environ.get(variable, "").strip()
    require(bool(secret), key, variable, "an environment variable that holds the key (null: a server without keys)")
    if not re.fullmatch(r"[\x21-\x7e]+", secret):
        raise ValueError(f"{key}={variable}: its content cannot be sent as a key: blanks or letters beyond ASCII in it")
    return secret


def service_token() -> str | None:
    """The token of a reward model's service, for its clients and itself: the environment's MOSLIM_SERVICE_TOKEN.

    Returns:
        None where it is not set: a service that wants none.

    Raises:
        ValueError: it is set and empty, or cannot be sent in a header.
    """
    if SERVICE_TOKEN not in os.environ:
        return None
    if not os.environ[SERVICE_TOKEN].strip():
        raise ValueError(f"{SERVICE_TOKEN} is set and empty: give the service's token, or unset it where it has none")
    return secret_of("environment variable", SERVICE_TOKEN)

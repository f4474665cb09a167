"""Check of MLflow's server."""

import httpx

from service.domain.tracking_endpoints import Refused, server_url
from service.settings import Settings


def check_server(settings: Settings) -> str | None:
    """Return why MLflow's server cannot be used, in its own words if it gives any; None if it can."""
    token = settings.mlflow_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        url = server_url(settings.mlflow_url, "/health")
        answer = httpx.get(url, headers=headers, timeout=5, trust_env=False)
    except (httpx.HTTPError, Refused) as error:
        return f"{settings.mlflow_url} does not answer ({type(error).__name__})"
    if answer.status_code == 200:
        return None
    try:
        return str(answer.json()["message"])
    except (ValueError, KeyError, TypeError):
        return f"{settings.mlflow_url} answers with status {answer.status_code}"

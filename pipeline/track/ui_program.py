"""The program behind `slackwater ui`: MLflow's own web application in one process. Never imported.

`mlflow server` would be a program that starts another one, and both import MLflow: twice the time to the first page,
twice the memory. The names used here are MLflow's internal ones; where they are gone, `mlflow server` does it.
"""

from __future__ import annotations

import gc
import os
import sys


def main() -> None:
    """PORT. The store's address is in MLFLOW_BACKEND_STORE_URI, since it may hold a password."""
    port, address = sys.argv[1], os.environ["MLFLOW_BACKEND_STORE_URI"]
    gc.disable()  # nothing of what is imported is garbage: a fifth of the time to the first page
    try:
        import uvicorn
        from mlflow.server import constants

        os.environ[constants.BACKEND_STORE_URI_ENV_VAR] = address
        os.environ[constants.REGISTRY_STORE_URI_ENV_VAR] = address
        from mlflow.server.fastapi_app import app
    except (ImportError, AttributeError) as error:
        print(f"mlflow server instead of its application: {error}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", "1"]
        os.execv(command[0], command)
    gc.freeze()
    gc.enable()
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")


if __name__ == "__main__":
    main()

"""semblance-databricks over TLS, its clock moved by each poll, and a way to say how a run ends.

Runs in the backends' environment: ``python databricks_program.py PORT CHAIN TOKEN``.
``POST /control/end`` with ``{"run_id", "result_state"}`` says what the run will have come to, and
``{"run_id", "life_cycle_state"}`` where it stands.
"""

import sys

import uvicorn
from fastapi import Request
from semblance_databricks.app import DatabricksMock
from semblance_databricks.config import DatabricksMockConfig, TokenGrant

port, chain, token = sys.argv[1:]
mock = DatabricksMock(
    DatabricksMockConfig(auth="strict", tokens=(TokenGrant(token),), clock="real")
)
app = mock.as_fastapi()


@app.post("/control/end")
async def end(request: Request) -> dict[str, bool]:
    wanted = await request.json()
    run = mock.state.runs[str(wanted.pop("run_id"))]
    for name, value in wanted.items():
        setattr(run, name, value)
    return {"done": True}


uvicorn.run(app, host="127.0.0.1", port=int(port), ssl_certfile=chain, log_level="warning")

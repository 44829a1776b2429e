"""moto's server, and a way to say what state a SageMaker job or endpoint is in.

Runs in the backends' environment: ``python aws_program.py PORT``. moto ends every job at once;
``POST /control`` with ``{"kind", "name", "set": {...}}`` writes attributes of the stored object.
"""

import json
import sys

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from moto.sagemaker.models import sagemaker_backends
from werkzeug.serving import run_simple
from werkzeug.wrappers import Request, Response

ACCOUNT, REGION = "123456789012", "us-east-1"
aws = DomainDispatcherApplication(create_backend_app)


def application(environ, start):
    if environ["PATH_INFO"] != "/control":
        return aws(environ, start)
    wanted = json.loads(Request(environ).get_data())
    found = getattr(sagemaker_backends[ACCOUNT][REGION], wanted["kind"]).get(wanted["name"])
    for name, value in wanted["set"].items():
        setattr(found, name, value)
    return Response(json.dumps({"found": found is not None}))(environ, start)


run_simple(
    "127.0.0.1", int(sys.argv[1]), application, threaded=True, request_handler=MotoRequestHandler
)

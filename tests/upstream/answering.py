"""The loop that both peers run: read a request, ask the SDK, write the answer.

Requests: ``{"op": "encode", "type", "value"}`` (or ``"encode_old"``),
``{"op": "decode", "type", "value", "literal"}``,
``{"op": "guess", "literal_type"}``. Types and values are source text over the vocabulary, messages
base64. A refusal by the SDK is an answer, ``{"error"}``, never the end of the peer.
"""

import base64
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import vocabulary


def serve(reply: Callable[[dict[str, str]], dict[str, Any]], version: str) -> None:
    """Answer until standard input ends; what an SDK prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps({"version": version}), file=answers, flush=True)
    for line in sys.stdin:
        try:
            answered = reply(json.loads(line))
        except BaseException as error:  # noqa: BLE001 - the SDKs raise anything
            answered = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answered), file=answers, flush=True)


def answer(request: dict[str, str], peer: Any) -> dict[str, Any]:
    """Do one request with the peer's functions."""
    if request["op"] == "guess":
        return {"guess": str(peer.guess(base64.b64decode(request["literal_type"])))}
    kind = eval(request["type"], peer.NAMES)
    value = eval(request["value"], peer.NAMES)
    if request["op"].startswith("encode"):
        literal, literal_type = getattr(peer, request["op"])(kind, value)
        return {
            "literal": base64.b64encode(literal).decode(),
            "literal_type": base64.b64encode(literal_type).decode(),
        }
    got = peer.decode(kind, base64.b64decode(request["literal"]))
    return {"same": vocabulary.same(plain(got, peer), plain(value, peer)), "got": repr(got)}


def plain(value: Any, peer: Any) -> Any:
    """Replace the SDK's file and table objects, which compare by identity or by local path."""
    if type(value) is list:
        return [plain(item, peer) for item in value]
    if type(value) is dict:
        return {key: plain(item, peer) for key, item in value.items()}
    return peer.comparable(value)

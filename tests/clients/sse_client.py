"""Reads a stream with httpx-sse and prints each `data` event as a line of JSON.

Usage: sse_client.py URL CHANGES. Ends after the snapshot and that many events behind it.
"""

import json
import sys

import httpx
from httpx_sse import connect_sse


def ends_snapshot(elements):
    return any(element["headers"].get("control") == "snapshot-end" for element in elements)


def main(url, changes):
    complete = False
    timeout = httpx.Timeout(30, connect=10)
    with httpx.Client(timeout=timeout, trust_env=False) as client:
        with connect_sse(client, "GET", url) as source:
            for event in source.iter_sse():
                if event.event != "data":
                    continue
                print(json.dumps({"id": event.id, "data": event.data, "retry": event.retry}), flush=True)
                changes -= complete
                complete = complete or ends_snapshot(json.loads(event.data))
                if complete and not changes:
                    return


main(sys.argv[1], int(sys.argv[2]))

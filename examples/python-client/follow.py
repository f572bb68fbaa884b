"""Follow topics of a PiCloud app, with what docs/protocol.md says and Python's own library.

usage: follow.py BASE_URL TOPIC...      (PICLOUD_TOKEN: a subscriber token, where one is needed)
"""

import http.client, json, os, random, sys, time, urllib.error, urllib.parse, urllib.request

SILENCE_S = 45  # the server says something every 15 s

def events(stream):
    """The events of a stream: (name, id or None, data)."""
    fields = {}
    for line in stream:
        name, _, value = line.decode().rstrip("\n").partition(":")
        if name:
            fields[name] = value.removeprefix(" ")
            continue
        if "data" in fields:
            yield fields.get("event", "message"), fields.get("id"), json.loads(fields["data"])
        fields = {}


def follow(base_url, topics, get_token=lambda: None, place=None):
    """Yield (event, data) for ever: each message once, in the order of its topic, and each gap."""
    query = urllib.parse.urlencode([("topic", topic) for topic in topics])
    newest, failures, refusals, token = {}, 0, 0, None
    while True:
        pause = 0
        try:
            token = token or get_token()
            headers = {"accept": "text/event-stream"}
            headers |= {"authorization": f"Bearer {token}"} if token else {}
            headers |= {"last-event-id": place} if place else {}
            request = urllib.request.Request(f"{base_url}/realtime?{query}", headers=headers)
            with urllib.request.urlopen(request, timeout=SILENCE_S) as stream:
                for event, event_id, data in events(stream):
                    if event == "ready":
                        failures = refusals = 0
                    elif event == "expired":
                        token, failures = None, -1  # come back at once
                    elif event == "reset":
                        raise SystemExit(f"the topic {data['topic']} was closed")
                    elif event == "gap" or data.get("seq", 2**53) > newest.get(data["topic"], 0):
                        newest[data["topic"]] = data.get("seq", newest.get(data["topic"], 0))
                        yield event, data
                    place = event_id or place
        except urllib.error.HTTPError as refused:
            refusals += refused.code in (401, 403)
            if refused.code < 500 and refused.code != 429 and refusals != 1:
                raise SystemExit(json.load(refused)["detail"])
            token, pause = None, float(refused.headers.get("retry-after", 0))
        except (OSError, http.client.HTTPException):
            pass  # the connection was lost, or fell silent
        failures += 1
        time.sleep(max(pause, min(30, 2 ** (failures - 1)) * random.uniform(0.5, 1) if failures else 0))


if __name__ == "__main__":
    for event, data in follow(sys.argv[1], sys.argv[2:], lambda: os.environ.get("PICLOUD_TOKEN")):
        print(json.dumps({"event": event, **data}), flush=True)

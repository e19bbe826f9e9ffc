"""The admin listener: what it answers is what its document says, what changes is in the audit log, and the page is shut off."""

import re
import signal
from urllib.parse import quote

import pytest
from provider import until

TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float), "null": type(None)}


def differs(schema: dict, value, document: dict, place: str = "") -> list:
    """Where a value is not what a schema says, for the few words of JSON Schema that the document uses. Named properties are all there are."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    names = schema.get("type", [])
    names = [names] if isinstance(names, str) else names
    is_type = [isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool)) for name in names]
    if names and not any(is_type):
        return [f"{place}: {value!r} is no {names}"]
    if value is None:
        return []
    found = []
    if "enum" in schema and value not in schema["enum"] or "const" in schema and value != schema["const"]:
        found.append(f"{place}: {value!r} is none of them")
    if "pattern" in schema and not re.search(schema["pattern"], value):
        found.append(f"{place}: {value!r} does not match")
    if schema.get("format") == "date-time" and not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", value):
        found.append(f"{place}: {value!r} is no moment")
    if value.__class__ in (int, float) and value < schema.get("minimum", value):
        found.append(f"{place}: {value} is too small")
    if isinstance(value, dict) and "properties" in schema:
        found += [f"{place}: lacks {name}" for name in schema.get("required", []) if name not in value]
        found += [f"{place}: has {name}, which is not described" for name in value if name not in schema["properties"]]
        for name, part in value.items():
            found += differs(schema["properties"].get(name, {}), part, document, f"{place}.{name}")
    if isinstance(value, list):
        for index, part in enumerate(value):
            found += differs(schema.get("items", {}), part, document, f"{place}[{index}]")
    return found


class Admin:
    """Asks the admin API and holds every answer to the document."""

    def __init__(self, weir):
        self.weir = weir
        self.document = weir.admin("GET", "/admin/v1/openapi.json", token=False).json

    def __call__(self, method: str, template: str, status: int, body=b"", query: str = "", token: bool = True, **parts):
        path = template
        for name, value in parts.items():
            path = path.replace("{" + name + "}", quote(value, safe=""))
        answer = self.weir.admin(method, path + query, body, token)
        assert answer.status == status, answer.received
        described = self.document["paths"][template][method.lower()]["responses"][str(status)]
        if "$ref" in described:
            described = self.document["components"]["responses"][described["$ref"].rsplit("/", 1)[1]]
        assert differs(described["content"]["application/json"]["schema"], answer.json, self.document) == []
        return answer.json


def test_every_answer_is_as_described(one):
    admin = Admin(one.weir)
    row = one.weir.row_of(one.weir.chat())
    for page in ("config", "providers", "models", "keys", "vault", "accounts", "audit"):
        admin("GET", f"/admin/v1/{page}", 200)
        admin("GET", f"/admin/v1/{page}", 401, token=False)
    admin("GET", "/readyz", 200, query="?verbose")
    admin("POST", "/admin/v1/reload", 200)
    assert admin("GET", "/admin/v1/requests/{id}", 200, id=row["request_id"]) == row
    admin("GET", "/admin/v1/requests/{id}", 404, id="none")
    for by in ("day", "model", "provider", "key", "level", "account"):
        assert admin("GET", "/admin/v1/usage", 200, query=f"?by={by}&since=1d")["total"]["rows"] == 1
    admin("GET", "/admin/v1/usage", 400, query="?by=colour")
    admin("GET", "/admin/v1/accounts", 400, query="?limit=x")
    admin("GET", "/admin/v1/audit", 400, query="?before=x")


def test_a_key_from_its_making_to_its_end(one):
    admin = Admin(one.weir)
    for bad in ({}, {"name": "a", "tear": "x"}, {"name": "a", "tier": "none"}, {"name": "a", "credits": "x"}, {"name": "a", "limits": {"rps": 1}}, []):
        admin("POST", "/admin/v1/keys", 400, bad)
    made = admin("POST", "/admin/v1/keys", 201, {"name": "shop", "account": "team/a", "credits": "5", "limits": {"rpm": 1000}})
    until(lambda: one.weir.chat(key=made["key"]).status == 200, 3, "the key")
    listed = next(key for key in admin("GET", "/admin/v1/keys", 200)["data"] if key["id"] == made["id"])
    assert (listed["account"], listed["state"], listed["limits"]["rpm"], listed["has_budget"]) == ("team/a", "active", 1000, True)
    assert made["key"][4:12] not in str(listed)

    turned = admin("POST", "/admin/v1/keys/{id}/rotate", 201, {"overlap_ms": 600_000}, id=made["id"])
    until(lambda: one.weir.chat(key=turned["key"]).status == 200, 3, "the new secret")
    assert one.weir.chat(key=made["key"]).status == 200, "the old one, for a while"
    admin("DELETE", "/admin/v1/keys/{id}", 200, id=made["id"])
    until(lambda: one.weir.chat(key=turned["key"]).status == 401, 3, "the revocation")
    admin("POST", "/admin/v1/keys/{id}/rotate", 400, id=made["id"])
    admin("DELETE", "/admin/v1/keys/{id}", 400, id="key_none")
    actions = [(record["action"], record["subject"]) for record in admin("GET", "/admin/v1/audit", 200)["data"]]
    assert {("key.create", made["id"]), ("key.rotate", made["id"]), ("key.revoke", made["id"])} <= set(actions)


def test_an_account_whose_name_no_path_could_hold(one):
    admin = Admin(one.weir)
    name = "jwt:a/b c"
    assert admin("GET", "/admin/v1/accounts/{id}", 200, id=name)["balance"] is None
    assert admin("POST", "/admin/v1/accounts/{id}/grants", 201, {"credits": "10.5", "note": "hello"}, id=name)["balance"] == "10.5"
    assert admin("POST", "/admin/v1/accounts/{id}/grants", 201, {"credits": "-3"}, id=name)["balance"] == "7.5"
    admin("POST", "/admin/v1/accounts/{id}/grants", 400, {"credits": "many"}, id=name)
    assert admin("GET", "/admin/v1/accounts/{id}", 200, id=name)["balance"] == "7.5"
    names = [account["account"] for account in admin("GET", "/admin/v1/accounts", 200)["data"]]
    assert name in names
    before = names[names.index(name) - 1] if names.index(name) else ""
    page = admin("GET", "/admin/v1/accounts", 200, query=f"?limit=1&after={quote(before)}")["data"]
    assert [account["account"] for account in page] == [name]


@pytest.mark.parametrize("who", ["file", "signal", "admin"])
@pytest.mark.parametrize("result", ["ok", "rejected"])
def test_every_reload_is_in_the_audit_log(one, who, result):
    admin = Admin(one.weir)
    if who == "file" or result == "rejected":
        one.weir.swap("routing.toml", one.routing() + ("\n# touched\n" if result == "ok" else "\n[surprise]\n"))
    if who == "signal":
        one.weir.signal(signal.SIGHUP)
    elif who == "admin":
        admin("POST", "/admin/v1/reload", 200 if result == "ok" else 422)

    def recorded():
        records = admin("GET", "/admin/v1/audit", 200)["data"]
        return [record for record in records if (record["action"], record["who"], record["result"]) == ("config.reload", who, result)]

    until(recorded, 3, "the record")
    assert one.weir.metrics().sum("weir_config_rejected") == (result == "rejected")


def test_another_method_is_told_which_are_taken(one):
    answer = one.weir.admin("PUT", "/admin/v1/keys")
    assert (answer.status, answer.header("allow")) == (405, "GET, POST")
    assert one.weir.admin("GET", "/admin/v1/nothing").status == 404


def test_the_console_runs_nothing_but_its_own(one):
    answer = one.weir.admin("GET", "/", token=False)
    policy = answer.header("content-security-policy")
    assert answer.status == 200 and answer.header("content-type").startswith("text/html")
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert (answer.header("x-content-type-options"), answer.header("referrer-policy")) == ("nosniff", "no-referrer")

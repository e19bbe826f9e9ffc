"""What survives `kill -9`: answered requests once, running ones as failed, balances that equal the rows."""

import concurrent.futures
import json
import os
import random
import threading
import time
from decimal import Decimal

import pytest
from provider import Gate, Reply, Stall, Wait, chat_answer, chat_events, stream, until, whole


def test_a_stream_that_was_running_is_closed_as_failed(one):
    key = one.weir.key(credits=1000)
    done = [one.weir.chat(key=key, stream=number % 2 == 0) for number in range(4)]
    for answer in done:
        answer.read()
    one.openai.queue(stream([*chat_events(usage=None)[:6], Wait(1.5), *chat_events(usage=None)[6:10], Stall()]))
    running = one.weir.chat(key=key, stream=True)
    running.until("🌊".encode())
    time.sleep(0.2)
    one.weir.kill()
    one.weir.start()
    rows = [one.weir.row_of(answer, key) for answer in done]
    assert [row["end"] for row in rows] == ["complete"] * 4
    row = one.weir.row_of(running, key)
    assert row["end"] == "failed", row
    assert row["output"] > 0, "its progress was journalled"
    credits = one.weir.credits(key)
    assert Decimal(credits["reserved"]) == 0
    assert Decimal(credits["balance"]) == 1000 - sum(Decimal(each["charge"]) for each in [*rows, row])
    report = json.loads(one.weir.command("usage", "--by", "key", "--json").stdout)
    assert sum(line["rows"] for line in report["lines"]) == 5, report


def test_an_attempt_that_was_waiting_is_closed_as_failed(one):
    key = one.weir.key(credits=1000)
    gate = Gate()
    one.openai.queue(Reply(before=[gate], body=b""))
    client = one.weir.client()
    body = b'{"model":"m","messages":[]}'
    client.begin("POST", "/v1/chat/completions", [("Authorization", f"Bearer {key['key']}"), ("Content-Length", str(len(body)))])
    client.send(body)
    one.openai.wait_seen(1)
    request_id = one.openai.last.header("x-request-id")
    one.weir.kill()
    gate.open()
    one.weir.start()
    row = one.weir.row(request_id, key)
    assert row["end"] == "failed"
    assert Decimal(one.weir.credits(key)["reserved"]) == 0


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "stream"])
def test_an_answer_whose_end_was_seen_has_its_row_whatever_comes_next(one, streams):
    """Killed at the very moment the end arrives, again and again."""
    key = one.weir.key(credits=1000)
    for _ in range(5):
        answer = one.weir.chat(key=key, stream=streams)
        answer.read()
        one.weir.kill()
        one.weir.start()
        row = one.weir.row_of(answer, key)
        assert (row["end"], row["output"], row["usage_source"]) == ("complete", 7, "upstream")


@pytest.mark.parametrize("damage", ["torn tail", "garbage at the end"])
def test_a_torn_journal_is_mended(one, damage):
    answers = [one.weir.chat() for _ in range(3)]
    one.weir.kill()
    journals = [path for path in (one.folder / "var").rglob("*") if path.is_file() and ".db" not in path.suffixes and not path.name.endswith((".db", ".db-wal", ".db-shm"))]
    journals = [path for path in journals if path.stat().st_size]
    assert journals, "there is a journal beside the database"
    newest = max(journals, key=lambda path: path.stat().st_mtime)
    with open(newest, "r+b") as file:
        if damage == "torn tail":
            file.truncate(newest.stat().st_size - 3)
        else:
            file.seek(0, 2)
            file.write(b"\x17\x00\x00\x00half a record")
    one.weir.start()
    assert one.weir.chat().status == 200
    rows = [one.weir.row_of(answer)["end"] for answer in answers[:2]]
    assert rows == ["complete"] * 2


def test_strict_commit(world):
    world.weir.settings["ledger"] += '\ncommit = "strict"'
    world.provider("p")
    weir = world.model("m", "p").start()
    answers = [weir.chat(stream=number % 2 == 0) for number in range(6)]
    for answer in answers:
        answer.read()
    weir.kill()
    weir.start()
    assert [weir.row_of(answer)["end"] for answer in answers] == ["complete"] * 6


def test_a_key_made_before_the_crash_is_there_afterwards(one):
    key = one.weir.key(credits=7)
    one.weir.kill()
    one.weir.start()
    assert one.weir.chat(key=key).status == 200


def test_torture(one):
    """Clients of every habit while the server is killed again and again: every answer that was seen to end has exactly one row,
    the balance is what the rows leave, nothing is left reserved. WEIR_TORTURE_CLIENTS and WEIR_TORTURE_KILLS make it longer."""
    clients, kills = (int(os.environ.get(name, 8)) for name in ("WEIR_TORTURE_CLIENTS", "WEIR_TORTURE_KILLS"))
    key = one.weir.key(credits=100_000)
    one.openai.always(lambda request: stream(chat_events(), split=40) if request.json.get("stream") else whole(chat_answer()))
    ended, begun, stop, up = [], [], threading.Event(), threading.Event()
    up.set()

    def client(worker):
        chance = random.Random(worker)
        while not stop.is_set():
            up.wait(5)
            try:
                answer = one.weir.chat(key=key, stream=chance.random() < 0.6)
                request_id = answer.header("x-request-id")
                begun.append(request_id)
                if chance.random() < 0.2:
                    answer.some()
                    answer.client.close()
                    continue
                got = answer.read()
                if answer.status == 200 and got.endswith((b"[DONE]\n\n", b"}")):
                    ended.append(request_id)
                answer.client.close()
            except Exception:
                time.sleep(0.01)

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        workers = [pool.submit(client, number) for number in range(clients)]
        for _ in range(kills):
            time.sleep(0.6)
            up.clear()
            one.weir.kill()
            one.weir.start()
            up.set()
        time.sleep(0.3)
        stop.set()
        for worker in workers:
            worker.result(30)
    one.weir.kill()
    one.weir.start()
    assert len(ended) > 50, len(ended)
    rows = {request_id: one.weir.row(request_id, key) for request_id in ended}
    assert {row["end"] for row in rows.values()} == {"complete"}
    assert {row["output"] for row in rows.values()} == {7}
    credits = until(lambda: (found := one.weir.credits(key)) and Decimal(found["reserved"]) == 0 and found, 5, "nothing reserved")
    import sqlite3

    with sqlite3.connect(f"file:{one.folder}/var/weir.db?mode=ro", uri=True) as db:
        names = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        table = next(name for name in names if "request_id" in [column[1] for column in db.execute(f"PRAGMA table_info({name})")])
        stored = [one_id for (one_id,) in db.execute(f"SELECT request_id FROM {table}")]
    assert len(stored) == len(set(stored)), "no row twice"
    assert set(ended) <= set(stored)
    listed = json.loads(one.weir.command("usage", "--by", "key", "--json").stdout)["lines"]
    charged = sum(Decimal(line["charge"]) for line in listed)
    assert Decimal(credits["balance"]) == 100_000 - charged, (credits, listed)

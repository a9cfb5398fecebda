"""`gridserve bench engine` on a CPU: what it keeps of a run that is stopped."""

import json

import pytest

import bench.engine
import engine.model_store
from bench._systems import Measurement


class StoppedPeer:
    """Measures one request at a time; at two it is stopped."""

    missing, version = None, "1"

    def __init__(self, name, *_):
        self.name = name

    def run(self, workload):
        if workload.concurrency == 2:
            raise KeyboardInterrupt
        return Measurement(token_times_s=[[0.5, 0.6, 0.7]], peak_memory_bytes=2**20)

    def close(self):
        pass


def test_a_run_that_is_stopped_keeps_what_it_measured(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench.engine, "Peer", StoppedPeer)
    monkeypatch.setattr(engine.model_store, "resolve_model", lambda model: model)
    path = tmp_path / "engine.json"
    command = ["--systems", "gridserve", "--concurrency", "1", "2", "8", "--rounds", "1", "--json", str(path)]
    assert bench.engine.main(command) == 130
    document = json.loads(path.read_text())
    assert document["interrupted"]
    assert [row["concurrency"] for row in document["rows"]] == [1]
    assert document["rows"][0]["decode_tok_s"] == pytest.approx(10.0)
    said = capsys.readouterr()
    assert "interrupted at concurrency 2" in said.err
    assert "| 1 | gridserve |" in said.out

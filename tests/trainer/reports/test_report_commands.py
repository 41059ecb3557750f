from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.trainer.run_folders import full_run
from trainer.cli import cli


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def test_the_report_of_one_run_is_written_again_into_its_folder(tmp_path):
    run = full_run(tmp_path)
    assert call("report", "demo").output == "demo/report.html\n"
    assert "0000000000000004" not in (run / "report.html").read_text()


def test_pseudonyms_are_shown_when_asked_for(tmp_path):
    full_run(tmp_path)
    assert call("report", "demo", "--people", "--output", "ours.html").output == "ours.html\n"
    assert "0000000000000004" in Path("ours.html").read_text()


def test_several_runs_give_a_comparison(tmp_path):
    runs = [full_run(tmp_path, name=name).name for name in ("one", "other")]
    assert call("report", *runs).output == "comparison.html\n"
    assert call("report", *runs, "--output", "both.html").output == "both.html\n"
    assert Path("both.html").read_bytes() == Path("comparison.html").read_bytes()


def test_a_comparison_has_no_person_in_it(tmp_path):
    runs = [full_run(tmp_path, name=name).name for name in ("one", "other")]
    done = call("report", *runs, "--people")
    assert done.exit_code == 2 and "--people goes with one run" in done.output


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["demo"],
        ["demo", "--key", "key.pem"],
        ["--verify", "one.json"],
        ["demo", "--key", "key.pem", "--into", "sealed", "--verify", "one.json"],
        ["--verify", "one.json", "--public-key", "key.pem", "--identity", "0" * 16],
    ],
)
def test_a_certificate_is_either_issued_or_checked(arguments):
    done = call("certificate", *arguments)
    assert done.exit_code == 2 and "either issue: RUN --key KEY --into FOLDER" in done.output

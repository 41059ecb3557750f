"""Findings as lines: each once, with the hosts that have it."""

from trainer.doctor.diagnosis import Report, differences, fail, is_well, lines_of, ok, warn


def test_a_finding_of_all_hosts_stands_once_and_one_of_some_names_them():
    full, slow = fail("the disk is full", "free some"), warn("it is slow", "wait")
    reports = [
        Report("host 0 (a)", (ok("all is here"), full)),
        Report("host 1 (b)", (ok("all is here"), slow)),
        Report("host 1 (b)", (slow,)),
        Report("", (ok("they meet"),)),
    ]
    assert list(lines_of(reports)) == [
        "ok    all is here",
        "fail  host 0 (a): the disk is full; free some",
        "warn  host 1 (b): it is slow; wait",
        "ok    they meet",
    ]


def test_only_what_would_stop_a_run_counts():
    assert is_well([Report("a", (ok("x"), warn("y", "z")))])
    assert not is_well([Report("a", (ok("x"),)), Report("b", (fail("y", "z"),))])


def test_reports_come_home_as_they_were_sent():
    report = Report("a", (ok("x"), fail("y", "z")), {"torch": "2.15.0"})
    assert Report.from_json(report.to_json()) == report


def test_what_hosts_do_not_have_in_common_is_named_with_one_host_for_each():
    reports = [
        Report("a", (), {"torch": "2.15.0", "configuration": "12"}),
        Report("b", (), {"torch": "2.14.1", "configuration": "12"}),
        Report("c", (), {"torch": "2.14.1"}),
        Report("", (ok("of no host"),)),
    ]
    told = [one.what for one in differences(reports)]
    assert told == [
        "torch differs: 2.15.0 on a, 2.14.1 on b",
        "configuration differs: 12 on a, missing on c",
    ]

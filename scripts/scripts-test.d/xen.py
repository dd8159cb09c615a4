"""Tests of scripts/xen.d that need no Xen: ends of what it starts, and what counts as a domain that runs."""

import os
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "xen.d"))

import demo  # noqa: E402
import hosts  # noqa: E402
import kills  # noqa: E402
from hosts import Failure  # noqa: E402


def report(counter, corrupt=0):
    return f"romulus counter={counter} corrupt={corrupt} passes=1 clock_ms=10 requests=0"


class Programs(unittest.TestCase):
    def test_what_fails_or_takes_too_long_is_a_failure(self):
        self.assertEqual(hosts.run("echo", 1), "1\n")
        self.assertEqual(hosts.run("false", check=False), "")
        with self.assertRaisesRegex(Failure, "status 3: why"):
            hosts.run("sh", "-c", "echo why >&2; exit 3")
        with self.assertRaisesRegex(Failure, "not within"):
            hosts.run("sleep", "60", patience_s=0.01)


class FakeLab:
    """Instead of a lab: commands run here, whatever the host, and the domain has made so many steps."""

    def __init__(self, command=None, steps=0):
        self.command = command
        self.steps = steps
        self.children = []

    def words(self, host, words):
        return self.command

    def counter(self, host, name):
        return self.steps


class Clients(unittest.TestCase):
    def client(self, script):
        lab = FakeLab(["sh", "-c", script])
        client = demo.Client(lab)
        self.addCleanup(client.process.wait)
        self.addCleanup(client.process.stdout.close)
        return client

    def test_a_client_that_goes_on_answers_until_it_is_told_to_end(self):
        client = self.client("""read -r _; echo '{"requests": 1}'; read -r _; echo '{"survived": 1}'""")
        self.assertEqual(client.ask(), {"requests": 1})
        self.assertEqual(client.finish(), {"survived": 1})

    def test_a_client_that_is_dead_is_a_failure(self):
        client = self.client("exit 4")
        client.process.wait()
        for use in (client.ask, client.finish):
            with self.assertRaisesRegex(Failure, "status 4"):
                use()

    def test_a_client_that_has_given_up_is_a_failure_with_its_reason(self):
        client = self.client("""echo '{"survived": 0, "complaints": ["hung up"]}'""")
        client.process.wait()
        with self.assertRaisesRegex(Failure, "hung up"):
            client.ask()
        with self.assertRaisesRegex(Failure, "without a word"):
            client.finish()


class FakeConsole:
    """Instead of a `Follower`: lines that all come at once, now."""

    def __init__(self, lines):
        self.lines = lines

    def reports(self, since):
        return [(since, hosts.report_of(line)) for line in self.lines]


class Steps(unittest.TestCase):
    lab = FakeLab(steps=100)
    late = [report(counter) for counter in range(50, 101)]

    def test_reports_from_before_the_kill_are_no_steps(self):
        with self.assertRaisesRegex(Failure, "steps of the domain"):
            kills.runs_on(self.lab, FakeConsole(self.late), patience_s=0.05)
        kills.runs_on(self.lab, FakeConsole([*self.late, report(100 + kills.STEPS)]))

    def test_corrupt_pages_are_a_failure(self):
        with self.assertRaisesRegex(Failure, "2 corrupt pages"):
            kills.runs_on(self.lab, FakeConsole([report(500, corrupt=2)]))

    def test_half_a_line_is_no_report(self):
        self.assertEqual(hosts.report_of(report(7))["counter"], 7)
        for line in ("", "romulus ready pages=4", report(7)[:-1], report(7) + " more=1"):
            self.assertIsNone(hosts.report_of(line), line)


if __name__ == "__main__":
    unittest.main()

"""A Grid Engine cell in a bed: qmaster, execution hosts, submissions, and what became of them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.batch.bed import Bed, BedHost
from tests.farm.process import eventually

ROOT = "/var/lib/gridengine"
SPOOL = Path("/var/spool/gridengine")
ENVIRONMENT = {"SGE_ROOT": ROOT, "SGE_CELL": "default"}
QUEUE = "virt"
USER = "alice"
HOME = Path("/home/alice")

SCHEDULER = {"schedule_interval": "0:0:1", "flush_submit_sec": "1", "flush_finish_sec": "1"}
GLOBAL = {
    "load_report_time": "00:00:02",
    "execd_params": "",
    "reporting_params": "accounting=true reporting=false flush_time=00:00:01 "
    "accounting_flush_time=00:00:00 joblog=false sharelog=00:00:00",
}


@dataclass
class Cell:
    """The cell of a bed: its head is the qmaster's host; ``nodes`` run jobs."""

    bed: Bed
    nodes: list[BedHost] = field(default_factory=list)

    @property
    def master(self) -> BedHost:
        return self.bed.head

    def configure(self) -> None:
        """What Debian's packages do when they are installed, then the queue master."""
        master = self.master
        script = f"""
set -e
adduser --system --no-create-home --quiet --shell /bin/false --group --home {ROOT} sgeadmin
useradd -m -s /bin/bash {USER}
useradd -m -s /bin/bash bob
cp /usr/share/gridengine/templates/gridengine.default /etc/default/gridengine
mkdir -p {ROOT}/default/common {SPOOL}/qmaster/job_scripts {SPOOL}/spooldb {SPOOL}/execd
install -m 644 /usr/share/gridengine/default-bootstrap {ROOT}/default/common/bootstrap
echo {master.name} >{ROOT}/default/common/act_qmaster
chown -R sgeadmin:sgeadmin {ROOT}/default {SPOOL}
grep -q ^sge_qmaster /etc/services ||
    printf 'sge_qmaster 6444/tcp\\nsge_execd 6445/tcp\\n' >>/etc/services
init=/usr/share/gridengine/scripts/init_cluster
su -s /bin/sh -c "$init {ROOT} default {SPOOL}/spooldb sgeadmin" sgeadmin
"""
        master.run("sh", "-c", script, environment={"DEBIAN_FRONTEND": "noninteractive"})
        master.run("/usr/sbin/sge_qmaster", environment=ENVIRONMENT)
        eventually("the queue master answers", self._answers, limit_s=20)
        self.admin("qconf", "-as", master.name)
        self.change("-sconf", "-Mconf", GLOBAL, "global")
        self.change("-ssconf", "-Msconf", SCHEDULER)

    def _answers(self) -> bool:
        return self.admin("qconf", "-sss", check=False).returncode == 0

    def admin(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """A command as the cell's manager, on the master's host."""
        return self.master.run(*arguments, environment=ENVIRONMENT, **options)

    def change(self, show: str, modify: str, values: dict[str, str], name: str = "") -> None:
        """Change attributes of what ``qconf SHOW NAME`` prints."""
        text = self.admin("qconf", show, *([name] if name else [])).stdout.replace("\\\n", " ")
        for key, value in values.items():
            line = f"{key} {value or 'none'}"
            text, count = re.subn(rf"(?m)^{key}\s.*$", line, text)
            if not count:
                text += line + "\n"
        # The file's name is the name of what is changed.
        file = f"/tmp/{name or 'scheduler'}"
        self.master.path(file).write_text(text)
        self.admin("qconf", modify, file)

    def add_node(self, host: BedHost, *, slots: int = 4) -> None:
        """An execution host, and a queue instance on it."""
        self.admin("qconf", "-ah", host.name)
        self.admin("qconf", "-as", host.name)
        template = (
            "hostname {0}\nload_scaling NONE\ncomplex_values NONE\nuser_lists NONE\n"
            "xuser_lists NONE\nprojects NONE\nxprojects NONE\nusage_scaling NONE\n"
            "report_variables NONE\n"
        )
        self.master.path("/tmp/exechost").write_text(template.format(host.name))
        self.admin("qconf", "-Ae", "/tmp/exechost")
        self.nodes.append(host)
        self._own_groups(host)
        if len(self.nodes) == 1:
            self._add_queue(slots)
        else:
            self.admin("qconf", "-aattr", "queue", "hostlist", host.name, QUEUE)
        self.start_execd(host)

    def _own_groups(self, host: BedHost) -> None:
        """When a job ends, whatever has its group is killed: all hosts are one kernel here."""
        first = 20000 + 1000 * len(self.nodes)
        file = f"/tmp/{host.name}"
        self.master.path(file).write_text(f"gid_range {first}-{first + 99}\n")
        self.admin("qconf", "-Aconf", file)

    def _add_queue(self, slots: int) -> None:
        text = self.admin("sh", "-c", "EDITOR=cat qconf -aq virt 2>/dev/null || :").stdout
        keep = "".join(
            line + "\n"
            for line in text.replace("\\\n", " ").splitlines()
            if re.match(r"^[a-z_]+ +\S", line)
        )
        values = {
            "qname": QUEUE,
            "hostlist": self.nodes[0].name,
            "slots": str(slots),
            "load_thresholds": "NONE",
            "shell": "/bin/sh",
            "rerun": "TRUE",
            "pe_list": "NONE",
            "ckpt_list": "NONE",
        }
        for key, value in values.items():
            keep = re.sub(rf"(?m)^{key}\s.*$", f"{key} {value}", keep)
        self.master.path("/tmp/queue").write_text(keep)
        self.admin("qconf", "-Aq", "/tmp/queue")

    def start_execd(self, host: BedHost) -> None:
        host.run("/usr/sbin/sge_execd", environment=ENVIRONMENT)

    def execd_pid(self, host: BedHost) -> int:
        return int(host.path(SPOOL / "execd" / host.name / "execd.pid").read_text())

    def restart_execd(self, host: BedHost) -> None:
        """In order; jobs run on."""
        pid = str(self.execd_pid(host))
        host.run("kill", "-TERM", pid)
        there = ("kill", "-0", pid)
        eventually("execd has ended", lambda: host.run(*there, check=False).returncode != 0)
        self.start_execd(host)

    def submit(
        self, *arguments: str, script: str, user: str = USER, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """``qsub`` with a script on standard input, as an ordinary user."""
        return self.master.run(
            *("qsub", "-terse", "-wd", f"/home/{user}", *arguments),
            user=user,
            stdin=script,
            environment={**ENVIRONMENT, "HOME": f"/home/{user}", "PWD": f"/home/{user}"},
            **options,
        )

    def qsub(self, *arguments: str, script: str, **options: Any) -> str:
        """The same; the job's number."""
        done = self.submit(*arguments, script=script, **options)
        return done.stdout.strip().splitlines()[-1].split(".")[0]

    def wait(self, job: str, *, limit_s: float = 60.0) -> None:
        """Until the job is neither queued nor running."""
        gone = "Following jobs do not exist"

        def over() -> bool:
            done = self.admin("qstat", "-j", job, check=False)
            return gone in done.stdout + done.stderr

        self._until(f"job {job} is over", job, over, limit_s=limit_s)

    def _until(self, what: str, job: str, holds: Callable[[], bool], *, limit_s: float) -> None:
        """Wait, and say what is known of the job when it takes too long."""
        try:
            eventually(what, holds, limit_s=limit_s, every_s=0.2)
        except AssertionError as error:
            told = self.admin("qstat", "-j", job, check=False).stdout
            queues = self.admin("qstat", "-f", "-u", "*").stdout
            raise AssertionError(f"{error}\n{queues}\n{told}\n{self.errors(job)}") from None

    def output(self, job: str, *, name: str = "STDIN", task: str = "") -> str:
        """What it wrote to standard output."""
        return self._file(f"{name}.o{job}{task and '.' + task}")

    def errors(self, job: str, *, name: str = "STDIN", task: str = "") -> str:
        return self._file(f"{name}.e{job}{task and '.' + task}")

    def _file(self, name: str) -> str:
        file = self.master.path(HOME / name)
        return file.read_text("utf-8", "replace") if file.exists() else ""

    def states(self) -> dict[str, str]:
        """The state of every queue instance, by host: empty when nothing is wrong."""
        rows = [line.split() for line in self.admin("qstat", "-f").stdout.splitlines()]
        named = [row for row in rows if row and row[0].startswith(f"{QUEUE}@")]
        return {row[0].partition("@")[2]: row[5] if len(row) > 5 else "" for row in named}

    def state(self, job: str) -> str:
        """The state of a job (``r``, ``qw``, ``Eqw`` ...), empty when it is over."""
        rows = [line.split() for line in self.admin("qstat", "-u", "*").stdout.splitlines()]
        return next((row[4] for row in rows if row and row[0] == job), "")

    def becomes(self, job: str, state: str, *, limit_s: float = 60.0) -> None:
        """Wait for a state of a job."""
        reached = f"job {job} is {state}"
        self._until(reached, job, lambda: self.state(job) == state, limit_s=limit_s)

    def becomes_held(self, job: str, *, limit_s: float = 60.0) -> None:
        """Wait for a job's error state (``Eqw``; ``ERq`` once it was requeued)."""
        held = f"job {job} is held"
        self._until(held, job, lambda: "E" in self.state(job), limit_s=limit_s)

    def says(self, job: str, text: str, *, limit_s: float = 60.0) -> None:
        """Wait for what a job writes while it runs."""
        eventually(f"job {job} says {text}", lambda: text in self.output(job), limit_s=limit_s)

    def qdel(self, job: str) -> None:
        self.admin("qdel", job)
        self.wait(job)

    def accounted(self, job: str) -> list[dict[str, str]]:
        """Its records in the accounting file, one for each run and task."""

        def records() -> list[dict[str, str]]:
            done = self.admin("qacct", "-j", job, check=False).stdout
            return [
                dict(line.split(None, 1) for line in block.splitlines() if len(line.split()) > 1)
                for block in done.split("=" * 62)
                if block.strip()
            ]

        found: list[dict[str, str]] = eventually(f"job {job} is accounted", records, limit_s=20)
        return [{key: value.strip() for key, value in one.items()} for one in found]

"""A Slurm cluster in a bed, beside the farm of distrib: slurmctld, munge, one node, submissions."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.batch.bed import Bed, BedHost, bed
from tests.batch.product import PREFIX, ROOT, environment_layer, install
from tests.batch.site import AGENT, MASTER, BedNode, _add, _libvirt, _reap, passable
from tests.farm.farm import Farm, Image
from tests.farm.process import eventually
from tests.stories.test_rollout import start, wait

USER = "alice"
HOME = Path("/home") / USER
LIMIT_S = 60.0

HOST_MIB = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
NODE_MIB = HOST_MIB + 4096
"""What slurm.conf says that the node has."""

CONFIGURATION = """\
ClusterName=bed
SlurmctldHost={master}
SlurmUser=slurm
AuthType=auth/munge
AuthInfo=cred_expire=5
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
SlurmctldLogFile=/var/log/slurmctld.log
SlurmdLogFile=/var/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=2
SlurmdParameters=config_overrides
MailProg=/bin/true
MpiDefault=none
KillWait=10
BatchStartTimeout=120
NodeName={node} CPUs=4 RealMemory={memory_mib}
PartitionName=virt Nodes=ALL Default=YES State=UP
"""

# What Debian's packages do when they are installed.
PREPARE = f"""
set -e
for name in munge slurm; do adduser --system --no-create-home --quiet --group $name; done
useradd -m -s /bin/bash {USER}
for name in slurmctld slurmd slurmstepd; do ln -sf $name-wlm /usr/sbin/$name; done
mkdir -p /etc/munge /var/lib/munge /var/log/munge /run/munge /etc/slurm /var/spool/slurmctld \
    /var/spool/slurmd
chown munge:munge /etc/munge /var/lib/munge /var/log/munge /run/munge
chown slurm:slurm /var/spool/slurmctld
chmod 755 /run/munge
mungekey -c -k /etc/munge/munge.key
chown munge /etc/munge/munge.key
setpriv --reuid=munge --regid=munge --clear-groups munged
echo CgroupPlugin=cgroup/v1 >/etc/slurm/cgroup.conf
"""


@dataclass
class SlurmSite:
    """``image`` is approved, has the alias ``ccin2p3`` and is on the node ``wn1``."""

    bed: Bed
    farm: Farm
    image: Image
    node: BedNode
    libvirt: str
    hooks: Path = PREFIX / "libexec" / "slurm"

    @property
    def master(self) -> BedHost:
        return self.bed.head

    def submit(
        self, *arguments: str, script: str, check: bool = True, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """``sbatch`` with a script on standard input, as an ordinary user."""
        return self.master.run(
            *("sbatch", "--parsable", f"--chdir={HOME}", *arguments),
            user=USER,
            stdin=script,
            check=check,
            environment={"HOME": str(HOME), **variables},
        )

    def sbatch(self, *arguments: str, script: str, **variables: str) -> str:
        """The same; the job's number."""
        return self.submit(*arguments, script=script, **variables).stdout.strip()

    def job(self, job: str) -> dict[str, str]:
        """What ``scontrol show job`` says."""
        shown = self.master.run("scontrol", "-o", "show", "job", job).stdout
        return dict(part.partition("=")[::2] for part in shown.split() if "=" in part)

    def becomes(self, job: str, *states: str, limit_s: float = LIMIT_S) -> dict[str, str]:
        """Wait for a state of a job; what is said of it then."""

        def there() -> dict[str, str] | None:
            shown = self.job(job)
            return shown if shown["JobState"] in states else None

        try:
            found: dict[str, str] = eventually(f"job {job} is {states}", there, limit_s=limit_s)
        except AssertionError as error:
            logs = [
                self.master.path("/var/log/slurmctld.log"),
                self.master.path("/var/log/slurmd.wn1.log"),
            ]
            told = "".join(log.read_text()[-2500:] for log in logs if log.exists())
            raise AssertionError(f"{error}\n{self.job(job)}\n{self.output(job)}\n{told}") from None
        return found

    def output(self, job: str) -> str:
        """What it wrote to standard output and error."""
        file = self.master.path(HOME / f"slurm-{job}.out")
        return file.read_text("utf-8", "replace") if file.exists() else ""

    def says(self, job: str, text: str, *, limit_s: float = LIMIT_S) -> None:
        eventually(f"job {job} says {text}", lambda: text in self.output(job), limit_s=limit_s)

    def state(self) -> str:
        """Of the node: ``idle``, ``mix``, ``drain`` ..."""
        return self.master.run("sinfo", "-h", "-N", "-o", "%t").stdout.strip()

    def features(self) -> set[str]:
        """The node's active ones of ours, after it has looked."""
        self.node.host.run(self.hooks / "features")
        shown = self.master.run("sinfo", "-h", "-o", "%b").stdout.strip()
        return {one for one in shown.split(",") if one.startswith("img_")}

    def know_held(self) -> None:
        """What the timer on slurmctld's host does."""
        self.features()
        self.master.run(AGENT, "hooks", "slurm", "held")

    def bring(self, alias: str) -> Image:
        """Another image, approved and on the node."""
        file = self.farm.directory / f"{alias}.raw"
        build = [ROOT / "scripts" / "guest" / "build", "-o", file, "--size-mb", "32"]
        subprocess.run([*build, "--payload-seed", alias], check=True, capture_output=True)
        image = self.farm.endorse(file, alias=alias)
        self.farm.approve(image)
        wait(self.farm, start(self.farm, image, self.node.name))
        return image

    def left(self) -> list[str]:
        """What jobs have left on the node."""
        host = self.node.host
        found = host.run("virsh", "-q", "-c", self.libvirt, "list", "--all").stdout.split()
        found += [str(path) for path in (self.node.cache / "instances").glob("*")]
        told = host.run(AGENT, "leases", "--json").stdout
        records = host.path("/var/lib/distrib/slurm").glob("*")
        return found + (["lease"] if '"lease"' in told else []) + [str(one) for one in records]


@contextmanager
def slurm_site(directory: Path, guest_image: Path, *, burst_buffer: bool) -> Iterator[SlurmSite]:
    """A site with Slurm and the hooks installed; ends with its bed."""
    layer = subprocess.run([ROOT / "scripts/slurm"], check=True, capture_output=True, text=True)
    passable(directory)
    with ExitStack() as ending:
        layers = [Path(layer.stdout.strip()), environment_layer()]
        made = ending.enter_context(bed(directory, layers=layers, name=MASTER))
        (directory / "wheel").mkdir()
        install(made.head, directory / "wheel")
        farm = Farm(directory, made.head, [MASTER, "wn1"])
        ending.callback(_reap, farm)
        farm.start_head()
        host = made.add_host("wn1")
        libvirt = _libvirt(host)
        _add(farm, MASTER, made.head, None)
        node = _add(farm, "wn1", host, libvirt)
        file = farm.directory / "guest.raw"
        shutil.copy(guest_image, file)
        image = farm.endorse(file, alias="ccin2p3")
        farm.approve(image)
        wait(farm, start(farm, image, "wn1"))
        made.head.run("sh", "-c", PREPARE, environment={"DEBIAN_FRONTEND": "noninteractive"})
        configuration = made.head.path("/etc/slurm/slurm.conf")
        configuration.write_text(
            CONFIGURATION.format(master=MASTER, node="wn1", memory_mib=NODE_MIB)
        )
        more = ["--burst-buffer"] if burst_buffer else []
        # The bed's hosts share a file system.
        made.head.run(AGENT, "hooks", "slurm", "install", *more)
        found = SlurmSite(made, farm, image, node, libvirt)
        made.head.run("slurmctld")
        eventually(
            "slurmctld answers", lambda: "wn1" in made.head.run("sinfo", "-N", check=False).stdout
        )
        host.run("slurmd", "-N", "wn1")
        eventually("the node is idle", lambda: found.state() == "idle")
        found.know_held()
        yield found
